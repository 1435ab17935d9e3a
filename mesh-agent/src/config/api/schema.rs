//! What a schema says beyond the Rust type, for `#[schemars(transform = ...)]`: choices, required
//! fields, rules in CEL. Pure.
//!
//! Rules are those of Istio's own CRDs, and a few more that refuse only what Istio's validation
//! refuses too: an object that a mesh of Istio's took is taken here.

use schemars::Schema;
use schemars::transform::Transform;
use serde_json::{Value, json};

/// Key of rules in CEL.
const RULES: &str = "x-kubernetes-validations";

/// Key of what is said of a field that is honoured, but not in all that Istio makes of it; no CRD shows
/// it.
pub(in crate::config) const MARK_LIMIT: &str = "x-malha-limit";

/// A limit of what is honoured of a field, for the table of fields.
pub(super) fn limit(text: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert(MARK_LIMIT.to_owned(), text.into());
    }
}

/// At most one of these fields: protobuf's `oneof`, in the words of Istio's CRDs. Cheaper than
/// a rule in CEL, whose cost is limited for the whole CRD.
pub(super) fn one_of<const N: usize>(names: [&'static str; N]) -> impl FnMut(&mut Schema) {
    move |schema| {
        let required = |name: &&str| json!({ "required": [name] });
        let each: Vec<Value> = names.iter().map(required).collect();
        let mut choices = vec![json!({ "not": { "anyOf": each } })];
        choices.extend(each);
        let schema = schema.ensure_object();
        if schema.contains_key("oneOf") {
            schema.insert("allOf".to_owned(), json!([{ "oneOf": choices }]));
        } else {
            schema.insert("oneOf".to_owned(), choices.into());
        }
    }
}

/// Fields that must be there.
pub(super) fn required<const N: usize>(names: [&'static str; N]) -> impl FnMut(&mut Schema) {
    move |schema| {
        schema.insert("required".to_owned(), json!(names.as_slice()));
    }
}

/// Rules in CEL: what is said to the user, and the condition.
pub(super) fn rules<const N: usize>(
    rules: [(&'static str, &'static str); N],
) -> impl FnMut(&mut Schema) {
    move |schema| {
        let mut all = schema.get(RULES).and_then(Value::as_array).cloned().unwrap_or_default();
        all.extend(rules.map(|(message, rule)| json!({ "message": message, "rule": rule })));
        schema.insert(RULES.to_owned(), all.into());
    }
}

/// What holds for each item of a list or value of a map.
pub(super) fn each(mut transform: impl Transform) -> impl FnMut(&mut Schema) {
    move |schema| {
        for key in ["items", "additionalProperties"] {
            let inner = schema.get_mut(key).and_then(|inner| <&mut Schema>::try_from(inner).ok());
            if let Some(inner) = inner {
                transform.transform(inner);
            }
        }
    }
}

/// A second name of a field, in protobuf's spelling, that Istio's CRDs keep from being pruned. The
/// parser takes any field in that spelling.
pub(super) fn alias(name: &'static str, alias: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        if let Some(properties) = properties
            && let Some(field) = properties.get(name).cloned()
        {
            properties.insert(alias.to_owned(), field);
        }
    }
}

/// A port that can be connected to; Istio's CRDs say it by a rule, so that the message is clear.
pub(super) fn port(schema: &mut Schema) {
    rules([("port must be between 1-65535", "0 < self && self <= 65535")])(schema);
}

/// `only one of targetRefs or selector can be set`, for the kinds that have both.
pub(super) fn one_attachment(schema: &mut Schema) {
    rules([(
        "only one of targetRefs or selector can be set",
        "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) \
         + (has(self.targetRefs) ? 1 : 0) <= 1",
    )])(schema);
}
