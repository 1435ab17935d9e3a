//! Keeps the kernel's table of direct services as the configuration and the node's pods ask for it,
//! and ends direct connections that may not be direct any more.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::capture::DirectPort;
use crate::model::{Protocol, Snapshot, in_use};
use crate::proxy::Shared;
use crate::tunnel::LocalPods;

/// What is in force in the kernel.
#[derive(Default)]
pub(super) struct DirectTable {
    /// Generation of the snapshot it follows from, and the pods.
    from: Option<(u64, Arc<LocalPods>)>,
    /// Where direct connections may go, and may stay.
    allowed: BTreeSet<SocketAddr>,
}

impl DirectTable {
    /// Follows the snapshot and the pods of the node.
    pub(super) fn update(&mut self, shared: &Shared, snapshot: &Snapshot) {
        let pods = shared.pods.load_full();
        let is_same = |from: &(u64, Arc<LocalPods>)| {
            from.0 == snapshot.generation && Arc::ptr_eq(&from.1, &pods)
        };
        if self.from.as_ref().is_some_and(is_same) || snapshot.generation == 0 {
            return;
        }
        let (ports, allowed) = table(snapshot, |ip| pods.by_ip.contains_key(ip));
        if let Err(error) = shared.capture.set_direct(ports) {
            tracing::error!(%error, "cannot write the direct services: some go through the agent");
        }
        // At first there may be connections from before this agent.
        if self.from.is_none() || self.allowed.iter().any(|endpoint| !allowed.contains(endpoint)) {
            end_others(shared, &pods, &allowed);
        }
        *self = Self { from: Some((snapshot.generation, pods)), allowed };
    }
}

/// Ends the connections that go past the agent to endpoints that are of no direct service.
fn end_others(shared: &Shared, pods: &LocalPods, allowed: &BTreeSet<SocketAddr>) {
    for (client, endpoint) in shared.capture.direct_connections() {
        if allowed.contains(&endpoint) {
            continue;
        }
        // A pod that is gone has no connections any more.
        let Some(pod) = pods.by_uid.values().find(|pod| pod.ips.contains(&client.ip())) else {
            continue;
        };
        match shared.capture.end_direct(&pod.net, client, endpoint) {
            Ok(()) => tracing::info!(pod = %pod.name, %client, %endpoint,
                "direct connection ended: its service is not direct any more"),
            Err(error) => tracing::error!(pod = %pod.name, %client, %endpoint, %error,
                "cannot end a direct connection"),
        }
    }
}

/// The direct service ports with the endpoints that connections are drawn among, and all endpoints
/// that open connections may stay with: those that end, too.
fn table(
    snapshot: &Snapshot,
    is_local: impl Fn(&IpAddr) -> bool,
) -> (Vec<DirectPort>, BTreeSet<SocketAddr>) {
    let (mut ports, mut allowed) = (Vec::new(), BTreeSet::new());
    for service in snapshot.direct.iter().filter_map(|key| snapshot.services.get(key)) {
        // An older service may have the address.
        let is_own = |ip| snapshot.services_by_ip.get(ip).is_some_and(|s| s.key == service.key);
        for ip in service.addresses.iter().filter(|ip| is_own(ip)) {
            for port in service.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
                let family =
                    port.endpoints.iter().filter(|one| one.address.is_ipv4() == ip.is_ipv4());
                allowed.extend(family.clone().map(|endpoint| endpoint.address));
                let used: Vec<SocketAddr> =
                    in_use(family).map(|endpoint| endpoint.address).collect();
                let local = used.iter().copied().filter(|address| is_local(&address.ip()));
                let local: Vec<SocketAddr> = local.collect();
                if local.is_empty() {
                    continue;
                }
                let endpoints = u32::try_from(used.len()).unwrap_or(u32::MAX);
                let service = SocketAddr::new(*ip, port.port);
                ports.push(DirectPort { service, endpoints, local });
            }
        }
    }
    (ports, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, Readiness, Service, ServiceKey, ServiceKind, ServicePort};

    fn snapshot(protocol: Protocol, endpoints: &[(&str, Readiness)]) -> Snapshot {
        let key = ServiceKey { namespace: "db".into(), name: "db".into() };
        let endpoint = |(address, readiness): &(&str, Readiness)| Endpoint {
            address: address.parse().unwrap(),
            workload: None,
            labels: None,
            locality: None,
            readiness: *readiness,
        };
        let service = Arc::new(Service {
            key: key.clone(),
            hostname: "db.db.svc.cluster.local".into(),
            addresses: vec!["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            kind: ServiceKind::ClusterIp,
            distribution: None,
            created: 0,
            ports: vec![ServicePort {
                port: 5432,
                name: "tcp".into(),
                protocol,
                endpoints: endpoints.iter().map(endpoint).collect(),
            }],
        });
        let mut snapshot = Snapshot::default();
        for ip in &service.addresses {
            snapshot.services_by_ip.insert(*ip, service.clone());
        }
        snapshot.direct.insert(key.clone());
        snapshot.services.insert(key, service);
        snapshot
    }

    /// The direct ports as text, and the endpoints that connections may stay with.
    fn shown(snapshot: &Snapshot, local: &[&str]) -> (Vec<String>, Vec<String>) {
        let is_local = |ip: &std::net::IpAddr| local.contains(&&*ip.to_string());
        let (ports, allowed) = table(snapshot, is_local);
        let port = |port: &DirectPort| {
            format!("{} {}/{} {:?}", port.service, port.local.len(), port.endpoints, port.local)
        };
        (ports.iter().map(port).collect(), allowed.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn draws_are_among_what_is_in_use_in_the_family() {
        use Readiness::{NotReady, Ready, Terminating};
        let endpoints = [
            ("10.1.0.1:1", Ready),
            ("10.1.1.1:1", Ready),
            ("10.1.0.2:1", Terminating),
            ("[fd01::1]:1", NotReady),
            ("[fd01::2]:1", Terminating),
        ];
        let (ports, allowed) =
            shown(&snapshot(Protocol::Tcp, &endpoints), &["10.1.0.1", "10.1.0.2", "fd01::2"]);
        assert_eq!(ports, ["10.96.0.1:5432 1/2 [10.1.0.1:1]", "[fd00::1]:5432 1/1 [[fd01::2]:1]"]);
        assert_eq!(allowed.len(), 5, "what is open stays, whatever becomes of the endpoint");
    }

    #[test]
    fn only_declared_tcp_with_a_pod_here() {
        let endpoints = [("10.1.0.1:1", Readiness::Ready)];
        for protocol in [Protocol::Http, Protocol::Detect, Protocol::Tls] {
            let (ports, allowed) = shown(&snapshot(protocol, &endpoints), &["10.1.0.1"]);
            assert_eq!((ports.len(), allowed.len()), (0, 0), "{protocol:?}");
        }
        let (ports, allowed) = shown(&snapshot(Protocol::Tcp, &endpoints), &["10.1.0.9"]);
        assert_eq!((ports.len(), allowed.len()), (0, 1));
        // The address is an older Service's.
        let mut taken = snapshot(Protocol::Tcp, &endpoints);
        taken.services_by_ip.clear();
        assert_eq!(shown(&taken, &["10.1.0.1"]), (vec![], vec![]));
    }
}
