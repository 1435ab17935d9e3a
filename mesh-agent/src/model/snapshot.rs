//! The snapshot: everything that one generation of configuration says, indexed for the data path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::workload::has_all;
use super::{
    Client, DestinationRule, ExternalServices, HostPattern, LocalitySetting, ObjectRef, RateLimit,
    Resolution, Selection, Service, ServiceKey, ServiceKind, ServicePort, Subset, VirtualService,
    Workload,
};

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Trust domain of identities in this cluster.
    pub trust_domain: Arc<str>,
    /// DNS suffix of services.
    pub cluster_domain: Arc<str>,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: Arc<str>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
        }
    }
}

/// What happens to connections to an address of which the mesh knows neither a pod nor a service
/// (`meshConfig.outboundTrafficPolicy.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// They are made.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// A security object that is not enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unenforced {
    /// Which one.
    pub object: ObjectRef,
    /// Namespace of the pods that it is meant for; `None`: all of the mesh.
    pub namespace: Option<Arc<str>>,
    /// Labels that they have.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
}

/// One generation of compiled configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each change.
    pub generation: u64,
    /// Mesh-wide settings.
    pub mesh: MeshSettings,
    /// Whether pods reach what is outside the mesh.
    pub outbound: OutboundPolicy,
    /// What becomes of localities where neither a `DestinationRule` nor a Service says
    /// (`meshConfig.localityLbSetting`).
    pub locality: Arc<LocalitySetting>,
    /// Which pods belong in the mesh.
    pub selection: Selection,
    /// Pods by address; finished pods and host-network pods are not here.
    pub workloads_by_ip: FxHashMap<IpAddr, Arc<Workload>>,
    /// Pods by UID.
    pub workloads_by_uid: FxHashMap<Arc<str>, Arc<Workload>>,
    /// Services.
    pub services: FxHashMap<ServiceKey, Arc<Service>>,
    /// Services by virtual address.
    pub services_by_ip: FxHashMap<IpAddr, Arc<Service>>,
    /// Services of `ServiceEntry` objects, by whatever they are found by.
    pub external: ExternalServices,
    /// Services by full host name; of several `ServiceEntry` objects' the oldest, whoever sees it.
    pub services_by_host: FxHashMap<Arc<str>, Arc<Service>>,
    /// Service ports that speak HTTP or are undeclared, of any service: on these a `Host` may choose
    /// the service, whatever address was dialled.
    pub http_ports: FxHashSet<u16>,
    /// Headless services' endpoints: which service a pod `ip:target port` answers for, if one only.
    pub headless_by_endpoint: FxHashMap<SocketAddr, (ServiceKey, u16)>,
    /// Services whose `tcp` ports pods of an endpoint's node reach past the agent.
    pub direct: FxHashSet<ServiceKey>,
    /// Virtual services bound to the mesh, oldest first (then by name, then namespace).
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// Virtual services by exact host: indexes into `virtual_services`, oldest first.
    pub virtual_services_by_host: FxHashMap<Arc<str>, Vec<usize>>,
    /// Indexes of those with a wildcard host, most specific first, then oldest first.
    pub virtual_services_by_wildcard: Vec<(HostPattern, usize)>,
    /// Virtual services in a version whose destinations were all there when it came into force: the
    /// one that stays when a newer version misses some. Only `config` looks at this.
    pub sound_virtual_services: FxHashSet<ObjectRef>,
    /// Destination rules by namespace, most specific host first, those for some clients before those
    /// for all.
    pub destination_rules: FxHashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
    /// Limits on requests by service, the first that counts a request first.
    pub rate_limits: FxHashMap<ServiceKey, Vec<Arc<RateLimit>>>,
    /// Security objects that are not enforced, and for which pods they are meant.
    pub unenforced: Vec<Unenforced>,
}

impl Snapshot {
    /// The Kubernetes Service and port behind a virtual address.
    pub fn service_at(&self, address: SocketAddr) -> Option<(&Arc<Service>, &ServicePort)> {
        let service = self.services_by_ip.get(&address.ip())?;
        Some((service, service.port(address.port())?))
    }

    /// The service and its port that a dialled address stands for, to clients in `namespace`: a
    /// virtual address, an endpoint of a headless service, or an address of a `ServiceEntry`.
    pub fn dialled_service(
        &self,
        dialled: SocketAddr,
        namespace: &str,
    ) -> Option<(&Arc<Service>, u16)> {
        if let Some((service, port)) = self.service_at(dialled) {
            return Some((service, port.port));
        }
        if let Some((key, port)) = self.headless_by_endpoint.get(&dialled) {
            return Some((self.services.get(key)?, *port));
        }
        Some((self.external.at(dialled, namespace)?, dialled.port()))
    }

    /// Whether the mesh knows nothing of this address: neither a pod nor a Kubernetes Service has it.
    /// Who asks has seen before that no `ServiceEntry` says what becomes of the connection.
    pub fn is_outside(&self, address: SocketAddr) -> bool {
        !self.services_by_ip.contains_key(&address.ip())
            && !self.workloads_by_ip.contains_key(&address.ip())
            && !self.headless_by_endpoint.contains_key(&address)
    }

    /// Whether no connection to this address is to be made: it is outside, and only what is known may
    /// be reached.
    pub fn blocks(&self, address: SocketAddr) -> bool {
        self.outbound == OutboundPolicy::RegistryOnly && self.is_outside(address)
    }

