//! `Telemetry` of telemetry.istio.io, whole (istio-surface 1.8). Not honoured yet: here for its
//! CRD.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::{LabelSelector, TargetRef};
use super::scalar::Span;
use super::schema::{one_attachment, one_of, required, rules};

/// `Telemetry.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_attachment)]
pub(in crate::config) struct Telemetry {
    /// Pods that it is for; without it all of the namespace, or of the mesh.
    selector: Option<LabelSelector>,
    /// Deprecated: `targetRefs`.
    target_ref: Option<TargetRef>,
    /// Gateways and services that it is for.
    #[schemars(length(max = 16))]
    target_refs: Vec<TargetRef>,
    tracing: Vec<Tracing>,
    metrics: Vec<Metrics>,
    access_logging: Vec<AccessLogging>,
}

/// `providers[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["name"]))]
struct Provider {
    #[schemars(length(min = 1))]
    name: String,
}

/// `match` of traces and logs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Direction {
    mode: Option<Mode>,
}

/// Which end of a connection reports.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Mode {
    ClientAndServer,
    Client,
    Server,
}

/// `tracing[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Tracing {
    r#match: Option<Direction>,
    /// Where spans go; those of the mesh, if empty.
    providers: Vec<Provider>,
    /// Share of requests that come without a decision.
    #[schemars(range(min = 0, max = 100))]
    random_sampling_percentage: Option<f64>,
    disable_span_reporting: Option<bool>,
    /// Further tags by name.
    custom_tags: BTreeMap<String, CustomTag>,
    use_request_id_for_trace_sampling: Option<bool>,
    enable_istio_tags: Option<bool>,
    disable_context_propagation: Option<bool>,
}

/// `tracing[].customTags.*`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = one_of(["literal", "environment", "header", "formatter"]))]
struct CustomTag {
    literal: Option<TagValue>,
    /// Variable of the proxy's environment.
    environment: Option<TagSource>,
    /// Header of the request.
    header: Option<TagSource>,
    /// Operators of access logs.
    formatter: Option<TagValue>,
}

/// `tracing[].customTags.*.literal` and `formatter`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["value"]))]
struct TagValue {
    #[schemars(length(min = 1))]
    value: String,
}

/// `tracing[].customTags.*.environment` and `header`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["name"]))]
struct TagSource {
    #[schemars(length(min = 1))]
    name: String,
    default_value: String,
}

/// `metrics[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Metrics {
    /// Where metrics go; those of the mesh, if empty.
    providers: Vec<Provider>,
    /// Changes of single metrics, in order.
    overrides: Vec<Override>,
    /// Of connections that stay open.
    reporting_interval: Option<Span>,
}

/// `metrics[].overrides[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Override {
    /// All metrics, if unset.
    r#match: Option<MetricMatch>,
    disabled: Option<bool>,
    /// Changes of tags by name.
    tag_overrides: BTreeMap<String, TagOverride>,
}

/// `metrics[].overrides[].match`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["metric", "customMetric"]))]
struct MetricMatch {
    metric: Option<Metric>,
    #[schemars(length(min = 1))]
    custom_metric: String,
    mode: Option<Mode>,
}

/// `metrics[].overrides[].match.metric`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Metric {
    AllMetrics,
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
    GrpcRequestMessages,
    GrpcResponseMessages,
}

/// `metrics[].overrides[].tagOverrides.*`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = rules([
    (
        "value must be set when operation is UPSERT",
        "((has(self.operation) ? self.operation : \"\") == \"UPSERT\") \
         ? (self.value != \"\") : true",
    ),
    (
        "value must not be set when operation is REMOVE",
        "((has(self.operation) ? self.operation : \"\") == \"REMOVE\") ? !has(self.value) : true",
    ),
]))]
struct TagOverride {
    operation: Option<TagOperation>,
    /// An expression in CEL, for `UPSERT`.
    value: String,
}

/// `metrics[].overrides[].tagOverrides.*.operation`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum TagOperation {
    Upsert,
    Remove,
}

/// `accessLogging[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct AccessLogging {
    r#match: Option<Direction>,
    /// Where logs go; those of the mesh, if empty.
    providers: Vec<Provider>,
    disabled: Option<bool>,
    filter: Option<Filter>,
}

/// `accessLogging[].filter`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Filter {
    /// An expression in CEL, such as `response.code >= 400`.
    expression: String,
}
