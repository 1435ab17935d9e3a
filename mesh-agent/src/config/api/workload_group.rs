//! `WorkloadGroup` of networking.istio.io, whole (istio-surface 1.10): what WorkloadEntries are
//! made from. Not honoured yet: here for its CRD.

use schemars::{JsonSchema, Schema};
use serde::Deserialize;

use super::meta::Labels;
use super::schema::{one_of, port, required, rules};
use super::workload_entry::{WorkloadEntry, template};

/// `WorkloadGroup.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["template"]))]
pub(in crate::config) struct WorkloadGroup {
    /// For the metadata of entries.
    metadata: Option<TemplateMetadata>,
    /// For the spec of entries.
    #[schemars(transform = template)]
    template: WorkloadEntry,
    /// When a workload is ready.
    probe: Option<Probe>,
}

/// `metadata`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct TemplateMetadata {
    #[schemars(extend("maxProperties" = 256))]
    labels: Labels,
    #[schemars(extend("maxProperties" = 256))]
    annotations: Labels,
}

/// `probe`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["httpGet", "tcpSocket", "exec", "grpc"]))]
struct Probe {
    #[schemars(range(min = 0))]
    initial_delay_seconds: i32,
    #[schemars(range(min = 0))]
    timeout_seconds: i32,
    #[schemars(range(min = 0))]
    period_seconds: i32,
    #[schemars(range(min = 0))]
    success_threshold: i32,
    #[schemars(range(min = 0))]
    failure_threshold: i32,
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    exec: Option<Exec>,
    grpc: Option<Grpc>,
}

/// `probe.httpGet`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["port"]))]
struct HttpGet {
    path: String,
    #[schemars(transform = port)]
    port: u32,
    host: String,
    #[schemars(transform = scheme)]
    scheme: String,
    http_headers: Vec<HttpHeader>,
}

/// `probe.httpGet.httpHeaders[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct HttpHeader {
    #[schemars(regex(pattern = "^[-_A-Za-z0-9]+$"))]
    name: String,
    value: String,
}

/// `probe.tcpSocket`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["port"]))]
struct TcpSocket {
    host: String,
    #[schemars(transform = port)]
    port: u32,
}

/// `probe.exec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["command"]))]
struct Exec {
    #[schemars(inner(length(min = 1)))]
    command: Vec<String>,
}

/// `probe.grpc`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Grpc {
    #[schemars(transform = port)]
    port: u32,
    service: String,
}

fn scheme(schema: &mut Schema) {
    rules([("scheme must be one of [HTTP, HTTPS]", "self in [\"\", \"HTTP\", \"HTTPS\"]")])(schema);
}
