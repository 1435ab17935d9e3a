//! `PeerAuthentication` of security.istio.io, whole (istio-surface 1.5).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::LabelSelector;
use super::schema::rules;

/// `PeerAuthentication.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = rules([(
    "portLevelMtls requires selector",
    "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) \
     ? self.selector.matchLabels : {}).size() > 0) : true",
)]))]
pub(in crate::config) struct PeerAuthentication {
    /// Pods that the policy is for; without it all of the namespace, or of the mesh.
    pub(in crate::config) selector: Option<LabelSelector>,
    /// What is taken on all ports.
    pub(in crate::config) mtls: Mtls,
    /// What is taken on single ports; keys are container ports.
    #[schemars(
        extend("minProperties" = 1),
        transform = rules([(
            "port must be between 1-65535",
            "self.all(key, 0 < int(key) && int(key) <= 65535)",
        )]),
    )]
    pub(in crate::config) port_level_mtls: BTreeMap<String, Mtls>,
}

/// `mtls`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Mtls {
    /// `UNSET` is inherited; in the end it means `PERMISSIVE`.
    pub(in crate::config) mode: Mode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum Mode {
    /// Inherits.
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}
