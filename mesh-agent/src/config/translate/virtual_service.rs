//! `VirtualService`: hosts, gateways and the lists of rules (istio-surface 1.1). What an entry
//! delegates is put in its place in `compile`. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Scope;
use super::http_match::MESH;
use super::http_route::{RouteFacts, route};
use super::l4_route;
use super::names::{expand, is_host, visibility};
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{HostPattern, L4Routes, ObjectRef, Visibility};

/// A `VirtualService`, with what it refers to.
#[derive(Debug)]
pub(in crate::config) struct VirtualServiceFacts {
    /// The object.
    pub(in crate::config) object: ObjectRef,
    /// Hosts, expanded.
    pub(in crate::config) hosts: Vec<HostPattern>,
    /// It has no hosts: it is there for others to delegate to.
    pub(in crate::config) is_delegate: bool,
    /// `exportTo`, if it has one.
    pub(in crate::config) visibility: Option<Visibility>,
    /// `http[]` for clients in the mesh.
    pub(in crate::config) routes: Vec<RouteFacts>,
    /// `tls[]` and `tcp[]` for clients in the mesh.
    pub(in crate::config) l4: L4Routes,
    /// Every destination that it names.
    pub(in crate::config) references: Vec<Reference>,
}

/// A destination that a route names.
#[derive(Clone, Debug)]
pub(in crate::config) struct Reference {
    /// Where, e.g. `spec.http[0].route[0].destination`.
    pub(in crate::config) field: String,
    /// Host, expanded.
    pub(in crate::config) host: Arc<str>,
    /// Subset.
    pub(in crate::config) subset: Option<Arc<str>>,
    /// Port.
    pub(in crate::config) port: Option<u16>,
    /// It gets copies only: requests do not depend on it.
    pub(in crate::config) is_mirror: bool,
}

/// Translates one; without rules for clients in the mesh, it owns no host there.
pub(in crate::config) fn virtual_service(
    spec: api::VirtualService,
    object: ObjectRef,
    scope: &Scope<'_>,
    report: &mut Report,
) -> VirtualServiceFacts {
    let is_delegate = spec.hosts.is_empty();
    if is_delegate {
        check_delegate(&spec, report);
    }
    let in_mesh = is_delegate || gateways(&spec.gateways, report);
    let hosts = hosts(&spec.hosts, in_mesh, scope, report);
    let (mut references, mut routes) = (Vec::new(), Vec::new());
    for (index, entry) in spec.http.into_iter().enumerate() {
        let field = format!("spec.http[{index}]");
        if let Some(route) = route(entry, &field, scope, &mut references, report) {
            routes.push(route);
        }
    }
    let lists = (spec.tls, spec.tcp);
    let mut l4 = match is_delegate {
        false => l4_route::routes(lists, (&spec.hosts, &hosts), scope, &mut references, report),
        true => L4Routes::default(),
    };
    if !in_mesh || (hosts.is_empty() && !is_delegate) {
        routes.clear();
        l4 = L4Routes::default();
        references.clear();
    }
    let visibility = visibility(&spec.export_to, scope, report);
    VirtualServiceFacts { object, hosts, is_delegate, visibility, routes, l4, references }
}

/// What one without hosts, which others delegate to, cannot have.
fn check_delegate(spec: &api::VirtualService, report: &mut Report) {
    let given = [
        (!spec.gateways.is_empty(), "gateways"),
        (!spec.tls.is_empty(), "tls"),
        (!spec.tcp.is_empty(), "tcp"),
    ];
    for (_, name) in given.into_iter().filter(|(given, _)| *given) {
        report.error(format!("spec.{name}"), "cannot be given without `hosts`");
    }
    let delegating = spec.http.iter().enumerate().filter(|(_, entry)| entry.delegate.is_some());
    for (index, _) in delegating {
        let message = "cannot be given without `hosts`: what is delegated is not delegated again";
        report.error(format!("spec.http[{index}].delegate"), message);
    }
}

/// Whether clients in the mesh see it.
fn gateways(gateways: &[String], report: &mut Report) -> bool {
    let in_mesh = gateways.is_empty() || gateways.iter().any(|name| name == MESH);
    if !in_mesh {
        let message = "gateways are not supported yet, and `mesh` is not among them: no effect";
        report.warning("spec.gateways", message);
    } else if gateways.iter().any(|name| name != MESH) {
        report
            .warning("spec.gateways", "gateways are not supported yet: in effect for `mesh` only");
    }
    in_mesh
}

fn hosts(
    hosts: &[String],
    in_mesh: bool,
    scope: &Scope<'_>,
    report: &mut Report,
) -> Vec<HostPattern> {
    let (mut found, mut seen) = (Vec::with_capacity(hosts.len()), BTreeSet::new());
    for (index, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if !is_host(host) {
            report.error(field, format!("`{host}` is not a host name, `*.` with a name, or `*`"));
            continue;
        }
        if host == "*" && in_mesh {
            report.error(field, "`*` cannot be used for clients in the mesh: name a host");
            continue;
        }
        let pattern = HostPattern::parse(&expand(host, scope));
        if !seen.insert(pattern.clone()) {
            report.error(field, format!("`{host}` is there twice"));
            continue;
        }
        found.push(pattern);
    }
    found
}
