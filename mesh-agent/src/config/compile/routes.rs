//! Virtual services: delegates put in place, destinations looked up, references checked, hosts given
//! to their owners (istio-surface 1.1.1). Destination rules must be in the snapshot already.

use std::collections::HashMap;
use std::sync::Arc;

use super::delegates::Delegates;
use super::share;
use super::view::{Entry, View};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::parse::nearest;
use crate::config::translate::{
    Reference, RouteFacts, VirtualServiceFacts, exported, is_catch_all,
};
use crate::model::{
    Action, HostPattern, HttpRule, ObjectRef, Service, ServiceKind, Snapshot, VirtualService,
    Visibility,
};

/// With more services than this, no near name is looked for: the search would cost more than it
/// helps.
const MAX_NEAR_SERVICES: usize = 2000;

/// Compiles every virtual service into `snapshot`.
pub(super) fn compile(
    view: &View<'_>,
    previous: &Snapshot,
    snapshot: &mut Snapshot,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let before: HashMap<&ObjectRef, &Arc<VirtualService>> =
        previous.virtual_services.iter().map(|found| (&found.object, found)).collect();
    let delegates = Delegates::new(view);
    for entry in &view.virtual_services {
        let mut report = entry.report();
        if entry.facts.is_delegate {
            check_delegate(entry, &delegates, snapshot, &mut report);
        } else if !entry.facts.routes.is_empty() || !entry.facts.l4.is_empty() {
            let before = before.get(&entry.facts.object).copied();
            let expanded = delegates.expand(entry, view, &mut report);
            // Without rules for clients in the mesh it owns no host there.
            if !expanded.routes.is_empty() || !entry.facts.l4.is_empty() {
                let default = || exported(&view.mesh.virtual_services, &entry.object.key.namespace);
                let visibility = entry.facts.visibility.clone().unwrap_or_else(default);
                let sound =
                    before.filter(|found| previous.sound_virtual_services.contains(&found.object));
                let new = assemble((entry, visibility), expanded.routes);
                let references = references(entry, &expanded.from, snapshot, &mut report);
                let found = choose(new, (references, sound), snapshot, &mut report);
                own_hosts(&found, snapshot, &mut report);
                snapshot.virtual_services.push(share(found, before));
            }
        }
        diagnostics.extend(report.into_diagnostics());
    }
    snapshot
        .virtual_services_by_wildcard
        .sort_by_key(|(pattern, index)| (std::cmp::Reverse(pattern.specificity()), *index));
}

/// What a delegate's destinations miss is said of the delegate, once.
fn check_delegate(
    entry: &Entry<'_, VirtualServiceFacts>,
    delegates: &Delegates<'_>,
    snapshot: &Snapshot,
    report: &mut Report,
) {
    if delegates.is_named(entry) {
        let by = By { namespace: &entry.object.key.namespace, hosts: &[] };
        are_there(&entry.facts.references, by, snapshot, report);
    } else {
        report.warning("spec.hosts", "none, and no VirtualService delegates to it: no effect");
    }
}

