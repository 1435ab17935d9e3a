//! What becomes of each field of the routing kinds, as a table for people: made from the types of
//! `api`, whose schemas mark what is not honoured, or not wholly. Pure.
//!
//! Invariant: `deploy/FIELDS.md` is what this gives, and what it says of a field is what the parser
//! says of it; tests say so.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::structural::marked;
use crate::config::api::{self, MARK_LIMIT, MARK_UNSUPPORTED};

/// A block of at least so many fields that stands in several places is told once.
const SHARED: usize = 4;

const HEAD: &str = "\
<!-- Made by `mesh-agent fields`: do not edit. -->
# Fields of Istio's routing kinds

What becomes of each field. *Honoured*: as a sidecar of Istio's does. *Reported as unsupported*: taken,
with a warning about the object that the field has no effect yet. `[]` stands for an item of a list,
`*` for a value of a map.
";

type MakeSchema = fn() -> Value;

/// The kinds, and their schemas with marks.
const KINDS: [(&str, MakeSchema); 2] = [
    ("VirtualService", marked::<api::VirtualService>),
    ("DestinationRule", marked::<api::DestinationRule>),
];

/// What becomes of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Honoured,
    /// Honoured, but for this.
    Limited(String),
    /// Its fields are those of another place.
    As(String),
    /// Not honoured, nor is any of the fields below it, of which there are so many.
    Unsupported(usize),
}

/// One line of the table.
#[derive(Clone, Debug)]
struct Row {
    /// Such as `http[].match[].uri`, without `spec`.
    path: String,
    status: Status,
}

/// The table, as Markdown; always the same.
pub fn table() -> String {
    let mut text = String::from(HEAD);
    for (kind, schema) in KINDS {
        let rows = rows(&schema());
        let count = |is: fn(&Status) -> bool| rows.iter().filter(|row| is(&row.status)).count();
        let (whole, limited) = (
            count(|status| *status == Status::Honoured),
            count(|status| matches!(status, Status::Limited(_))),
        );
        let reported: usize = rows.iter().map(|row| row.status.lost()).sum();
        text.push_str(&format!(
            "\n## {kind}\n\n{whole} fields are honoured, {limited} with a limit, {reported} are \
             reported as unsupported. Blocks that stand in several places are counted once.\n\n| field | what \
             becomes of it |\n| --- | --- |\n"
        ));
        for Row { path, status } in rows {
            text.push_str(&format!("| `{path}` | {status} |\n"));
        }
    }
    text
}

// === impl Status ===

impl Status {
    /// Fields that have no effect.
    fn lost(&self) -> usize {
        match self {
            Self::Unsupported(fields) => *fields,
            Self::Honoured | Self::Limited(_) | Self::As(_) => 0,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honoured => f.write_str("honoured"),
            Self::Limited(text) => write!(f, "honoured with a limit: {text}"),
            Self::As(path) => write!(f, "as `{path}`"),
            Self::Unsupported(1) => f.write_str("reported as unsupported"),
            Self::Unsupported(fields) => {
                write!(f, "reported as unsupported, with the {fields} fields below it")
            }
        }
    }
}

// === walking schemas ===

/// The fields of a kind, in the order of their names.
fn rows(schema: &Value) -> Vec<Row> {
    let mut homes = BTreeMap::new();
    find_homes(schema, "", &mut homes);
    let mut rows = Vec::new();
    list(schema, "", (&homes, None), &mut rows);
    rows
}

fn is_unsupported(schema: &Value) -> bool {
    schema.get(MARK_UNSUPPORTED).is_some()
}

fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object).filter(|found| !found.is_empty())
}

/// What is directly below a schema, with its path.
fn below<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    if let Some(fields) = properties(schema) {
        let dot = if path.is_empty() { "" } else { "." };
        return fields.iter().map(|(name, of)| (format!("{path}{dot}{name}"), of)).collect();
    }
    let item = schema.get("items").map(|of| (format!("{path}[]"), of));
    let values = schema.get("additionalProperties").map(|of| (format!("{path}.*"), of));
    item.into_iter().chain(values).filter(|(_, of)| of.is_object()).collect()
}

/// How many fields have a value of their own.
fn leaves(schema: &Value) -> usize {
    let below = below(schema, "");
    if below.is_empty() { 1 } else { below.iter().map(|(_, of)| leaves(of)).sum() }
}

