//! Services and their endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::locality::topology;
use super::workload::has_all;
use super::{External, Locality, TrafficDistribution, Workload};

/// `namespace/name` of a Kubernetes Service; for one of a `ServiceEntry` the name is its host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a port speaks: `appProtocol`, else the port name's prefix, else detection
/// (istio-surface 1.0, "Protocol selection").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Undeclared: look at the first bytes.
    Detect,
    /// HTTP/1.1 (HTTP/2 with prior knowledge is recognised by its preface).
    Http,
    /// HTTP/2 over cleartext, prior knowledge.
    Http2,
    /// gRPC, thus HTTP/2.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS that the application speaks itself; opaque here.
    Tls,
}

impl Protocol {
    /// Whether requests on this port are routed one by one without looking first.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

/// How a Service is addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Has virtual addresses.
    ClusterIp,
    /// `clusterIP: None`: clients resolve pod addresses.
    Headless,
    /// `type: ExternalName`.
    ExternalName(Arc<str>),
    /// Made known by a `ServiceEntry`.
    External(Box<External>),
}

/// One place that answers for a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the application listens.
    pub address: SocketAddr,
    /// The pod behind it, if it is one.
    pub workload: Option<Arc<Workload>>,
    /// Labels that a `ServiceEntry` gives it, in place of the pod's.
    pub labels: Option<Arc<BTreeMap<Arc<str>, Arc<str>>>>,
    /// Where a `ServiceEntry` says that it is, in place of the pod's; of no known pod also what its
    /// EndpointSlice says.
    pub locality: Option<Arc<Locality>>,
    /// Whether it takes new work.
    pub readiness: Readiness,
}

impl Endpoint {
    /// Whether it has all of these labels.
    pub fn has_labels(&self, wanted: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        wanted.is_empty() || self.own_labels().is_some_and(|own| has_all(own, wanted))
    }

    /// Where it is; `None`: not known.
    pub fn locality(&self) -> Option<&Locality> {
        let of_pod = || self.workload.as_ref()?.locality.as_deref();
        self.locality.as_deref().or_else(of_pod)
    }

    /// Its label, or what its node says of where it is, as `failoverPriority` sees it; empty without.
    pub fn topology(&self, key: &str) -> &str {
        let node = self.workload.as_ref().map_or("", |workload| &workload.node);
        topology(key, (self.locality(), node), self.own_labels())
    }

    fn own_labels(&self) -> Option<&BTreeMap<Arc<str>, Arc<str>>> {
        let own = self.labels.as_deref();
        own.or_else(|| self.workload.as_ref().map(|workload| &workload.labels))
    }
}

/// What an endpoint's conditions in its EndpointSlice come to, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// `ready` (or the Service has `publishNotReadyAddresses`).
    Ready,
    /// `terminating`, and still `serving`: used where no endpoint is ready, as kube-proxy does
    /// (KEP-1669).
    Terminating,
    /// Neither.
    NotReady,
}

/// Those among `endpoints` that new work goes to: the ready ones, or where none is, those that
/// terminate and still serve.
pub fn in_use<'a>(
    endpoints: impl Iterator<Item = &'a Endpoint> + Clone,
) -> impl Iterator<Item = &'a Endpoint> {
    let best = endpoints.clone().map(|endpoint| endpoint.readiness).min();
    let best = best.filter(|readiness| *readiness != Readiness::NotReady);
    endpoints.filter(move |endpoint| Some(endpoint.readiness) == best)
}

/// One port of a service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Service port, as clients address it.
    pub port: u16,
    /// Port name; empty if it has none.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// All endpoints, both families, in a stable order (by address).
    pub endpoints: Arc<[Endpoint]>,
}

/// A Kubernetes Service, or one host of a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `<name>.<namespace>.svc.<cluster domain>`, or the host of a `ServiceEntry`.
    pub hostname: Arc<str>,
    /// Cluster, external and load balancer addresses.
    pub addresses: Vec<IpAddr>,
    /// How it is addressed.
    pub kind: ServiceKind,
    /// Which endpoints it prefers, where no `DestinationRule` says.
    pub distribution: Option<TrafficDistribution>,
    /// `metadata.creationTimestamp`, seconds since the epoch.
    pub created: i64,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// The port that clients address by this number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }
}