/// The object's rules in order, those for HTTP cut after the first catch-all.
fn assemble(
    (entry, visibility): (&Entry<'_, VirtualServiceFacts>, Visibility),
    routes: Vec<RouteFacts>,
) -> VirtualService {
    let mut http: Vec<HttpRule> = routes.into_iter().filter_map(RouteFacts::rule).collect();
    let catch_all =
        |rule: &HttpRule| rule.matches.is_empty() || rule.matches.iter().any(is_catch_all);
    if let Some(last) = http.iter().position(catch_all) {
        http.truncate(last + 1);
    }
    VirtualService {
        object: entry.facts.object.clone(),
        hosts: entry.facts.hosts.clone(),
        visibility,
        created: entry.created,
        http: http.into(),
        l4: entry.facts.l4.clone(),
    }
}

/// Whether all that the object's routes and those of its delegates name is there.
fn references(
    entry: &Entry<'_, VirtualServiceFacts>,
    from: &[&Entry<'_, VirtualServiceFacts>],
    snapshot: &Snapshot,
    report: &mut Report,
) -> bool {
    let by = By { namespace: &entry.object.key.namespace, hosts: &entry.facts.hosts };
    let own = are_there(&entry.facts.references, by, snapshot, report);
    let mut said_elsewhere = Report::default();
    let mut theirs = from.iter().map(|delegate| &delegate.facts.references);
    theirs.all(|references| are_there(references, by, snapshot, &mut said_elsewhere)) && own
}

/// The version to be in force: the object's, or if that misses a service or subset, the last one
/// that missed none, if there was one; in both, services are looked up anew. Whether the version is
/// one to go back to is noted in `snapshot`.
fn choose(
    mut new: VirtualService,
    (complete, sound): (bool, Option<&Arc<VirtualService>>),
    snapshot: &mut Snapshot,
    report: &mut Report,
) -> VirtualService {
    look_up(&mut new, snapshot);
    let kept = sound.filter(|_| !complete).map(|before| {
        let mut kept = VirtualService::clone(before);
        look_up(&mut kept, snapshot);
        kept
    });
    if complete || kept.is_some() {
        snapshot.sound_virtual_services.insert(new.object.clone());
    }
    if kept.as_ref().is_some_and(|kept| *kept != new) {
        report.warning("", "its last good version stays in force");
    }
    kept.unwrap_or(new)
}

fn look_up(virtual_service: &mut VirtualService, snapshot: &Snapshot) {
    let key = |host: &str| snapshot.known_service(host).map(|service| service.key.clone());
    for action in virtual_service.http.actions_mut() {
        if let Action::Forward(forward) = action {
            for destination in &mut forward.destinations {
                destination.service = key(&destination.host);
            }
            for mirror in &mut forward.mirrors {
                mirror.service = key(&mirror.host);
            }
        }
    }
    for destination in virtual_service.l4.rules_mut().flat_map(|rule| &mut rule.destinations) {
        destination.service = key(&destination.host);
    }
}

/// Reports what references miss; `false` if it is a service or a subset that requests need.
fn are_there(
    references: &[Reference],
    by: By<'_>,
    snapshot: &Snapshot,
    report: &mut Report,
) -> bool {
    let mut complete = true;
    for reference in references {
        complete &= is_there(reference, by, snapshot, report) || reference.is_mirror;
    }
    complete
}

/// Whose references they are.
#[derive(Clone, Copy)]
struct By<'a> {
    namespace: &'a str,
    /// Hosts whose requests the object routes; none for a delegate, which does not know them.
    hosts: &'a [HostPattern],
}

/// Reports what a reference misses; `false` if it is the service or the subset.
fn is_there(reference: &Reference, by: By<'_>, snapshot: &Snapshot, report: &mut Report) -> bool {
    let Reference { field, host, subset, port, is_mirror } = reference;
    let mut missing = |field: String, message: String| {
        if *is_mirror {
            report.warning(field, format!("no copies are sent: {message}"));
        } else {
            report.error(field, message);
        }
    };
    let Some(service) = snapshot.known_service(host) else {
        missing(format!("{field}.host"), no_service(host, snapshot));
        return false;
    };
    let service = snapshot.unaliased(service, by.namespace);
    let known = subsets(service, snapshot);
    let lost = subset.as_ref().filter(|subset| !known.contains(&&***subset));
    if let Some(subset) = lost {
        let hint = match nearest(subset, known.iter().copied()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        };
        let message = format!("no DestinationRule of `{host}` has a subset `{subset}`{hint}");
        missing(format!("{field}.subset"), message);
    }
    if let Some(why) = has_no_address(service, by, snapshot) {
        let what = if *is_mirror { "no copies are sent" } else { "requests for others get 503" };
        report.warning(format!("{field}.host"), format!("{why}: {what}"));
    }
    if let Some(port) = port.filter(|port| service.port(*port).is_none()) {
        let what = if *is_mirror { "no copies are sent" } else { "requests to it get 503" };
        let message = format!("Service {} has no port {port}: {what}", service.key);
        report.warning(format!("{field}.port.number"), message);
    }
    lost.is_none()
}

/// Why requests for some of the object's hosts cannot be sent to a service, where only who asks for
/// that one dials an address of it ([`Snapshot::misleads`]).
fn has_no_address(service: &Service, by: By<'_>, snapshot: &Snapshot) -> Option<String> {
    let (own, hosts) = (&service.hostname, by.hosts);
    if let ServiceKind::ExternalName(name) = &service.kind {
        let is_alias = |host: &Arc<str>| {
            let found = snapshot.services_by_host.get(host);
            let found = found.map(|found| snapshot.unaliased(found, by.namespace));
            found.is_some_and(|found| found.key == service.key)
        };
        let is_asked = |host: &HostPattern| match host {
            HostPattern::Exact(host) => host == name || is_alias(host),
            HostPattern::Suffix(_) | HostPattern::Any => false,
        };
        let asks = !hosts.is_empty() && hosts.iter().all(is_asked);
        return (!asks).then(|| {
            format!(
                "`{own}` is an ExternalName for `{name}`, which is no host of a Service or \
                 ServiceEntry, so only its own clients know an address"
            )
        });
    }
    let is_virtual = |host: &HostPattern| match host {
        HostPattern::Exact(host) => {
            let found = snapshot.services_by_host.get(host);
            found.is_some_and(|found| found.kind == ServiceKind::ClusterIp)
        }
        HostPattern::Suffix(_) | HostPattern::Any => false,
    };
    let misled = service.is_dialled() && hosts.iter().any(is_virtual);
    misled.then(|| {
        format!("`{own}` has `resolution: NONE`, so only its own clients dial an address of it")
    })
}

/// Subsets that any client may see for a service.
fn subsets<'a>(service: &Service, snapshot: &'a Snapshot) -> Vec<&'a str> {
    let rules = snapshot.destination_rules.values().flatten();
    rules
        .filter(|rule| rule.host.matches(&service.hostname))
        .flat_map(|rule| rule.subsets.iter().map(|subset| &*subset.name))
        .collect()
}

