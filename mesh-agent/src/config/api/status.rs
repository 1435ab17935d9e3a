//! `status` of Istio's kinds and the mesh's own, the same for all but ServiceEntry (istio-surface, the CRD set). The
//! authority's leader writes it (`authority/status`).

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::Value;

use super::schema::required;

/// `status`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Status {
    /// What became of the object.
    conditions: Vec<Condition>,
    /// What is wrong with it.
    validation_messages: Vec<Message>,
    #[schemars(schema_with = "generation")]
    observed_generation: Value,
}

/// `ServiceEntry.status`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct ServiceEntryStatus {
    /// What became of the object.
    conditions: Vec<Condition>,
    /// What is wrong with it.
    validation_messages: Vec<Message>,
    #[schemars(schema_with = "generation")]
    observed_generation: Value,
    /// Addresses that were given to hosts without one.
    addresses: Vec<HostAddress>,
}

/// `status.conditions[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    /// `True`, `False` or `Unknown`.
    status: String,
    #[schemars(extend("format" = "date-time"))]
    last_probe_time: String,
    #[schemars(extend("format" = "date-time"))]
    last_transition_time: String,
    /// One word.
    reason: String,
    message: String,
    #[schemars(schema_with = "generation")]
    observed_generation: Value,
}

/// `status.validationMessages[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Message {
    r#type: MessageType,
    level: Option<Level>,
    documentation_url: String,
}

/// `status.validationMessages[].type`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct MessageType {
    name: String,
    /// Such as `IST0101`.
    code: String,
}

/// `status.validationMessages[].level`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Level {
    Unknown,
    Error,
    Warning,
    Info,
}

/// `ServiceEntry.status.addresses[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["value"]))]
struct HostAddress {
    value: String,
    host: String,
}

/// A generation; protobuf's JSON writes 64 bits as text.
fn generation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "x-kubernetes-int-or-string": true,
    })
}
