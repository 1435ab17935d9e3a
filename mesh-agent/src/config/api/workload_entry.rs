//! `WorkloadEntry` of networking.istio.io, whole (istio-surface 1.4 and 1.10): a workload that is
//! no pod. As such not honoured yet, and here for its CRD; as an endpoint of a ServiceEntry it is, but
//! for fields typed [`Unsupported`].

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::Value;

use super::meta::Labels;
use super::scalar::Unsupported;
use super::schema::{each, port, rules};

/// `WorkloadEntry.spec`, `WorkloadGroup.spec.template`, and `ServiceEntry.spec.endpoints[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = with_address, transform = no_ports_on_socket)]
pub(in crate::config) struct WorkloadEntry {
    /// IP, DNS name or `unix://` path.
    #[schemars(length(max = 256), transform = socket_path)]
    pub(in crate::config) address: String,
    /// Ports by the names that the service gives them.
    #[schemars(
        extend("maxProperties" = 128),
        transform = port_names,
        transform = each(port),
    )]
    pub(in crate::config) ports: BTreeMap<String, u32>,
    #[schemars(extend("maxProperties" = 256))]
    pub(in crate::config) labels: Labels,
    /// Endpoints of another network are reached through its gateway.
    #[schemars(length(max = 2048))]
    network: Option<Unsupported<String>>,
    /// `region/zone/subzone`.
    #[schemars(length(max = 2048))]
    pub(in crate::config) locality: Option<String>,
    /// Share of connections, relative to the others; 1, if unset.
    #[schemars(with = "u32")]
    weight: Option<Unsupported<u32>>,
    /// Whose identity the workload has.
    #[schemars(length(max = 253))]
    service_account: Option<Unsupported<String>>,
}

const ADDRESS_REQUIRED: &str = "Address is required";

fn with_address(schema: &mut Schema) {
    rules([(ADDRESS_REQUIRED, "has(self.address) || has(self.network)")])(schema);
}

/// In a template the address may be missing: each workload comes with its own.
pub(super) fn template(schema: &mut Schema) {
    let rules = schema.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut);
    if let Some(rules) = rules {
        rules.retain(|rule| rule.get("message").is_none_or(|text| text != ADDRESS_REQUIRED));
    }
}

fn no_ports_on_socket(schema: &mut Schema) {
    rules([(
        "UDS may not include ports",
        "(has(self.address) ? self.address : \"\").startsWith(\"unix://\") \
         ? !has(self.ports) : true",
    )])(schema);
}

fn socket_path(schema: &mut Schema) {
    rules([
        (
            "UDS must be an absolute path or abstract socket",
            "self.startsWith(\"unix://\") ? (self.substring(7, 8) == \"/\" \
             || self.substring(7, 8) == \"@\") : true",
        ),
        ("UDS may not be a dir", "self.startsWith(\"unix://\") ? !self.endsWith(\"/\") : true"),
    ])(schema);
}

fn port_names(schema: &mut Schema) {
    rules([(
        "port name must be valid",
        "self.all(key, size(key) < 63 \
         && key.matches(\"^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$\"))",
    )])(schema);
}
