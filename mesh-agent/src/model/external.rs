//! Services that are no Kubernetes Services (Istio `ServiceEntry`), and the ways to find them: by
//! host, by wildcard, by an address that was given to them, by one of their endpoints', by port.
//!
//! Invariant: who may not see a service (`exportTo`) does not find it; nor does anybody one whose
//! names have not been resolved yet, so that its first moments are as if it were not there.
//! Source: istio-surface 1.4.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Endpoint, HostPattern, ObjectRef, Protocol, Service, ServiceKind, ServicePort, Visibility,
};

/// What a service of a `ServiceEntry` has beside what every service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The object.
    pub object: ObjectRef,
    /// `exportTo`.
    pub visibility: Visibility,
    /// `location: MESH_INTERNAL`.
    pub is_internal: bool,
    /// `resolution`.
    pub resolution: Resolution,
    /// Those of `addresses` that are ranges.
    pub ranges: Vec<IpNet>,
    /// `subjectAltNames`: where a `DestinationRule` has the agent speak TLS and names none itself, the
    /// server's certificate must have one of them.
    pub subject_alt_names: Arc<[Arc<str>]>,
}

/// Where the addresses of endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// `NONE`: the address that the client dialled is the endpoint.
    Dialled,
    /// `STATIC`.
    Static,
    /// `DNS` and `DNS_ROUND_ROBIN`.
    Dns {
        /// Names to resolve, in lower case.
        names: Arc<[Arc<str>]>,
        /// One of them has not been asked for yet.
        pending: bool,
    },
}

/// All of them, indexed. Lists are in order of age: the oldest that a client sees is its own.
#[derive(Clone, Debug, Default)]
pub struct ExternalServices {
    by_host: FxHashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Most specific first, then oldest first.
    by_wildcard: Vec<(HostPattern, Arc<Service>)>,
    /// By an address of theirs and a port.
    by_address: FxHashMap<SocketAddr, Vec<Arc<Service>>>,
    /// Longest first, then oldest first.
    by_range: Vec<(IpNet, Arc<Service>)>,
    /// Those without an address of their own, by an endpoint's address and a service port that is not
    /// HTTP's: where a client goes that has resolved the name by itself. Not by pods: whoever dials
    /// one means that one.
    by_endpoint: FxHashMap<SocketAddr, Vec<Arc<Service>>>,
    /// Addresses of endpoints, also with the port that clients dial.
    endpoints: FxHashSet<SocketAddr>,
    /// Those without an address of their own, by ports that are neither HTTP's nor TLS's.
    by_port: FxHashMap<u16, Vec<Arc<Service>>>,
    /// Ports on which the server name may choose the service.
    sni_ports: FxHashSet<u16>,
}

// === impl Service, of a ServiceEntry ===

impl Service {
    /// What a `ServiceEntry` says beyond; `None` for a Kubernetes Service.
    pub fn external(&self) -> Option<&External> {
        match &self.kind {
            ServiceKind::External(external) => Some(external),
            ServiceKind::ClusterIp | ServiceKind::Headless | ServiceKind::ExternalName(_) => None,
        }
    }

    /// Whether the address that a client dialled is the endpoint, whatever it is.
    pub fn is_dialled(&self) -> bool {
        self.external().is_some_and(|external| external.resolution == Resolution::Dialled)
    }

    /// Whether clients in `namespace` see it.
    pub fn is_visible(&self, namespace: &str) -> bool {
        self.external().is_none_or(|external| external.visibility.includes(namespace))
    }

    /// The name that routes go by for a client that asked for `host`: that, where the service's own
    /// is a wildcard.
    pub fn name_for<'a>(&'a self, host: &'a str) -> &'a str {
        match self.hostname.starts_with('*') && !host.is_empty() {
            true => host,
            false => &self.hostname,
        }
    }
}

impl External {
    fn is_pending(&self) -> bool {
        matches!(self.resolution, Resolution::Dns { pending: true, .. })
    }
}

// === impl ExternalServices ===

impl ExternalServices {
    /// Adds a service, the oldest first. [`Self::sort`] is to follow the last.
    pub fn insert(&mut self, service: &Arc<Service>) {
        let Some(external) = service.external() else { return };
        match HostPattern::parse(&service.hostname) {
            HostPattern::Exact(host) => {
                self.by_host.entry(host).or_default().push(Arc::clone(service));
            }
            wildcard => self.by_wildcard.push((wildcard, Arc::clone(service))),
        }
        self.by_range.extend(external.ranges.iter().map(|net| (*net, Arc::clone(service))));
        let has_address = !service.addresses.is_empty() || !external.ranges.is_empty();
        for port in &service.ports {
            for ip in &service.addresses {
                let address = SocketAddr::new(*ip, port.port);
                self.by_address.entry(address).or_default().push(Arc::clone(service));
            }
            for Endpoint { address, .. } in port.endpoints.iter() {
                self.endpoints.extend([*address, SocketAddr::new(address.ip(), port.port)]);
            }
            if matches!(port.protocol, Protocol::Tls | Protocol::Detect) {
                self.sni_ports.insert(port.port);
            }
            if !has_address && !port.protocol.is_http() {
                self.claim(service, port);
            }
        }
    }

