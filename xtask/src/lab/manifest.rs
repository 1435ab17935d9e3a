//! Manifests as people write them: several YAML documents in one text, `List`s unpacked. Pure.
//!
//! Every object keeps the text it came from: what the lab does not play itself (Istio's kinds) is
//! handed to the agents exactly as written, mistakes included.

use std::fmt;

use anyhow::{Context, bail};
use serde_json::Value;

/// Where an object without a namespace goes.
pub(super) const DEFAULT_NAMESPACE: &str = "default";
/// Kinds that have no namespace.
const CLUSTER_SCOPED: [&str; 5] =
    ["Namespace", "Node", "GatewayClass", "CustomResourceDefinition", "ClusterRole"];
/// Controllers that a cluster has and the lab does not play: accepting them would do nothing.
const NOT_PLAYED: [&str; 6] =
    ["StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"];

/// Identifies an object; versions of one API group are the same object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// API group, empty for the core one.
    pub group: String,
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`, empty for what has none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// Key of a core object.
    pub(super) fn core(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: String::new(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) key: Key,
    /// With `metadata.namespace` filled in.
    pub(super) value: Value,
    /// As it was written.
    pub(super) text: String,
}

impl Object {
    /// The value at a JSON pointer, if there is one that is not null.
    pub(super) fn at(&self, pointer: &str) -> Option<&Value> {
        self.value.pointer(pointer).filter(|value| !value.is_null())
    }
}

/// Reads a text of manifests.
///
/// # Errors
/// A document is no YAML, or no object; the message says which.
pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for (number, document) in documents(text).iter().enumerate() {
        let value: Value = serde_saphyr::from_str(document)
            .with_context(|| format!("document {} of the manifest", number + 1))?;
        if !value.is_null() {
            unpack(value, document, &mut objects)
                .with_context(|| format!("document {} of the manifest", number + 1))?;
        }
    }
    Ok(objects)
}

/// Parts between `---` lines that hold more than comments.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(format!("{}\n", line.trim_start_matches('-')));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let says_something = |document: &String| {
        document.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with('#'))
    };
    documents.into_iter().filter(says_something).collect()
}

fn unpack(value: Value, text: &str, objects: &mut Vec<Object>) -> anyhow::Result<()> {
    let kind = text_at(&value, "/kind").context("kind: missing")?.to_owned();
    if kind == "List" {
        let items = value.pointer("/items").and_then(Value::as_array).context("items: missing")?;
        for item in items {
            let text = serde_saphyr::to_string(item).context("write an item of a List")?;
            unpack(item.clone(), &text, objects)?;
        }
        return Ok(());
    }
    objects.push(object(value, kind, text)?);
    Ok(())
}

fn object(mut value: Value, kind: String, text: &str) -> anyhow::Result<Object> {
    if value.get("apiVersion").is_none() {
        // Forgiven, for what the lab plays itself.
        value["apiVersion"] = if kind == "Deployment" { "apps/v1" } else { "v1" }.into();
    }
    let version = text_at(&value, "/apiVersion").context("apiVersion: not a string")?;
    let group = version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    if NOT_PLAYED.contains(&kind.as_str()) && matches!(group.as_str(), "" | "apps" | "batch") {
        bail!("kind: {kind} is not played by the lab: write a Deployment or Pods");
    }
    let name = match value.pointer("/metadata/name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        _ => bail!("{kind}: metadata.name: missing"),
    };
    let mut namespace = String::new();
    if !CLUSTER_SCOPED.contains(&kind.as_str()) {
        namespace = match value.pointer("/metadata/namespace") {
            None | Some(Value::Null) => DEFAULT_NAMESPACE.to_owned(),
            Some(Value::String(namespace)) => namespace.clone(),
            // Unquoted, `no` is false and `1` a number.
            Some(other) => bail!("{kind} {name}: metadata.namespace: {other} is no string"),
        };
        value["metadata"]["namespace"] = namespace.clone().into();
    }
    Ok(Object { key: Key { group, kind, namespace, name }, value, text: text.to_owned() })
}

/// The string at a JSON pointer.
pub(super) fn text_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
}

/// The list at a JSON pointer; nothing there is an empty list.
pub(super) fn list_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether all of `selector`'s labels are among `labels`, both being maps of strings.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|wanted| {
        !wanted.is_empty() && wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
# a comment alone is no document
---
apiVersion: v1
kind: Service
metadata: { name: web }
--- # and another
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: web
  namespace: shop
spec: { hosts: [web] }
---
";

    #[test]
    fn documents_are_taken_apart_and_kept_as_written() {
        let objects = parse(TWO).unwrap();
        let keys: Vec<_> = objects.iter().map(|object| object.key.to_string()).collect();
        assert_eq!(keys, ["Service default/web", "VirtualService shop/web"]);
        assert_eq!(objects[1].key.group, "networking.istio.io");
        assert!(objects[1].text.contains("spec: { hosts: [web] }"), "{}", objects[1].text);
    }

    #[test]
    fn a_list_is_its_items() {
        let text = "apiVersion: v1\nkind: List\nitems:\n\
            - {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n\
            - {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
        let keys: Vec<_> = parse(text).unwrap().iter().map(|o| o.key.to_string()).collect();
        assert_eq!(keys, ["Namespace a", "Pod default/b"]);
    }

    #[test]
    fn what_would_do_nothing_is_refused() {
        let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db}\n";
        let error = format!("{:#}", parse(text).unwrap_err());
        assert!(error.contains("StatefulSet is not played"), "{error}");
        let error =
            format!("{:#}", parse("apiVersion: v1\nkind: Pod\nmetadata: {}\n").unwrap_err());
        assert!(error.contains("document 1") && error.contains("metadata.name"), "{error}");
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        let labels = serde_json::json!({"app": "web", "version": "A"});
        assert!(selects(&serde_json::json!({"app": "web"}), &labels));
        assert!(!selects(&serde_json::json!({"app": "web", "version": "B"}), &labels));
        assert!(!selects(&serde_json::json!({}), &labels));
    }
}
