//! Rate limits: each given to its service, the oldest object of a service's first and alone. Virtual
//! services must be in the snapshot already.

use std::sync::Arc;

use super::routes::no_service;
use super::view::{Entry, View};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::parse::nearest;
use crate::config::translate::RateLimitFacts;
use crate::model::{Protocol, RateLimit, Service, Snapshot};

/// Compiles every object into `snapshot`.
pub(super) fn compile(
    view: &View<'_>,
    previous: &Snapshot,
    snapshot: &mut Snapshot,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for entry in &view.rate_limits {
        let mut report = entry.report();
        if let Some(service) = service(entry, snapshot, &mut report) {
            look_up_routes(&entry.facts.limits, snapshot, &mut report);
            let before = previous.rate_limits.get(&service.key).map_or(&[][..], Vec::as_slice);
            let limits = entry.facts.limits.iter().map(|limit| kept(limit, before)).collect();
            snapshot.rate_limits.insert(service.key.clone(), limits);
        }
        diagnostics.extend(report.into_diagnostics());
    }
}

/// The service that the object's limits are for, if they come into force.
fn service(
    entry: &Entry<'_, RateLimitFacts>,
    snapshot: &Snapshot,
    report: &mut Report,
) -> Option<Arc<Service>> {
    const HOST: &str = "spec.host";
    let Some(service) = snapshot.services_by_host.get(&entry.facts.host) else {
        report.warning(HOST, no_service(&entry.facts.host, snapshot));
        return None;
    };
    let of = &service.key.namespace;
    if *of != entry.object.key.namespace {
        let message =
            format!("a service of the namespace `{of}`, where its RateLimit must be, too");
        report.error(HOST, message);
        return None;
    }
    let owner = snapshot.rate_limits.get(&service.key).and_then(|limits| limits.first());
    if let Some(owner) = owner {
        let message = format!("shadowed: {}, which is older, is for this host", owner.object);
        report.warning(HOST, message);
        return None;
    }
    let is_opaque = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Tls);
    if service.ports.iter().all(|port| is_opaque(port.protocol)) {
        report.warning(HOST, "no effect: no port of the service speaks HTTP");
    }
    Some(Arc::clone(service))
}

/// The limit of before, if it is equal: then callers have used what they have used.
fn kept(limit: &Arc<RateLimit>, before: &[Arc<RateLimit>]) -> Arc<RateLimit> {
    Arc::clone(before.iter().find(|before| *before == limit).unwrap_or(limit))
}

/// Reports names of rules that no virtual service has.
fn look_up_routes(limits: &[Arc<RateLimit>], snapshot: &Snapshot, report: &mut Report) {
    let names = || {
        let rules = snapshot.virtual_services.iter().flat_map(|found| &found.http);
        rules.map(|rule| &*rule.name)
    };
    for (index, limit) in limits.iter().enumerate() {
        for (position, found) in limit.matches.iter().enumerate() {
            let Some(route) = &found.route else { continue };
            if names().any(|name| *name == **route) {
                continue;
            }
            let hint = match nearest(route, names()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
            let message = format!("no VirtualService has a rule `{route}`: nothing matches{hint}");
            report.warning(format!("spec.limits[{index}].match[{position}].route"), message);
        }
    }
}
