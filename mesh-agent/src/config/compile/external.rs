//! Service entries: each host a service, with endpoints that are written down, resolved or selected,
//! and the ways to find it. Kubernetes Services must be in the snapshot already: they win
//! (istio-surface 1.4).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::routes::overlap;
use super::share;
use super::view::{Entry, View};
use super::workloads::Workloads;
use crate::config::Answers;
use crate::config::api::Labels;
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::translate::{Address, EntryEndpoint, EntryFacts, EntryPort, EntryResolution};
use crate::model::{
    Endpoint, External, HostPattern, Protocol, Readiness, Resolution, Service, ServiceKey,
    ServiceKind, ServicePort, Snapshot, Visibility,
};

/// What endpoints are made of.
pub(super) struct Sources<'a> {
    /// The objects.
    pub(super) view: &'a View<'a>,
    /// The pods.
    pub(super) pods: &'a Workloads,
    /// What names resolve to.
    pub(super) answers: &'a Answers,
}

/// Compiles every service entry into `snapshot`, the oldest first.
pub(super) fn compile(
    sources: &Sources<'_>,
    previous: &Snapshot,
    snapshot: &mut Snapshot,
    diagnostics: &mut Vec<Diagnostic>,
) {
    for entry in &sources.view.entries {
        let mut report = entry.report();
        for (index, host) in entry.facts.hosts.iter().enumerate() {
            let key = ServiceKey {
                namespace: Arc::clone(&entry.object.key.namespace),
                name: Arc::clone(host),
            };
            let visibility = entry.facts.visibility.clone().unwrap_or_default();
            if let Some(owner) = owner(&key, &visibility, snapshot) {
                report.warning(format!("spec.hosts[{index}]"), format!("no effect: {owner}"));
                continue;
            }
            let before = previous.services.get(&key);
            let service = service(entry, (key, visibility), sources, before.map(Arc::as_ref));
            let service = share(service, before);
            check_addresses(&service, snapshot, &mut report);
            insert(service, snapshot);
        }
        diagnostics.extend(report.into_diagnostics());
    }
    snapshot.external.sort();
}

/// Who has the host already, in words.
fn owner(key: &ServiceKey, visibility: &Visibility, snapshot: &Snapshot) -> Option<String> {
    let host = &key.name;
    let named = snapshot.services_by_host.get(host);
    if let Some(service) = named.filter(|found| found.external().is_none()) {
        return Some(format!("`{host}` is the host of Service {}", service.key));
    }
    let same: Vec<&Arc<Service>> = match HostPattern::parse(host) {
        HostPattern::Exact(_) => snapshot.external.of_host(host).iter().collect(),
        // A wildcard covers another one's text, but only the same is a rival.
        _ => snapshot.external.wildcards(host).filter(|found| found.hostname == *host).collect(),
    };
    let mut others = same.into_iter().filter_map(|service| service.external());
    let older = others.find(|other| overlap(&other.visibility, visibility));
    match older {
        Some(older) => Some(format!("{}, which is older, has this host", older.object)),
        None if snapshot.services.contains_key(key) => {
            Some(format!("namespace {} has a service `{host}` already", key.namespace))
        }
        None => None,
    }
}

/// Says which addresses others have.
fn check_addresses(service: &Service, snapshot: &Snapshot, report: &mut Report) {
    let Some(external) = service.external() else { return };
    for ip in &service.addresses {
        if let Some(other) = snapshot.services_by_ip.get(ip) {
            report.warning("spec.addresses", format!("{ip} belongs to Service {}", other.key));
            continue;
        }
        for port in &service.ports {
            let address = SocketAddr::new(*ip, port.port);
            let others = snapshot.external.given(address).iter().filter_map(|one| one.external());
            let rival = others.clone().find(|other| {
                other.object != external.object && overlap(&other.visibility, &external.visibility)
            });
            if let Some(other) = rival {
                let message = format!("{address} belongs to {}, which is older", other.object);
                report.warning("spec.addresses", message);
            }
        }
    }
}

fn insert(service: Arc<Service>, snapshot: &mut Snapshot) {
    let is_http =
        |port: &&ServicePort| port.protocol.is_http() || port.protocol == Protocol::Detect;
    snapshot.http_ports.extend(service.ports.iter().filter(is_http).map(|port| port.port));
    snapshot.external.insert(&service);
    let hosts = &mut snapshot.services_by_host;
    hosts.entry(Arc::clone(&service.hostname)).or_insert_with(|| Arc::clone(&service));
    snapshot.services.insert(service.key.clone(), service);
}

fn service(
    entry: &Entry<'_, EntryFacts>,
    (key, visibility): (ServiceKey, Visibility),
    sources: &Sources<'_>,
    before: Option<&Service>,
) -> Service {
    let facts = entry.facts;
    let ports = facts.ports.iter().map(|port| {
        let before = before.and_then(|before| before.port(port.port)).map(|port| &port.endpoints);
        let endpoints = endpoints(entry, &key.name, port, sources, before.map(|all| &**all));
        let same = before.filter(|before| ***before == *endpoints);
        ServicePort {
            port: port.port,
            name: Arc::clone(&port.name),
            protocol: port.protocol,
            endpoints: same.map_or_else(|| endpoints.into(), Arc::clone),
        }
    });
    let external = External {
        object: entry.object.key.to_ref(),
        visibility,
        is_internal: facts.is_internal,
        resolution: resolution(facts, &key.name, sources.answers),
        ranges: facts.ranges.clone(),
        subject_alt_names: Arc::clone(&facts.subject_alt_names),
    };
    Service {
        ports: ports.collect(),
        hostname: Arc::clone(&key.name),
        addresses: facts.addresses.clone(),
        kind: ServiceKind::External(Box::new(external)),
        distribution: None,
        created: entry.created,
        key,
    }
}

