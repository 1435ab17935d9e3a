//! `Sidecar` of networking.istio.io, whole (istio-surface 1.9). Not honoured yet: here for its CRD.

use schemars::JsonSchema;
use serde::Deserialize;

use super::destination_rule::ConnectionPool;
use super::gateway::{Port, ServerTls};
use super::meta::WorkloadSelector;
use super::schema::required;
use super::virtual_service::Destination;

/// `Sidecar.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Sidecar {
    /// Pods that it is for; all of the namespace, if unset.
    workload_selector: Option<WorkloadSelector>,
    /// Ports of the pods.
    ingress: Vec<Ingress>,
    /// Services that the pods can see; all, if unset.
    egress: Vec<Egress>,
    inbound_connection_pool: Option<ConnectionPool>,
    /// What becomes of connections to services that the pods cannot see.
    outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// `ingress[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["port"]))]
struct Ingress {
    port: Port,
    /// IP; the pod's, if unset.
    bind: String,
    capture_mode: Option<CaptureMode>,
    /// Such as `127.0.0.1:8080` or `unix:///path`.
    default_endpoint: String,
    tls: Option<ServerTls>,
    connection_pool: Option<ConnectionPool>,
}

/// `egress[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["hosts"]))]
struct Egress {
    port: Option<Port>,
    /// IP or Unix socket.
    bind: String,
    capture_mode: Option<CaptureMode>,
    /// `namespace/dnsName`; the namespace may be `*`, `.` or `~`.
    hosts: Vec<String>,
}

/// `captureMode`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum CaptureMode {
    Default,
    Iptables,
    None,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct OutboundTrafficPolicy {
    /// `REGISTRY_ONLY`, if unset here.
    mode: Option<OutboundMode>,
    /// Gets all connections to services that the pods cannot see.
    egress_proxy: Option<Destination>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum OutboundMode {
    RegistryOnly,
    AllowAny,
}
