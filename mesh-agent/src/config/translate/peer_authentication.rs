//! `PeerAuthentication` (istio-surface 1.5). Pure.

use std::collections::BTreeMap;

use super::port_number;
use crate::config::api::{self, Labels, Mode};
use crate::config::diagnostic::Report;
use crate::model::MtlsMode;

/// One `PeerAuthentication`. `None` as a mode: inherits.
#[derive(Debug)]
pub(in crate::config) struct PeerFacts {
    /// Pods that it is for; empty: the whole namespace, or mesh.
    pub(in crate::config) selector: Labels,
    /// `mtls.mode`.
    pub(in crate::config) mode: Option<MtlsMode>,
    /// `portLevelMtls`, by container port.
    pub(in crate::config) ports: BTreeMap<u16, Option<MtlsMode>>,
}

/// Translates one.
pub(in crate::config) fn peer_authentication(
    spec: api::PeerAuthentication,
    report: &mut Report,
) -> PeerFacts {
    let selector = spec.selector.unwrap_or_default().match_labels;
    if selector.is_empty() && !spec.port_level_mtls.is_empty() {
        report.error("spec.portLevelMtls", "needs a `selector`: ports are those of a workload");
    }
    let mut ports = BTreeMap::new();
    for (key, mtls) in spec.port_level_mtls {
        let field = format!("spec.portLevelMtls.{key}");
        match key.parse().ok().and_then(port_number) {
            Some(port) => {
                ports.insert(port, mode(mtls.mode, &format!("{field}.mode"), report));
            }
            None => report.error(field, format!("`{key}` is not a port")),
        }
    }
    let mode = mode(spec.mtls.mode, "spec.mtls.mode", report);
    PeerFacts { selector, mode, ports }
}

fn mode(mode: Mode, field: &str, report: &mut Report) -> Option<MtlsMode> {
    match mode {
        Mode::Unset => None,
        Mode::Permissive => Some(MtlsMode::Permissive),
        Mode::Strict => Some(MtlsMode::Strict),
        Mode::Disable => {
            report.warning(field, "DISABLE is taken as PERMISSIVE: mutual TLS is always offered");
            Some(MtlsMode::Permissive)
        }
    }
}
