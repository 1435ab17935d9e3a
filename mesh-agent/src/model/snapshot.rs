//! The snapshot: everything that one generation of configuration says, indexed for the data path.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    DestinationRule, HostPattern, ObjectRef, Service, ServiceKey, ServicePort, Subset,
    VirtualService, Workload,
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

/// One generation of compiled configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each change.
    pub generation: u64,
    /// Mesh-wide settings.
    pub mesh: MeshSettings,
    /// Pods by address; finished pods and host-network pods are not here.
    pub workloads_by_ip: FxHashMap<IpAddr, Arc<Workload>>,
    /// Pods by UID.
    pub workloads_by_uid: FxHashMap<Arc<str>, Arc<Workload>>,
    /// Services.
    pub services: FxHashMap<ServiceKey, Arc<Service>>,
    /// Services by virtual address.
    pub services_by_ip: FxHashMap<IpAddr, Arc<Service>>,
    /// Services by full host name.
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
    /// Destination rules by namespace, most specific host first.
    pub destination_rules: FxHashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
}

impl Snapshot {
    /// The service and port behind a virtual address.
    pub fn service_at(&self, address: SocketAddr) -> Option<(&Arc<Service>, &ServicePort)> {
        let service = self.services_by_ip.get(&address.ip())?;
        Some((service, service.port(address.port())?))
    }

    /// Whether the mesh knows nothing of this address: neither a pod nor a service has it.
    pub fn is_outside(&self, address: SocketAddr) -> bool {
        !self.services_by_ip.contains_key(&address.ip())
            && !self.workloads_by_ip.contains_key(&address.ip())
            && !self.headless_by_endpoint.contains_key(&address)
    }

    /// The virtual service that owns `host` (lower case, full name) for clients in `namespace`.
    pub fn virtual_service(&self, host: &str, namespace: &str) -> Option<&Arc<VirtualService>> {
        let visible = |index: &usize| {
            self.virtual_services.get(*index).filter(|found| found.visibility.includes(namespace))
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

    /// The destination rule for a service, as seen from `client_namespace`: the client's namespace
    /// first, then the service's, then the root namespace (istio-surface 1.2.1).
    pub fn destination_rule(
        &self,
        service: &Service,
        client_namespace: &str,
    ) -> Option<&Arc<DestinationRule>> {
        let root = &*self.mesh.root_namespace;
        let own = (client_namespace != root).then_some(client_namespace);
        [own, Some(&*service.key.namespace), Some(root)].into_iter().flatten().find_map(|place| {
            self.destination_rules.get(place)?.iter().find(|rule| {
                rule.host.matches(&service.hostname)
                    && (place == client_namespace || rule.visibility.includes(client_namespace))
            })
        })
    }

    /// The service whose full host name this is.
    pub fn service_by_host(&self, host: &str) -> Option<&Arc<Service>> {
        self.services_by_host.get(host)
    }

    /// The labels of a subset, from the rule that holds for this client.
    pub fn subset<'a>(
        &'a self,
        service: &Service,
        client_namespace: &str,
        name: &str,
    ) -> Option<&'a Subset> {
        self.destination_rule(service, client_namespace)?.subset(name)
    }
}