fn resolution(facts: &EntryFacts, host: &Arc<str>, answers: &Answers) -> Resolution {
    match facts.resolution {
        EntryResolution::Dialled => Resolution::Dialled,
        EntryResolution::Static => Resolution::Static,
        EntryResolution::Dns | EntryResolution::OneOfDns => {
            let names: Arc<[Arc<str>]> = match (&facts.selector, facts.endpoints.as_slice()) {
                (Some(_), _) => Arc::default(),
                (None, []) => [Arc::clone(host)].into(),
                (None, endpoints) => endpoints.iter().filter_map(name_of).collect(),
            };
            let pending = names.iter().any(|name| !answers.contains_key(name));
            Resolution::Dns { names, pending }
        }
    }
}

fn name_of(endpoint: &EntryEndpoint) -> Option<Arc<str>> {
    match &endpoint.address {
        Address::Name(name) => Some(Arc::clone(name)),
        Address::Ip(_) => None,
    }
}

/// Endpoints of one port: written down, resolved, or the pods that the selector means.
fn endpoints(
    entry: &Entry<'_, EntryFacts>,
    host: &str,
    port: &EntryPort,
    sources: &Sources<'_>,
    before: Option<&[Endpoint]>,
) -> Vec<Endpoint> {
    let facts = entry.facts;
    if facts.resolution == EntryResolution::Dialled {
        return Vec::new();
    }
    let mut found = match (&facts.selector, facts.endpoints.as_slice()) {
        (Some(selector), _) => selected(&entry.object.key.namespace, selector, port, sources),
        (None, []) => {
            let ips = sources.answers.get(host).map_or(&[][..], Vec::as_slice);
            ips.iter().map(|ip| listening(*ip, port.target, None, facts, sources)).collect()
        }
        (None, written) => {
            written.iter().flat_map(|one| resolved(one, port, facts, sources)).collect()
        }
    };
    if facts.resolution == EntryResolution::OneOfDns {
        found = one_of_each_family(found, before.unwrap_or_default());
    }
    // Two names may lead to one address.
    found.sort_by_key(|endpoint| endpoint.address);
    found.dedup_by_key(|endpoint| endpoint.address);
    found
}

/// What one entry of `endpoints[]` comes to.
fn resolved(
    written: &EntryEndpoint,
    port: &EntryPort,
    facts: &EntryFacts,
    sources: &Sources<'_>,
) -> Vec<Endpoint> {
    let one;
    let ips: &[IpAddr] = match &written.address {
        Address::Ip(ip) => {
            one = [*ip];
            &one
        }
        Address::Name(name) => sources.answers.get(name).map_or(&[], Vec::as_slice),
    };
    let target = written.ports.get(&port.name).copied().unwrap_or(port.target);
    ips.iter().map(|ip| listening(*ip, target, Some(written), facts, sources)).collect()
}

/// The endpoint at an address. Only inside the mesh is it the pod that has the address.
fn listening(
    ip: IpAddr,
    port: u16,
    written: Option<&EntryEndpoint>,
    facts: &EntryFacts,
    sources: &Sources<'_>,
) -> Endpoint {
    let pod = if facts.is_internal { sources.pods.behind(ip, None).cloned() } else { None };
    Endpoint {
        address: SocketAddr::new(ip, port),
        workload: pod,
        labels: written.map(|one| &one.labels).filter(|labels| !labels.is_empty()).cloned(),
        locality: written.and_then(|one| one.locality.clone()),
        readiness: Readiness::Ready,
    }
}

/// Pods of a namespace that have all labels of a selector.
fn selected(
    namespace: &str,
    selector: &Labels,
    port: &EntryPort,
    sources: &Sources<'_>,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    let of_namespace =
        sources.view.pods.iter().filter(|pod| *pod.object.key.namespace == *namespace);
    for entry in of_namespace {
        let facts = entry.facts;
        if facts.workload.finished || !facts.workload.has_labels(selector) {
            continue;
        }
        for ip in &facts.workload.ips {
            let pod = sources.pods.behind(*ip, Some(&facts.workload.name));
            found.push(Endpoint {
                address: SocketAddr::new(*ip, port.target),
                workload: pod.cloned(),
                labels: None,
                locality: None,
                readiness: facts.readiness(),
            });
        }
    }
    found
}

/// `DNS_ROUND_ROBIN`: one address of each family, the same as before as long as it is an answer.
fn one_of_each_family(found: Vec<Endpoint>, before: &[Endpoint]) -> Vec<Endpoint> {
    let one = |is_v4: bool| {
        let mut family = found.iter().filter(|one| one.address.is_ipv4() == is_v4);
        let first = family.clone().next();
        let kept = family.find(|one| before.iter().any(|old| old.address == one.address));
        kept.or(first).cloned()
    };
    [one(true), one(false)].into_iter().flatten().collect()
}