    /// Whether the kernel may make connections to this address by itself, as the mesh has no part in
    /// them.
    pub fn leaves_alone(&self, address: SocketAddr) -> bool {
        self.outbound == OutboundPolicy::AllowAny
            && self.is_outside(address)
            && !self.external.claims(address)
    }

    /// What is meant to protect a pod with these labels and is not enforced, if there is something. By
    /// labels, since a pod that starts is asked for before its object is here.
    pub fn unprotected(
        &self,
        namespace: &str,
        labels: &BTreeMap<Arc<str>, Arc<str>>,
    ) -> Option<&ObjectRef> {
        let is_for = |found: &&Unenforced| {
            found.namespace.as_ref().is_none_or(|of| **of == *namespace)
                && has_all(labels, &found.selector)
        };
        self.unenforced.iter().find(is_for).map(|found| &found.object)
    }

    /// The virtual service that owns the HTTP requests for `host` (lower case, full name) of clients
    /// in `namespace`.
    pub fn virtual_service(&self, host: &str, namespace: &str) -> Option<&Arc<VirtualService>> {
        self.owner(host, namespace, |found| !found.http.is_empty())
    }

    /// The virtual service that owns the other connections to `host`.
    pub fn l4_virtual_service(&self, host: &str, namespace: &str) -> Option<&Arc<VirtualService>> {
        self.owner(host, namespace, |found| !found.l4.is_empty())
    }

    fn owner(
        &self,
        host: &str,
        namespace: &str,
        has_rules: fn(&VirtualService) -> bool,
    ) -> Option<&Arc<VirtualService>> {
        let visible = |index: &usize| {
            let found = self.virtual_services.get(*index);
            found.filter(|found| has_rules(found) && found.visibility.includes(namespace))
        };
        let exact = self.virtual_services_by_host.get(host);
        if let Some(found) = exact.and_then(|indexes| indexes.iter().find_map(visible)) {
            return Some(found);
        }
        self.virtual_services_by_wildcard
            .iter()
            .filter(|(pattern, _)| pattern.matches(host))
            .find_map(|(_, index)| visible(index))
    }

    /// The destination rule for a service, as `client` sees it: of the client's namespace first, then
    /// of the service's, then of the root namespace (istio-surface 1.2.1). For one host, a rule that
    /// selects the client goes before one for all.
    pub fn destination_rule(
        &self,
        service: &Service,
        client: Client<'_>,
    ) -> Option<&Arc<DestinationRule>> {
        let root = &*self.mesh.root_namespace;
        let own = (client.namespace != root).then_some(client.namespace);
        [own, Some(&*service.key.namespace), Some(root)].into_iter().flatten().find_map(|place| {
            let at_home = place == client.namespace;
            let is_for = |rule: &DestinationRule| {
                if rule.workload_selector.is_empty() {
                    at_home || rule.visibility.includes(client.namespace)
                } else {
                    at_home && client.has(&rule.workload_selector)
                }
            };
            let rules = self.destination_rules.get(place)?;
            rules.iter().find(|rule| rule.host.matches(&service.hostname) && is_for(rule))
        })
    }

    /// The service whose full host name this is, whoever sees it.
    pub fn service_by_host(&self, host: &str) -> Option<&Arc<Service>> {
        self.services_by_host.get(host)
    }

    /// The service that a destination of this name means: one of that name, or whose wildcard covers
    /// it; whoever sees it.
    pub fn known_service(&self, host: &str) -> Option<&Arc<Service>> {
        self.service_by_host(host).or_else(|| self.external.wildcards(host).next())
    }

    /// The service of exactly this host for clients in `namespace`.
    pub fn service_for(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        match self.services_by_host.get(host) {
            Some(found) if found.external().is_some() => self.external.named(host, namespace),
            found => found,
        }
    }

    /// The service itself; of an `ExternalName` for a host that clients in `namespace` find in the mesh,
    /// the service of that host. An alias of any other host stays one.
    pub fn unaliased<'a>(&'a self, service: &'a Arc<Service>, namespace: &str) -> &'a Arc<Service> {
        /// Aliases of aliases; a circle ends here.
        const MOST: usize = 8;
        let mut found = service;
        for _ in 0..MOST {
            let ServiceKind::ExternalName(host) = &found.kind else { break };
            let Some(next) = self.service_for(host, namespace) else { break };
            found = next;
        }
        found
    }

    /// The service that a route names by its key: for clients that do not see that one, the one of
    /// the same host that they see.
    pub fn destination(&self, key: &ServiceKey, namespace: &str) -> Option<&Arc<Service>> {
        let found = self.services.get(key)?;
        match found.is_visible(namespace) {
            true => Some(found),
            false => self.external.named(&found.hostname, namespace),
        }
    }

    /// Names that are to be resolved for `ServiceEntry` objects in force.
    pub fn names(&self) -> BTreeSet<Arc<str>> {
        let of = |service: &Arc<Service>| match service.external().map(|found| &found.resolution) {
            Some(Resolution::Dns { names, .. }) => names.to_vec(),
            Some(Resolution::Dialled | Resolution::Static) | None => Vec::new(),
        };
        self.services.values().flat_map(of).collect()
    }

    /// The labels of a subset, from the rule that holds for this client.
    pub fn subset<'a>(
        &'a self,
        service: &Service,
        client: Client<'_>,
        name: &str,
    ) -> Option<&'a Subset> {
        self.destination_rule(service, client)?.subset(name)
    }
}
