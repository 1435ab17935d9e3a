//! `Service` and `EndpointSlice` (istio-surface 1.0, "Protocol selection"). Pure.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Scope, service_host};
use crate::config::api::{self, Conditions, EndpointSlice, Metadata, SlicePort};
use crate::config::diagnostic::Report;
use crate::model::{Protocol, Readiness, ServiceKind, TrafficDistribution, WorkloadName};

/// Ports whose protocols speak server first or are not HTTP, if nothing else is said: SMTP, DNS,
/// MySQL, MongoDB (Istio, `pilot/pkg/serviceregistry/kube/conversion.go`).
const WELL_KNOWN_TCP: [u16; 4] = [25, 53, 3306, 27017];

/// Says what `trafficDistribution` does, on clusters that do not have the field yet.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// One `Service`, without its endpoints.
#[derive(Debug)]
pub(in crate::config) struct ServiceFacts {
    /// Full host name.
    pub(in crate::config) host: Arc<str>,
    /// How it is addressed.
    pub(in crate::config) kind: ServiceKind,
    /// Cluster, external and load balancer addresses, each with the field that has it.
    pub(in crate::config) addresses: Vec<(IpAddr, &'static str)>,
    /// TCP ports.
    pub(in crate::config) ports: Vec<PortFacts>,
    /// `publishNotReadyAddresses`.
    pub(in crate::config) publish_not_ready: bool,
    /// `sessionAffinity: ClientIP`.
    pub(in crate::config) has_affinity: bool,
    /// `trafficDistribution`, or the annotation that came before it.
    pub(in crate::config) distribution: Option<TrafficDistribution>,
}

/// One port.
#[derive(Debug)]
pub(in crate::config) struct PortFacts {
    /// Number.
    pub(in crate::config) port: u16,
    /// Name, by which slices refer to it.
    pub(in crate::config) name: Arc<str>,
    /// What it speaks.
    pub(in crate::config) protocol: Protocol,
}

/// One `EndpointSlice`.
#[derive(Debug)]
pub(in crate::config) struct SliceFacts {
    /// The service, in the slice's namespace.
    pub(in crate::config) service: Arc<str>,
    /// Port names with the ports that endpoints listen on.
    pub(in crate::config) ports: Vec<(Arc<str>, u16)>,
    /// Endpoints.
    pub(in crate::config) endpoints: Vec<EndpointFacts>,
}

/// One endpoint.
#[derive(Debug)]
pub(in crate::config) struct EndpointFacts {
    /// Addresses; Kubernetes writes one.
    pub(in crate::config) addresses: Vec<IpAddr>,
    /// What its conditions come to.
    pub(in crate::config) readiness: Readiness,
    /// `targetRef`, if it is a pod.
    pub(in crate::config) pod: Option<WorkloadName>,
    /// `zone`.
    pub(in crate::config) zone: Option<Arc<str>>,
}

/// Translates a service.
pub(in crate::config) fn service(
    service: api::Service,
    metadata: &Metadata,
    scope: &Scope<'_>,
    report: &mut Report,
) -> ServiceFacts {
    let spec = service.spec;
    let mut ports: Vec<PortFacts> = Vec::new();
    for (index, entry) in spec.ports.into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        if entry.port == 0 {
            report.error(format!("{field}.port"), "missing, or not a port");
            continue;
        }
        // Other transports are not captured.
        if !entry.protocol.is_empty() && !entry.protocol.eq_ignore_ascii_case("TCP") {
            continue;
        }
        if ports.iter().any(|other| other.port == entry.port) {
            report.error(format!("{field}.port"), format!("{} is there twice", entry.port));
            continue;
        }
        let protocol = protocol(entry.app_protocol.as_deref(), &entry.name, entry.port);
        ports.push(PortFacts { port: entry.port, name: entry.name, protocol });
    }
    let headless = spec.cluster_ip == "None" || spec.cluster_ips.iter().any(|ip| ip == "None");
    let kind = match spec.r#type.as_str() {
        "ExternalName" => {
            let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
            ServiceKind::ExternalName(name.to_ascii_lowercase().into())
        }
        _ if headless => ServiceKind::Headless,
        _ => ServiceKind::ClusterIp,
    };
    let mut addresses: Vec<(IpAddr, &'static str)> = Vec::new();
    for text in std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips) {
        match text.parse() {
            Ok(ip) => addresses.push((ip, "spec.clusterIPs")),
            Err(_) if text.is_empty() || text == "None" => {}
            Err(_) => report.error("spec.clusterIPs", format!("`{text}` is not an address")),
        }
    }
    addresses.extend(spec.external_ips.into_iter().map(|ip| (ip, "spec.externalIPs")));
    let balancers = service.status.load_balancer.ingress.iter().filter_map(|entry| entry.ip);
    addresses.extend(balancers.map(|ip| (ip, "status.loadBalancer.ingress")));
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|(ip, _)| seen.insert(*ip));
    ServiceFacts {
        host: service_host(&metadata.name, scope.namespace, &scope.mesh.cluster_domain).into(),
        kind,
        addresses,
        ports,
        publish_not_ready: spec.publish_not_ready_addresses,
        has_affinity: spec.session_affinity == "ClientIP",
        distribution: distribution(spec.traffic_distribution.as_deref(), metadata, report),
    }
}

