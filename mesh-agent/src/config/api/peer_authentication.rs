//! `PeerAuthentication` of security.istio.io, whole (istio-surface 1.5).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::meta::LabelSelector;

/// `PeerAuthentication.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct PeerAuthentication {
    pub(in crate::config) selector: Option<LabelSelector>,
    pub(in crate::config) mtls: Mtls,
    /// Keys are container ports.
    pub(in crate::config) port_level_mtls: BTreeMap<String, Mtls>,
}

/// `mtls`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Mtls {
    pub(in crate::config) mode: Mode,
}

/// `mtls.mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum Mode {
    /// Inherits.
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}
