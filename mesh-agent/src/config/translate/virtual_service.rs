//! `VirtualService`: hosts, gateways and the list of HTTP rules (istio-surface 1.1). Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Scope;
use super::headers::headers;
use super::http_action::{destinations, direct, redirect, rewrite};
use super::http_match::{MESH, is_catch_all, matches};
use super::names::{expand, is_host, visibility};
use crate::config::api;
use crate::config::diagnostic::Report;
use crate::model::{Action, Forward, HostPattern, HttpRule, ObjectRef, VirtualService};

/// A `VirtualService`, with what it refers to.
#[derive(Debug)]
pub(in crate::config) struct VirtualServiceFacts {
    /// Compiled, but its destinations' services are not looked up yet and its age is not filled in.
    pub(in crate::config) compiled: VirtualService,
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
}

/// Translates one; without HTTP rules for clients in the mesh, it owns no host there.
pub(in crate::config) fn virtual_service(
    spec: api::VirtualService,
    object: ObjectRef,
    scope: &Scope<'_>,
    report: &mut Report,
) -> VirtualServiceFacts {
    let in_mesh = gateways(&spec.gateways, report);
    let hosts = hosts(&spec.hosts, in_mesh, scope, report);
    let mut references = Vec::new();
    let mut http = Vec::new();
    for (index, route) in spec.http.into_iter().enumerate() {
        let field = format!("spec.http[{index}]");
        if let Some(rule) = rule(route, &field, scope, &mut references, report) {
            http.push(rule);
        }
    }
    if !in_mesh || hosts.is_empty() {
        http.clear();
        references.clear();
    }
    let catch_all =
        |rule: &HttpRule| rule.matches.is_empty() || rule.matches.iter().any(is_catch_all);
    if let Some(last) = http.iter().position(catch_all) {
        http.truncate(last + 1);
    }
    let visibility = visibility(&spec.export_to, scope, report);
    let compiled = VirtualService { object, hosts, visibility, created: 0, http };
    VirtualServiceFacts { compiled, references }
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
    if hosts.is_empty() {
        report.warning("spec.hosts", "none: delegates are not supported yet, no effect");
    }
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

/// One `http[]` entry; `None` if it is not for clients in the mesh, or in error.
fn rule(
    route: api::HttpRoute,
    field: &str,
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Option<HttpRule> {
    check_action(&route, field, report);
    let delegated = route.delegate.is_some();
    let timeout = route.timeout.map(|span| span.0);
    if timeout.is_some_and(|time| !time.is_zero() && time.as_millis() == 0) {
        report.error(format!("{field}.timeout"), "shorter than 1ms");
    }
    let (request, response_headers) = headers(route.headers, &format!("{field}.headers"), report);
    let mut named = Vec::new();
    let has_rewrite = route.rewrite.is_some();
    let action = if let Some(found) = route.redirect {
        Some(Action::Redirect(redirect(found, field, report)))
    } else if let Some(found) = route.direct_response {
        direct(found, field, report).map(Action::Direct)
    } else {
        let destinations = destinations(route.route, field, scope, &mut named, report);
        let rewrite = rewrite(route.rewrite, request.authority, field, report);
        let sum = destinations
            .iter()
            .try_fold(0_u32, |sum, destination| sum.checked_add(destination.weight));
        if sum.is_none() {
            report.error(format!("{field}.route"), "the weights add up to more than 4294967295");
        }
        let total_weight = sum.unwrap_or(0);
        let timeout = timeout.filter(|time| !time.is_zero());
        let forward = Forward { destinations, total_weight, rewrite, timeout };
        (forward.total_weight > 0).then_some(Action::Forward(forward))
    };
    if has_rewrite && !matches!(action, Some(Action::Forward(_)) | None) {
        report.error(format!("{field}.rewrite"), "has no meaning without `route`");
    }
    let matches = matches(route.r#match, field, report)?;
    if delegated {
        return None;
    }
    references.append(&mut named);
    let name = if route.name.is_empty() { "default" } else { &route.name };
    Some(HttpRule {
        name: name.into(),
        matches,
        action: action?,
        request_headers: request.ops,
        response_headers,
    })
}

/// Exactly one of the things that an entry can do.
fn check_action(route: &api::HttpRoute, field: &str, report: &mut Report) {
    let given: Vec<&str> = [
        (!route.route.is_empty(), "route"),
        (route.redirect.is_some(), "redirect"),
        (route.direct_response.is_some(), "directResponse"),
        (route.delegate.is_some(), "delegate"),
    ]
    .into_iter()
    .filter_map(|(given, name)| given.then_some(name))
    .collect();
    match given.as_slice() {
        [_] => {}
        [] => report.error(field, "must have one of `route`, `redirect` and `directResponse`"),
        [first, second, ..] => {
            report.error(field, format!("cannot have both `{first}` and `{second}`"));
        }
    }
}