    /// Notes where clients go that know no address of the service's own.
    fn claim(&mut self, service: &Arc<Service>, port: &ServicePort) {
        for endpoint in port.endpoints.iter().filter(|endpoint| endpoint.workload.is_none()) {
            let address = SocketAddr::new(endpoint.address.ip(), port.port);
            let claims = self.by_endpoint.entry(address).or_default();
            if !claims.iter().any(|claim| claim.key == service.key) {
                claims.push(Arc::clone(service));
            }
        }
        if port.protocol != Protocol::Tls {
            self.by_port.entry(port.port).or_default().push(Arc::clone(service));
        }
    }

    /// Puts what has an order of its own into it; age decides among equals.
    pub fn sort(&mut self) {
        self.by_wildcard.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.specificity()));
        self.by_range.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
    }

    /// Services of exactly this host, the oldest first, whoever sees them.
    pub fn of_host(&self, host: &str) -> &[Arc<Service>] {
        self.by_host.get(host).map_or(&[], Vec::as_slice)
    }

    /// The service of exactly this host for clients in `namespace`.
    pub fn named(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        found(self.of_host(host), namespace)
    }

    /// Whether the host is that of a service whose names have not been resolved yet: routes of the host
    /// wait with it.
    pub fn is_awaited(&self, host: &str, namespace: &str) -> bool {
        let mut all = self.of_host(host).iter().filter_map(|service| service.external());
        all.any(|external| external.is_pending() && external.visibility.includes(namespace))
    }

    /// The service whose wildcard covers this host.
    pub fn covering(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.wildcards(host).find(|service| is_found(service, namespace))
    }

    /// Services whose wildcard covers this host, whoever sees them.
    pub fn wildcards(&self, host: &str) -> impl Iterator<Item = &Arc<Service>> {
        let covers = move |(pattern, _): &&(HostPattern, _)| pattern.matches(host);
        self.by_wildcard.iter().filter(covers).map(|(_, service)| service)
    }

    /// Services that an address and port was given to, the oldest first, whoever sees them.
    pub fn given(&self, address: SocketAddr) -> &[Arc<Service>] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }

    /// The service that an address was given to, or that has it in a range.
    pub fn at(&self, address: SocketAddr, namespace: &str) -> Option<&Arc<Service>> {
        let given = self.by_address.get(&address).and_then(|all| found(all, namespace));
        let ranged = || {
            let mut all = self.by_range.iter().filter(|(net, _)| net.contains(&address.ip()));
            all.find_map(|(_, service)| {
                (service.port(address.port()).is_some() && is_found(service, namespace))
                    .then_some(service)
            })
        };
        given.or_else(ranged)
    }

    /// The service of which this is an endpoint's address, with the port that clients dial. For
    /// connections that neither a Host nor a server name tells apart.
    pub fn with_endpoint(&self, address: SocketAddr, namespace: &str) -> Option<&Arc<Service>> {
        found(self.by_endpoint.get(&address)?, namespace)
    }

    /// The first `wanted` service that takes connections to this port, whatever their address.
    pub fn on_port(
        &self,
        port: u16,
        namespace: &str,
        wanted: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        let mut all = self.by_port.get(&port)?.iter();
        all.find(|service| wanted(service) && is_found(service, namespace))
    }

    /// Whether the server name may choose the service on this port.
    pub fn has_sni(&self, port: u16) -> bool {
        self.sni_ports.contains(&port)
    }

    /// Whether some service has this address, or goes there.
    pub fn claims(&self, address: SocketAddr) -> bool {
        self.by_address.contains_key(&address)
            || self.endpoints.contains(&address)
            || self.by_range.iter().any(|(net, service)| {
                net.contains(&address.ip()) && service.port(address.port()).is_some()
            })
    }
}

fn found<'a>(all: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    all.iter().find(|service| is_found(service, namespace))
}

fn is_found(service: &Service, namespace: &str) -> bool {
    service
        .external()
        .is_some_and(|external| !external.is_pending() && external.visibility.includes(namespace))
}
