//! Host names and `exportTo` (istio-surface 1.0). Pure.

use std::net::IpAddr;
use std::sync::Arc;

use super::Scope;
use crate::config::diagnostic::Report;
use crate::model::Visibility;

/// The full host name of a service.
pub(in crate::config) fn service_host(name: &str, namespace: &str, cluster_domain: &str) -> String {
    format!("{name}.{namespace}.svc.{cluster_domain}").to_ascii_lowercase()
}

/// A name without a dot is a service in the namespace of the *object* that uses it; any other name,
/// `*` and addresses are taken as they are.
pub(super) fn expand(host: &str, scope: &Scope<'_>) -> String {
    let literal = host.contains('.') || host == "*" || host.parse::<IpAddr>().is_ok();
    if literal || host.is_empty() {
        host.to_ascii_lowercase()
    } else {
        service_host(host, scope.namespace, &scope.mesh.cluster_domain)
    }
}

/// Whether this is a DNS name, perhaps with a leading `*.`, an address, or `*`.
pub(super) fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host == "*" || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    !name.is_empty() && name.len() <= 255 && name.split('.').all(label)
}

/// `exportTo`; `None` where the mesh's default holds.
pub(super) fn visibility(
    export_to: &[String],
    scope: &Scope<'_>,
    report: &mut Report,
) -> Option<Visibility> {
    if export_to.is_empty() {
        return None;
    }
    let field = |index| format!("spec.exportTo[{index}]");
    check_exports(export_to, field, report);
    let has_own = export_to.iter().any(|entry| entry == ".");
    for (index, entry) in export_to.iter().enumerate() {
        if has_own && **entry == **scope.namespace {
            report.error(field(index), format!("`{entry}` and `.` name the same namespace"));
        }
    }
    Some(exported(export_to, scope.namespace))
}

/// The same of a `ServiceEntry`, which may also be nobody's: `~`.
pub(super) fn entry_visibility(
    export_to: &[String],
    scope: &Scope<'_>,
    report: &mut Report,
) -> Option<Visibility> {
    if export_to == ["~"] {
        return Some(Visibility::Namespaces(Vec::new()));
    }
    if let Some(index) = export_to.iter().position(|entry| entry == "~") {
        report.error(format!("spec.exportTo[{index}]"), "`~` (nobody) must stand alone");
        return None;
    }
    visibility(export_to, scope, report)
}

/// What `exportTo` cannot say, wherever it stands; `field` names an entry.
pub(super) fn check_exports(
    export_to: &[String],
    field: impl Fn(usize) -> String,
    report: &mut Report,
) {
    for (index, entry) in export_to.iter().enumerate() {
        match entry.as_str() {
            "*" if export_to.len() > 1 => report.error(field(index), "`*` must stand alone"),
            "~" => report.error(field(index), "`~` (nobody) has a meaning for ServiceEntry only"),
            _ => {}
        }
    }
}

/// Who sees an object of a namespace by such a list; everyone by an empty one.
pub(in crate::config) fn exported(export_to: &[String], namespace: &Arc<str>) -> Visibility {
    if export_to.iter().all(|entry| entry == "*") {
        return Visibility::Everyone;
    }
    let named = export_to.iter().map(|entry| match entry.as_str() {
        "." => Arc::clone(namespace),
        other => other.into(),
    });
    Visibility::Namespaces(named.collect())
}
