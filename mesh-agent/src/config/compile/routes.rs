//! Virtual services: destinations looked up, references checked, hosts given to their owners
//! (istio-surface 1.1.1). Destination rules must be in the snapshot already.

use std::collections::HashMap;
use std::sync::Arc;

use super::share;
use super::view::{Entry, View};
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::parse::nearest;
use crate::config::translate::{Reference, VirtualServiceFacts};
use crate::model::{Action, HostPattern, ObjectRef, Service, Snapshot, VirtualService, Visibility};

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
    for entry in &view.virtual_services {
        // Without rules for clients in the mesh it owns no host there.
        if entry.facts.compiled.http.is_empty() {
            continue;
        }
        let before = before.get(&entry.facts.compiled.object).copied();
        let mut report = entry.report();
        let sound = before.filter(|found| previous.sound_virtual_services.contains(&found.object));
        let found = link(entry, sound, snapshot, &mut report);
        own_hosts(&found, snapshot, &mut report);
        snapshot.virtual_services.push(share(found, before));
        diagnostics.extend(report.into_diagnostics());
    }
    snapshot
        .virtual_services_by_wildcard
        .sort_by_key(|(pattern, index)| (std::cmp::Reverse(pattern.specificity()), *index));
}

/// The version to be in force: the object's, or if that misses a service or subset, the last one
/// that missed none, if there was one; in both, services are looked up anew. Whether the version is
/// one to go back to is noted in `snapshot`.
fn link(
    entry: &Entry<'_, VirtualServiceFacts>,
    sound: Option<&Arc<VirtualService>>,
    snapshot: &mut Snapshot,
    report: &mut Report,
) -> VirtualService {
    let mut new = entry.facts.compiled.clone();
    new.created = entry.created;
    look_up(&mut new, snapshot);
    let mut complete = true;
    for reference in &entry.facts.references {
        complete &= check(reference, snapshot, report);
    }
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
    for rule in &mut virtual_service.http {
        if let Action::Forward(forward) = &mut rule.action {
            for destination in &mut forward.destinations {
                let service = snapshot.services_by_host.get(&destination.host);
                destination.service = service.map(|service| service.key.clone());
            }
        }
    }
}

/// Reports what a reference misses; `false` if it is the service or the subset.
fn check(reference: &Reference, snapshot: &Snapshot, report: &mut Report) -> bool {
    let Reference { field, host, subset, port } = reference;
    let Some(service) = snapshot.services_by_host.get(host) else {
        let message = no_service(host, snapshot);
        report.error(format!("{field}.host"), message);
        return false;
    };
    if let Some(port) = port.filter(|port| service.port(*port).is_none()) {
        let message = format!("Service {} has no port {port}: requests to it get 503", service.key);
        report.warning(format!("{field}.port.number"), message);
    }
    let Some(subset) = subset else { return true };
    let known = subsets(service, snapshot);
    if known.iter().any(|name| *name == &**subset) {
        return true;
    }
    let hint = match nearest(subset, known.iter().copied()) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let message = format!("no DestinationRule of `{host}` has a subset `{subset}`{hint}");
    report.error(format!("{field}.subset"), message);
    false
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
            .find(|owner| overlap(&owner.visibility, &found.visibility));
        if let Some(owner) = owner {
            let message = format!("shadowed: {}, which is older, owns this host", owner.object);
            report.warning(format!("spec.hosts[{position}]"), message);
        }
    }
}

fn overlap(a: &Visibility, b: &Visibility) -> bool {
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
