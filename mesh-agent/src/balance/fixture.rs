//! Small worlds for tests: pods, services and snapshots without the configuration compiler.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::model::{
    CaptureRules, DestinationRule, Endpoint, HostPattern, LoadBalancer, ObjectRef, PeerPolicy,
    Protocol, Readiness, Service, ServiceKey, ServiceKind, ServicePort, Snapshot, SpiffeId, Subset,
    TrafficPolicy, VirtualService, Visibility, Workload, WorkloadName,
};

/// A pod `shop/<name>` with these addresses and the label `version: <version>`.
pub(crate) fn pod(name: &str, ips: &[&str], version: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("uid-{name}").into(),
        name: WorkloadName { namespace: "shop".into(), name: name.into() },
        node: "n1".into(),
        locality: None,
        identity: SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: name.into(),
        },
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        labels: [("version".into(), version.into()), ("app".into(), name.into())].into(),
        host_network: false,
        selected: true,
        unfit: None,
        enrolled: true,
        finished: false,
        terminating: false,
        capture: CaptureRules::default(),
        peer_policy: PeerPolicy::default(),
    })
}

/// A ready endpoint of a pod.
pub(crate) fn endpoint(address: &str, version: &str) -> Endpoint {
    let address: SocketAddr = address.parse().unwrap();
    let ip = address.ip().to_string();
    Endpoint {
        address,
        workload: Some(pod(&format!("pod-{ip}"), &[&ip], version)),
        labels: None,
        locality: None,
        readiness: Readiness::Ready,
    }
}

/// A service `<namespace>/<name>` with one port.
pub(crate) fn service(
    (namespace, name): (&str, &str),
    address: &str,
    (port, protocol): (u16, Protocol),
    endpoints: Vec<Endpoint>,
) -> Service {
    Service {
        key: ServiceKey { namespace: namespace.into(), name: name.into() },
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        addresses: vec![address.parse().unwrap()],
        kind: ServiceKind::ClusterIp,
        distribution: None,
        created: 0,
        ports: vec![ServicePort { port, name: "".into(), protocol, endpoints: endpoints.into() }],
    }
}

/// Subsets `v1`, `v2`, ... by the label `version`, all with one balancer.
pub(crate) fn rule(host: &str, versions: &[&str], balancer: LoadBalancer) -> DestinationRule {
    let policy = TrafficPolicy { load_balancer: balancer, ..TrafficPolicy::default() };
    DestinationRule {
        object: object("DestinationRule", "rule"),
        host: HostPattern::parse(host),
        visibility: Visibility::Everyone,
        workload_selector: Default::default(),
        policy: policy.clone(),
        port_policies: Default::default(),
        subsets: versions
            .iter()
            .map(|version| Subset {
                name: (*version).into(),
                labels: [("version".into(), (*version).into())].into(),
                policy: policy.clone(),
                port_policies: Default::default(),
            })
            .collect(),
    }
}

/// Names an object in `shop`.
pub(crate) fn object(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: kind.into(), namespace: "shop".into(), name: name.into() }
}

/// A snapshot of these, indexed as the compiler does it. `pods` are the clients; endpoints' pods
/// are added by themselves.
pub(crate) fn snapshot(
    pods: &[Arc<Workload>],
    services: Vec<Service>,
    virtual_services: Vec<VirtualService>,
    rules: Vec<DestinationRule>,
) -> Arc<Snapshot> {
    let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
    let endpoints = services.iter().flat_map(|service| &service.ports);
    let behind =
        endpoints.flat_map(|port| port.endpoints.iter()).filter_map(|e| e.workload.clone());
    for pod in pods.iter().cloned().chain(behind) {
        for ip in &pod.ips {
            snapshot.workloads_by_ip.insert(*ip, Arc::clone(&pod));
        }
        snapshot.workloads_by_uid.insert(Arc::clone(&pod.uid), pod);
    }
    for service in services.into_iter().map(Arc::new) {
        for ip in &service.addresses {
            snapshot.services_by_ip.insert(*ip, Arc::clone(&service));
        }
        snapshot.services_by_host.insert(Arc::clone(&service.hostname), Arc::clone(&service));
        snapshot.services.insert(service.key.clone(), service);
    }
    for (index, found) in virtual_services.into_iter().enumerate() {
        for host in &found.hosts {
            match host {
                HostPattern::Exact(name) => snapshot
                    .virtual_services_by_host
                    .entry(Arc::clone(name))
                    .or_default()
                    .push(index),
                _ => snapshot.virtual_services_by_wildcard.push((host.clone(), index)),
            }
        }
        snapshot.virtual_services.push(Arc::new(found));
    }
    snapshot
        .virtual_services_by_wildcard
        .sort_by_key(|(host, at)| (std::cmp::Reverse(host.specificity()), *at));
    let mut by_namespace: FxHashMap<Arc<str>, Vec<Arc<DestinationRule>>> = FxHashMap::default();
    for rule in rules {
        let namespace = Arc::clone(&rule.object.namespace);
        by_namespace.entry(namespace).or_default().push(Arc::new(rule));
    }
    snapshot.destination_rules = by_namespace;
    Arc::new(snapshot)
}
