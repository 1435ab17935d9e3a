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

/// `exportTo`.
pub(super) fn visibility(
    export_to: &[String],
    scope: &Scope<'_>,
    report: &mut Report,
) -> Visibility {
    if export_to.is_empty() {
        return Visibility::Everyone;
    }
    let mut names: Vec<Arc<str>> = Vec::new();
    for (index, entry) in export_to.iter().enumerate() {
        let field = || format!("spec.exportTo[{index}]");
        match entry.as_str() {
            "*" if export_to.len() == 1 => return Visibility::Everyone,
            "*" => report.error(field(), "`*` must stand alone"),
            "~" => report.error(field(), "`~` (nobody) has a meaning for ServiceEntry only"),
            "." => names.push(Arc::clone(scope.namespace)),
            own if own == &**scope.namespace && export_to.iter().any(|other| other == ".") => {
                report.error(field(), format!("`{own}` and `.` name the same namespace"));
            }
            other => names.push(other.into()),
        }
    }
    Visibility::Namespaces(names)
}
