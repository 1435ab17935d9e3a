//! `MeshConfig`, as far as it is honoured. Pure.

use serde_json::{Map, Value};

use super::Scope;
use super::locality::locality;
use super::names::check_exports;
use crate::config::api::{MESH_CONFIG_KEYS, MeshConfig, OutboundMode};
use crate::config::diagnostic::Report;
use crate::config::parse::UNSUPPORTED_FIELD;
use crate::model::{LocalitySetting, MeshSettings, OutboundPolicy};

/// Where people find it.
const ROOT: &str = "data.mesh";

/// What the mesh's own configuration says.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct MeshFacts {
    /// What happens to connections to an address that the mesh does not know.
    pub(in crate::config) outbound: OutboundPolicy,
    /// What becomes of localities where neither a DestinationRule nor a Service says.
    pub(in crate::config) locality: LocalitySetting,
    /// `exportTo` of VirtualServices that have none; empty: everyone.
    pub(in crate::config) virtual_services: Vec<String>,
    /// The same of DestinationRules.
    pub(in crate::config) destination_rules: Vec<String>,
}

/// Keys that the mesh reads, and no other; the others are reported.
pub(in crate::config) fn known_keys(all: Map<String, Value>, report: &mut Report) -> Value {
    let (known, others): (Map<_, _>, Map<_, _>) =
        all.into_iter().partition(|(key, _)| MESH_CONFIG_KEYS.contains(&key.as_str()));
    for key in others.keys() {
        report.warning(format!("{ROOT}.{key}"), UNSUPPORTED_FIELD);
    }
    Value::Object(known)
}

/// Translates one.
pub(in crate::config) fn mesh_config(
    config: MeshConfig,
    scope: &Scope<'_>,
    report: &mut Report,
) -> MeshFacts {
    let MeshSettings { trust_domain, root_namespace, .. } = scope.mesh;
    for (key, said, installed) in [
        ("trustDomain", &config.trust_domain, trust_domain),
        ("rootNamespace", &config.root_namespace, root_namespace),
    ] {
        if let Some(said) = said.as_ref().filter(|said| !said.is_empty() && ***said != **installed)
        {
            report.warning(
                format!("{ROOT}.{key}"),
                format!(
                    "`{said}`, but the mesh is installed with `{installed}`, which holds: it is \
                     decided by the chart's value `{key}`"
                ),
            );
        }
    }
    if config.default_service_export_to.iter().any(|entry| entry != "*") {
        report.warning(format!("{ROOT}.defaultServiceExportTo"), UNSUPPORTED_FIELD);
    }
    let exports = |list: Vec<String>, key: &str, report: &mut Report| {
        check_exports(&list, |_| format!("{ROOT}.{key}"), report);
        list
    };
    let mode = config.outbound_traffic_policy.map(|policy| policy.mode);
    MeshFacts {
        outbound: match mode {
            None | Some(OutboundMode::AllowAny) => OutboundPolicy::AllowAny,
            Some(OutboundMode::RegistryOnly) => OutboundPolicy::RegistryOnly,
        },
        locality: config
            .locality_lb_setting
            .map(|found| locality(found, &format!("{ROOT}.localityLbSetting"), report))
            .unwrap_or_default(),
        virtual_services: exports(
            config.default_virtual_service_export_to,
            "defaultVirtualServiceExportTo",
            report,
        ),
        destination_rules: exports(
            config.default_destination_rule_export_to,
            "defaultDestinationRuleExportTo",
            report,
        ),
    }
}
