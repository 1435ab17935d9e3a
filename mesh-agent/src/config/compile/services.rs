//! Services with their endpoints, and the ways to find them: address, host name, headless endpoint.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::share;
use super::view::{Entry, View};
use super::workloads::Workloads;
use crate::config::diagnostic::Diagnostic;
use crate::config::translate::{PortFacts, ServiceFacts, SliceFacts};
use crate::model::{
    Endpoint, Locality, Protocol, Readiness, Service, ServiceKey, ServiceKind, ServicePort,
    Snapshot,
};

/// Compiles every service into `snapshot`.
pub(super) fn compile(
    view: &View<'_>,
    pods: &Workloads,
    previous: &Snapshot,
    snapshot: &mut Snapshot,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut headless = FxHashMap::default();
    let sources = Sources { view, pods, zones: zones(view) };
    for entry in &view.services {
        let service = service(entry, &sources, previous);
        let service = share(service, previous.services.get(&entry_key(entry)));
        let mut report = entry.report();
        for (ip, field) in &entry.facts.addresses {
            match snapshot.services_by_ip.get(ip) {
                Some(other) => report.warning(
                    *field,
                    format!("{ip} belongs to Service {}, which is older", other.key),
                ),
                None => {
                    snapshot.services_by_ip.insert(*ip, Arc::clone(&service));
                }
            }
        }
        if service.kind == ServiceKind::Headless {
            claim_endpoints(&service, &mut headless);
        }
        snapshot.services_by_host.insert(Arc::clone(&service.hostname), Arc::clone(&service));
        snapshot.services.insert(service.key.clone(), service);
        diagnostics.extend(report.into_diagnostics());
    }
    snapshot.http_ports = snapshot
        .services
        .values()
        .flat_map(|service| &service.ports)
        .filter(|port| port.protocol.is_http() || port.protocol == Protocol::Detect)
        .map(|port| port.port)
        .collect();
    snapshot.headless_by_endpoint =
        headless.into_iter().filter_map(|(address, owner)| Some((address, owner?))).collect();
}

/// What services are made of.
struct Sources<'a> {
    view: &'a View<'a>,
    pods: &'a Workloads,
    zones: Zones<'a>,
}

/// Zones of nodes, each with its region: an EndpointSlice names the zone alone.
struct Zones<'a>(FxHashMap<&'a str, Arc<Locality>>);

fn zones<'a>(view: &View<'a>) -> Zones<'a> {
    let mut zones = FxHashMap::default();
    for of_node in view.nodes.values().copied().filter(|of_node| !of_node.zone.is_empty()) {
        let whole = || Arc::new(Locality { subzone: Arc::default(), ..Locality::clone(of_node) });
        zones.entry(&*of_node.zone).or_insert_with(whole);
    }
    Zones(zones)
}

impl Zones<'_> {
    fn locality(&self, zone: &Arc<str>) -> Arc<Locality> {
        let unknown = || Locality { zone: Arc::clone(zone), ..Locality::default() };
        self.0.get(&**zone).map_or_else(|| Arc::new(unknown()), Arc::clone)
    }
}

fn entry_key(entry: &Entry<'_, ServiceFacts>) -> ServiceKey {
    let key = &entry.object.key;
    ServiceKey { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) }
}

fn service(
    entry: &Entry<'_, ServiceFacts>,
    Sources { view, pods, zones }: &Sources<'_>,
    previous: &Snapshot,
) -> Service {
    let (key, facts) = (entry_key(entry), entry.facts);
    let slices: &[&SliceFacts] = match facts.kind {
        ServiceKind::ExternalName(_) | ServiceKind::External(_) => &[],
        ServiceKind::ClusterIp | ServiceKind::Headless => {
            view.slices.get(&(&*key.namespace, &*key.name)).map_or(&[], Vec::as_slice)
        }
    };
    let before = previous.services.get(&key);
    let ports = facts.ports.iter().map(|port| {
        let endpoints = endpoints(port, facts.publish_not_ready, slices, (pods, zones));
        let same = before
            .and_then(|before| before.port(port.port))
            .filter(|before| *before.endpoints == *endpoints);
        ServicePort {
            port: port.port,
            name: Arc::clone(&port.name),
            protocol: port.protocol,
            endpoints: same
                .map_or_else(|| endpoints.into(), |before| Arc::clone(&before.endpoints)),
        }
    });
    Service {
        ports: ports.collect(),
        key,
        hostname: Arc::clone(&facts.host),
        addresses: facts.addresses.iter().map(|(ip, _)| *ip).collect(),
        kind: facts.kind.clone(),
        distribution: facts.distribution,
        created: entry.created,
    }
}

/// Endpoints of one port: slices name ports, and say where each endpoint listens.
fn endpoints(
    port: &PortFacts,
    publish_not_ready: bool,
    slices: &[&SliceFacts],
    (pods, zones): (&Workloads, &Zones<'_>),
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        for (_, target) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            for endpoint in &slice.endpoints {
                for ip in &endpoint.addresses {
                    let workload = pods.behind(*ip, endpoint.pod.as_ref());
                    let locality = match workload {
                        None => endpoint.zone.as_ref().map(|zone| zones.locality(zone)),
                        Some(_) => None,
                    };
                    found.push(Endpoint {
                        address: SocketAddr::new(*ip, *target),
                        workload: workload.cloned(),
                        labels: None,
                        locality,
                        readiness: match endpoint.readiness {
                            _ if publish_not_ready => Readiness::Ready,
                            readiness => readiness,
                        },
                    });
                }
            }
        }
    }
    // While an endpoint moves between slices it can be in both: the better one counts.
    found.sort_by_key(|endpoint| (endpoint.address, endpoint.readiness));
    found.dedup_by_key(|endpoint| endpoint.address);
    found
}

/// Notes which service and port an endpoint of a headless service answers for; `None` once two
/// services claim it.
fn claim_endpoints(
    service: &Service,
    headless: &mut FxHashMap<SocketAddr, Option<(ServiceKey, u16)>>,
) {
    for port in &service.ports {
        for endpoint in port.endpoints.iter() {
            let owner = headless
                .entry(endpoint.address)
                .or_insert_with(|| Some((service.key.clone(), port.port)));
            match owner {
                Some((key, _)) if *key != service.key => *owner = None,
                // Clients dial the service port, which for a headless service is the pod's.
                Some((_, number)) if port.port == endpoint.address.port() => *number = port.port,
                Some(_) | None => {}
            }
        }
    }
}
