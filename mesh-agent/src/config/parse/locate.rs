//! From a field's path to its line, for messages. Reads the document a second time, and only when
//! there is something to say about it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::typed::camel_case;
use super::yaml;

/// The shape of a document, with the line (from 1) where each value starts.
pub(super) struct Lines {
    line: u64,
    node: Node,
}

enum Node {
    Map(Vec<(String, Lines)>),
    List(Vec<Lines>),
    Leaf,
}

impl Lines {
    /// Reads a document that is known to be valid YAML.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_saphyr::from_str_with_options(text, yaml::options()).ok()
    }

    /// Line of the value at `path`, or of the innermost value around it that is there.
    pub(super) fn of(&self, path: &str) -> usize {
        let mut at = self;
        for segment in segments(path) {
            let next = match &at.node {
                Node::Map(entries) => entries
                    .iter()
                    .find(|(key, _)| key == segment || camel_case(key) == segment)
                    .map(|(_, value)| value),
                Node::List(list) => segment.parse().ok().and_then(|index: usize| list.get(index)),
                Node::Leaf => None,
            };
            let Some(next) = next else { break };
            at = next;
        }
        usize::try_from(at.line).unwrap_or(1)
    }
}

/// Parts of a path such as `spec.http[0].headers[a.b].exact`.
fn segments(path: &str) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), path);
    while !rest.is_empty() {
        let (segment, tail) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        found.push(segment);
        rest = tail.strip_prefix('.').unwrap_or(tail);
    }
    found
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned: Spanned<Node> = Spanned::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), node: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

/// Builds a [`Node`] from whatever comes.
struct Shape;

impl<'de> Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Node::List(elements))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_lines() {
        let text = "
kind: X
metadata:
  annotations:
    a.b/c: d
spec:
  http:
  - match: []
  - match:
    - uri: { exact: /a }
    mirror_percent: 5
    timeout:
";
        let lines = Lines::read(text).unwrap();
        let of = |path: &str| lines.of(path);
        assert_eq!(of("metadata.annotations[a.b/c]"), 5);
        assert_eq!(of("spec.http[1].match[0].uri.exact"), 10);
        assert_eq!(of("spec.http[1].match[0].uri.prefix"), 10);
        assert_eq!(of("spec.http[1].mirrorPercent"), 11);
        assert_eq!(of("spec.http[7].match"), 8);
        assert_eq!(of(""), 2);
    }
}