/// Where each block of fields is told: at the least deep place that has it.
fn find_homes(schema: &Value, path: &str, homes: &mut BTreeMap<String, (usize, String)>) {
    if is_unsupported(schema) {
        return;
    }
    if let Some(block) = block(schema) {
        let place = (path.matches('.').count(), path.to_owned());
        let home = homes.entry(block).or_insert_with(|| place.clone());
        if place < *home {
            *home = place;
        }
    }
    for (path, of) in below(schema, path) {
        find_homes(of, &path, homes);
    }
}

/// What makes two blocks the same.
fn block(schema: &Value) -> Option<String> {
    let fields = properties(schema)?;
    (leaves(schema) >= SHARED).then(|| Value::Object(fields.clone()).to_string())
}

fn list(
    schema: &Value,
    path: &str,
    (homes, limit): (&BTreeMap<String, (usize, String)>, Option<&str>),
    rows: &mut Vec<Row>,
) {
    let mut say = |status| rows.push(Row { path: path.to_owned(), status });
    if is_unsupported(schema) {
        return say(Status::Unsupported(leaves(schema)));
    }
    let home = block(schema).and_then(|block| homes.get(&block)).map(|(_, home)| home);
    if let Some(home) = home.filter(|home| *home != path) {
        return say(Status::As(home.clone()));
    }
    let limit = schema.get(MARK_LIMIT).and_then(Value::as_str).or(limit);
    let below = below(schema, path);
    if below.is_empty() {
        return say(limit.map_or(Status::Honoured, |limit| Status::Limited(limit.to_owned())));
    }
    for (path, of) in below {
        list(of, &path, (homes, limit), rows);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;
    use serde_json::json;

    use super::*;
    use crate::config::parse::{UNSUPPORTED_FIELD, object};
    use crate::model::MeshSettings;

    #[test]
    fn checked_in() {
        expect_file!["../../../../deploy/FIELDS.md"].assert_eq(&table());
    }

    /// The parser reports a field if and only if the table says so, or says it of one above it.
    #[test]
    fn as_the_parser_says() {
        for (kind, schema) in KINDS {
            let schema = schema();
            let rows = rows(&schema);
            assert!(rows.len() > 50, "{kind}: {}", rows.len());
            for Row { path, status } in rows.iter().filter(|row| !is_as(&row.status)) {
                let reported = reported(kind, &schema, path);
                let field = format!("spec.{}", path.replace("[]", "[0]").replace(".*", "[key]"));
                let expected = if status.lost() > 0 { vec![field] } else { Vec::new() };
                assert_eq!(reported, expected, "{kind} {path}: {status}");
            }
        }
    }

    fn is_as(status: &Status) -> bool {
        matches!(status, Status::As(_))
    }

    /// What the parser reports of an object that has this field alone.
    fn reported(kind: &str, schema: &Value, path: &str) -> Vec<String> {
        let object = object(
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": kind,
                "metadata": { "name": "a" },
                "spec": with(schema, &steps(path)),
            }),
            &MeshSettings::default(),
        );
        let notes = object.accepted.iter().flat_map(|object| &object.notes);
        let found = notes.chain(&object.diagnostics);
        // Else it was not read at all, and nothing could be reported.
        let misread = found.clone().find(|found| {
            found.message.contains("must be ") && found.message.contains(", not ")
                || found.message.contains("unknown field")
                || found.message.contains("is not known")
        });
        assert_eq!(misread, None, "{kind} {path}");
        found
            .filter(|found| found.message == UNSUPPORTED_FIELD)
            .map(|found| found.field.clone())
            .collect()
    }

    /// `a[].b.*` as `a`, `[]`, `b`, `*`.
    fn steps(path: &str) -> Vec<String> {
        path.replace("[]", ".[]").split('.').map(str::to_owned).collect()
    }

    /// A value with something at this place, and nothing else.
    fn with(schema: &Value, steps: &[String]) -> Value {
        let Some((step, rest)) = steps.split_first() else { return sample(schema) };
        match step.as_str() {
            "[]" => json!([with(&schema["items"], rest)]),
            "*" => json!({ "key": with(&schema["additionalProperties"], rest) }),
            name => json!({ name: with(&schema["properties"][name], rest) }),
        }
    }

    /// A value of the schema's type; text is a duration too.
    fn sample(schema: &Value) -> Value {
        if let Some(names) = schema.get("enum").and_then(Value::as_array) {
            return names[0].clone();
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => json!("1s"),
            Some("integer" | "number") => json!(1),
            Some("boolean") => json!(true),
            Some("array") => json!([sample(&schema["items"])]),
            Some("object") => match schema.get("additionalProperties") {
                Some(of) => json!({ "key": sample(of) }),
                None => json!({}),
            },
            _ => json!(429),
        }
    }
}