/// Gives each host to the virtual service, unless an older one has it.
fn own_hosts(found: &VirtualService, snapshot: &mut Snapshot, report: &mut Report) {
    let index = snapshot.virtual_services.len();
    for (position, host) in found.hosts.iter().enumerate() {
        let holders: Vec<usize> = match host {
            HostPattern::Exact(name) => {
                let entry = snapshot.virtual_services_by_host.entry(Arc::clone(name)).or_default();
                entry.push(index);
                entry.clone()
            }
            HostPattern::Suffix(_) | HostPattern::Any => {
                snapshot.virtual_services_by_wildcard.push((host.clone(), index));
                let same = |(other, _): &&(HostPattern, usize)| other == host;
                let holders = snapshot.virtual_services_by_wildcard.iter().filter(same);
                holders.map(|(_, index)| *index).collect()
            }
        };
        let owner = holders
            .iter()
            .filter_map(|holder| snapshot.virtual_services.get(*holder))
            .find(|owner| rival(owner, found) && overlap(&owner.visibility, &found.visibility));
        if let Some(owner) = owner {
            let message = format!("shadowed: {}, which is older, owns this host", owner.object);
            report.warning(format!("spec.hosts[{position}]"), message);
        }
    }
}

/// Whether one has rules where the other has some: for HTTP, or for other connections.
fn rival(a: &VirtualService, b: &VirtualService) -> bool {
    !a.http.is_empty() && !b.http.is_empty() || !a.l4.is_empty() && !b.l4.is_empty()
}

pub(super) fn overlap(a: &Visibility, b: &Visibility) -> bool {
    match (a, b) {
        (Visibility::Everyone, _) | (_, Visibility::Everyone) => true,
        (Visibility::Namespaces(a), Visibility::Namespaces(b)) => {
            a.iter().any(|name| b.contains(name))
        }
    }
}

/// Says that there is no service of this name, and which one may be meant.
pub(super) fn no_service(host: &str, snapshot: &Snapshot) -> String {
    let full = format!("{host}.svc.{}", snapshot.mesh.cluster_domain);
    let near = if snapshot.services_by_host.contains_key(full.as_str()) {
        Some(&*full)
    } else if snapshot.services_by_host.len() <= MAX_NEAR_SERVICES {
        let mut names: Vec<&str> = snapshot.services_by_host.keys().map(|name| &**name).collect();
        names.sort_unstable();
        nearest(host, names)
    } else {
        None
    };
    match near {
        Some(near) => format!("no service `{host}`; did you mean `{near}`?"),
        None => format!("no service `{host}`"),
    }
}
