//! `MeshConfig`: the key `mesh` of the ConfigMap `istio` in the root namespace (istio-surface, defaults).

use serde::Deserialize;

use super::destination_rule::LocalityLb;

/// Keys that are read.
pub(in crate::config) const KEYS: [&str; 7] = [
    "trustDomain",
    "rootNamespace",
    "outboundTrafficPolicy",
    "localityLbSetting",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
];

/// What is read of it. An installation decides trust domain and root namespace: see `translate`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct MeshConfig {
    /// Trust domain of identities.
    pub(in crate::config) trust_domain: Option<String>,
    /// Namespace whose policies hold for the whole mesh.
    pub(in crate::config) root_namespace: Option<String>,
    /// What happens to connections to an address that the mesh does not know.
    pub(in crate::config) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// What becomes of localities where neither a DestinationRule nor a Service says.
    pub(in crate::config) locality_lb_setting: Option<LocalityLb>,
    /// `exportTo` of Services without the annotation.
    pub(in crate::config) default_service_export_to: Vec<String>,
    /// `exportTo` of VirtualServices that have none.
    pub(in crate::config) default_virtual_service_export_to: Vec<String>,
    /// `exportTo` of DestinationRules that have none.
    pub(in crate::config) default_destination_rule_export_to: Vec<String>,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct OutboundTrafficPolicy {
    /// An empty `outboundTrafficPolicy` means the first one, as in Istio.
    pub(in crate::config) mode: OutboundMode,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum OutboundMode {
    #[default]
    RegistryOnly,
    AllowAny,
}
