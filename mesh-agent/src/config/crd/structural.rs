//! From what schemars says of a type to a schema that Kubernetes takes as structural
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>):
//! every value has one type, and choices (`oneOf`) only narrow what is allowed. Pure.
//!
//! Integers are as in Istio's CRDs: `null` is taken where protobuf has a wrapper, which is where
//! Rust has an `Option` of a scalar.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::config::api::{MARK_LIMIT, MARK_UNSUPPORTED};

/// What schemars adds for readers of JSON Schema; `default` would change the user's objects.
const DROPPED: [&str; 3] = ["$schema", "title", "default"];

/// What the types say for the table of fields.
const MARKS: [&str; 2] = [MARK_UNSUPPORTED, MARK_LIMIT];

/// The structural schema of a type.
pub(super) fn schema<T: JsonSchema>() -> Value {
    let mut schema = marked::<T>();
    without_marks(&mut schema);
    schema
}

/// The same, with the marks of fields that are not wholly honoured: no API server takes it.
pub(super) fn marked<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    normalise(&mut schema);
    schema
}

fn without_marks(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    schema.retain(|key, _| !MARKS.contains(&key.as_str()));
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(without_marks);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key) {
            without_marks(inner);
        }
    }
}

fn normalise(schema: &mut Value) {
    if schema == &Value::Bool(true) {
        *schema = json!({ "x-kubernetes-preserve-unknown-fields": true });
    }
    let Value::Object(schema) = schema else { return };
    without_null(schema);
    enumeration(schema);
    number(schema);
    description(schema);
    schema.retain(|key, _| !DROPPED.contains(&key.as_str()));
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(normalise);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key) {
            normalise(inner);
        }
    }
}

/// An `Option` is a field that may be left out, not one that may be `null`.
fn without_null(schema: &mut Map<String, Value>) {
    let is_null = |value: &Value| value.get("type") == Some(&json!("null"));
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf")
        && let Some(null) = choices.iter().position(is_null)
        && choices.len() == 2
    {
        choices.remove(null);
        if let Some(Value::Object(inner)) = choices.pop() {
            schema.remove("anyOf");
            for (key, value) in inner {
                // What the field says comes before what its type says.
                schema.entry(key).or_insert(value);
            }
        }
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let Some(Value::Array(types)) = schema.get_mut("type") else { return };
    types.retain(|name| name != "null");
    let Some(only) = types.pop() else { return };
    if matches!(only.as_str(), Some("boolean" | "integer" | "number")) {
        schema.insert("nullable".to_owned(), true.into());
    }
    schema.insert("type".to_owned(), only);
}

/// A choice of constants, which is what schemars makes of variants with documentation.
fn enumeration(schema: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = schema.get("oneOf") else { return };
    let names = |choice: &Value| match (choice.get("const"), choice.get("enum")) {
        (Some(name), _) => Some(vec![name.clone()]),
        (None, Some(Value::Array(names))) => Some(names.clone()),
        (None, _) => None,
    };
    let Some(names) = choices.iter().map(names).collect::<Option<Vec<_>>>() else { return };
    schema.remove("oneOf");
    schema.insert("type".to_owned(), "string".into());
    schema.insert("enum".to_owned(), names.concat().into());
}

/// Kubernetes knows the formats of signed integers only; bounds say the rest.
fn number(schema: &mut Map<String, Value>) {
    let Some(format) = schema.get("format").and_then(Value::as_str) else { return };
    let maximum = match format {
        "uint32" => Some(u32::MAX),
        "uint64" => None,
        _ => return,
    };
    schema.remove("format");
    if let Some(maximum) = maximum {
        schema.entry("maximum").or_insert(maximum.into());
    }
}

/// One line; one that only says where the type stands says nothing to a user.
fn description(schema: &mut Map<String, Value>) {
    let Some(Value::String(text)) = schema.get_mut("description") else { return };
    *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let inner = text.strip_prefix('`').and_then(|text| text.strip_suffix("`."));
    if inner.is_some_and(|path| !path.contains(' ')) {
        schema.remove("description");
    }
}
