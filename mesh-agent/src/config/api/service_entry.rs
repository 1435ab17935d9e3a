//! `ServiceEntry` of networking.istio.io, whole (istio-surface 1.4).

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::WorkloadSelector;
use super::schema::{each, port, required, rules};
use super::workload_entry::WorkloadEntry;

/// `ServiceEntry.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(
    transform = required(["hosts"]),
    transform = rules([
        (
            "only one of WorkloadSelector or Endpoints can be set",
            "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1",
        ),
        (
            "CIDR addresses are allowed only for NONE/STATIC resolution types",
            "!((has(self.addresses) ? self.addresses : []).exists(k, k.contains(\"/\")) \
             && !((has(self.resolution) ? self.resolution : \"NONE\") in [\"STATIC\", \"NONE\"]))",
        ),
        (
            "NONE mode cannot set endpoints",
            "((has(self.resolution) ? self.resolution : \"NONE\") == \"NONE\") \
             ? !has(self.endpoints) : true",
        ),
        (
            "DNS_ROUND_ROBIN mode cannot have multiple endpoints",
            "((has(self.resolution) ? self.resolution : \"\") == \"DNS_ROUND_ROBIN\") \
             ? ((has(self.endpoints) ? self.endpoints : []).size() <= 1) : true",
        ),
    ]),
)]
pub(in crate::config) struct ServiceEntry {
    /// DNS names of the service; `*.x` for all below `x`.
    #[schemars(
        length(min = 1, max = 256),
        transform = each(rules([("hostname cannot be wildcard", "self != \"*\"")])),
    )]
    pub(in crate::config) hosts: Vec<String>,
    /// Virtual IPs and ranges.
    #[schemars(length(max = 256), inner(length(max = 64)))]
    pub(in crate::config) addresses: Vec<String>,
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]),
        transform = rules([(
            "port number cannot be duplicated",
            "self.all(l1, self.exists_one(l2, l1.number == l2.number))",
        )]),
    )]
    pub(in crate::config) ports: Vec<ServicePort>,
    /// Whether the service is part of the mesh.
    pub(in crate::config) location: Option<Location>,
    /// Where the addresses of endpoints come from.
    pub(in crate::config) resolution: Option<Resolution>,
    #[schemars(length(max = 4096))]
    pub(in crate::config) endpoints: Vec<WorkloadEntry>,
    /// Pods and WorkloadEntries of the namespace, in place of `endpoints`.
    pub(in crate::config) workload_selector: Option<WorkloadSelector>,
    /// Namespaces that see the service: `.` its own, `*` all.
    pub(in crate::config) export_to: Vec<String>,
    /// Names of which the server's certificate must have one, where a DestinationRule asks for TLS.
    pub(in crate::config) subject_alt_names: Vec<String>,
}

/// `ports[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["number", "name"]))]
pub(in crate::config) struct ServicePort {
    #[schemars(transform = port)]
    pub(in crate::config) number: u32,
    /// `HTTP`, `HTTPS`, `GRPC`, `HTTP2`, `MONGO`, `TCP` or `TLS`.
    #[schemars(length(max = 256))]
    pub(in crate::config) protocol: String,
    #[schemars(length(max = 256))]
    pub(in crate::config) name: String,
    /// Of the endpoints; `number`, if unset.
    #[schemars(transform = port)]
    pub(in crate::config) target_port: u32,
}

/// `location`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum Location {
    MeshExternal,
    MeshInternal,
}

/// `resolution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum Resolution {
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}