/// The field first, as in Istio, where case counts in the field alone. The API server may take values
/// that the mesh does not know.
fn distribution(
    field: Option<&str>,
    metadata: &Metadata,
    report: &mut Report,
) -> Option<TrafficDistribution> {
    match field {
        None | Some("") => {}
        Some("PreferClose" | "PreferSameZone") => return Some(TrafficDistribution::PreferSameZone),
        Some("PreferSameNode") => return Some(TrafficDistribution::PreferSameNode),
        Some(other) => report.warning(
            "spec.trafficDistribution",
            format!("`{other}` is not supported yet, ignored"),
        ),
    }
    let value = metadata.annotations.get(DISTRIBUTION)?;
    match value.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(TrafficDistribution::PreferSameZone),
        "prefersamenode" => Some(TrafficDistribution::PreferSameNode),
        "any" | "" => None,
        _ => {
            let message = format!("`{value}` is not supported yet, ignored");
            report.warning(format!("metadata.annotations[{DISTRIBUTION}]"), message);
            None
        }
    }
}

/// What a port speaks: `appProtocol` if given, else the port's name, by the part before the first
/// `-`; case does not count. An unknown word is no declaration.
pub(super) fn protocol(app_protocol: Option<&str>, name: &str, port: u16) -> Protocol {
    let text = app_protocol.unwrap_or(name).to_ascii_lowercase();
    match text.as_str() {
        "kubernetes.io/h2c" => return Protocol::Http2,
        "kubernetes.io/ws" => return Protocol::Http,
        "kubernetes.io/wss" => return Protocol::Tls,
        // HTTP/1.1 or HTTP/2, unlike gRPC itself.
        text if text.starts_with("grpc-web") => return Protocol::Http,
        _ => {}
    }
    match text.split('-').next().unwrap_or_default() {
        "http" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" => Protocol::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => Protocol::Tcp,
        _ if WELL_KNOWN_TCP.contains(&port) => Protocol::Tcp,
        _ => Protocol::Detect,
    }
}

/// Translates a slice; `None` if it belongs to no service.
pub(in crate::config) fn slice(
    slice: EndpointSlice,
    metadata: &Metadata,
    report: &mut Report,
) -> Option<SliceFacts> {
    let Some(service) = EndpointSlice::service(&metadata.labels) else {
        let field = format!("metadata.labels[{}]", api::SERVICE_NAME);
        report.error(field, "missing: it ties the slice to its service");
        return None;
    };
    let namespace: Arc<str> = metadata.namespace.as_deref().unwrap_or("default").into();
    let tcp =
        |port: &SlicePort| port.protocol.is_empty() || port.protocol.eq_ignore_ascii_case("TCP");
    let ports = slice
        .ports
        .into_iter()
        .filter(tcp)
        .filter_map(|port| Some((port.name, port.port.filter(|port| *port > 0)?)))
        .collect();
    let endpoints = slice.endpoints.into_iter().map(|found| EndpointFacts {
        addresses: found.addresses,
        zone: found.zone.filter(|zone| !zone.is_empty()),
        readiness: readiness(&found.conditions),
        pod: found.target_ref.filter(|target| target.kind == "Pod").map(|target| WorkloadName {
            namespace: target.namespace.unwrap_or_else(|| Arc::clone(&namespace)),
            name: target.name,
        }),
    });
    Some(SliceFacts { service, ports, endpoints: endpoints.collect() })
}

/// What conditions come to (`discovery.k8s.io/v1`, EndpointConditions).
fn readiness(conditions: &Conditions) -> Readiness {
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    match (ready, serving && conditions.terminating.unwrap_or(false)) {
        (true, _) => Readiness::Ready,
        (false, true) => Readiness::Terminating,
        (false, false) => Readiness::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_is_declared_by_word_prefix_or_well_known_port() {
        let cases = [
            (None, "http", 80, Protocol::Http),
            (None, "http-web", 80, Protocol::Http),
            (None, "HTTP2-x", 80, Protocol::Http2),
            (None, "grpc", 80, Protocol::Grpc),
            (None, "grpc-web", 80, Protocol::Http),
            (None, "https", 80, Protocol::Tls),
            (None, "tls-a", 80, Protocol::Tls),
            (None, "redis", 80, Protocol::Tcp),
            (None, "httpfoo", 80, Protocol::Detect),
            (None, "", 8000, Protocol::Detect),
            (None, "", 3306, Protocol::Tcp),
            (None, "http", 3306, Protocol::Http),
            (Some("tcp"), "http", 80, Protocol::Tcp),
            (Some("HTTP"), "tcp", 80, Protocol::Http),
            (Some("kubernetes.io/h2c"), "", 80, Protocol::Http2),
            (Some("kubernetes.io/ws"), "", 80, Protocol::Http),
            (Some("kubernetes.io/wss"), "", 80, Protocol::Tls),
            (Some("something.example/else"), "http", 80, Protocol::Detect),
        ];
        for (app, name, port, expected) in cases {
            assert_eq!(protocol(app, name, port), expected, "{app:?} {name} {port}");
        }
    }
}
