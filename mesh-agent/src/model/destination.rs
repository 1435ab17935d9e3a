//! What a destination of a route comes to for one client: the service, its port, the subset, and the
//! policy that holds for them. HTTP requests and other connections ask here alike.
//!
//! Source: istio-surface 1.1.1 and 1.2.1.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{
    Client, LoadBalancer, Mirror, Service, ServiceKey, ServiceKind, ServicePort, Snapshot, Subset,
    TrafficPolicy, WeightedDestination,
};

/// A destination as a route names it.
#[derive(Clone, Copy, Debug)]
pub struct NamedDestination<'a> {
    service: Option<&'a ServiceKey>,
    subset: Option<&'a str>,
    port: Option<u16>,
}

impl<'a> From<&'a WeightedDestination> for NamedDestination<'a> {
    fn from(to: &'a WeightedDestination) -> Self {
        Self { service: to.service.as_ref(), subset: to.subset.as_deref(), port: to.port }
    }
}

impl<'a> From<&'a Mirror> for NamedDestination<'a> {
    fn from(to: &'a Mirror) -> Self {
        Self { service: to.service.as_ref(), subset: to.subset.as_deref(), port: to.port }
    }
}

/// The service, the number of its port and the subset that a route names.
pub type FoundDestination<'a> = (&'a Arc<Service>, u16, Option<&'a Subset>);

/// A service port, or a subset of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct ServiceTarget<'a> {
    /// The service.
    pub service: &'a Arc<Service>,
    /// Its port.
    pub port: &'a ServicePort,
    /// The subset, if the route names one.
    pub subset: Option<&'a Subset>,
    /// What holds for it.
    pub policy: &'a TrafficPolicy,
}

impl ServiceTarget<'_> {
    /// Whether the address that the client dialled is the endpoint: `resolution: NONE`, or `simple:
    /// PASSTHROUGH` of a `ServiceEntry`. A virtual address of the cluster's own is nothing that could
    /// be dialled in the mesh: there PASSTHROUGH is a choice at random.
    pub fn is_dialled(&self) -> bool {
        let passes = self.policy.load_balancer == LoadBalancer::Passthrough;
        self.service.is_dialled() || passes && self.service.external().is_some()
    }
}

impl Snapshot {
    /// What a route names, aliases followed; `None`: there is no such service or subset. `addressed`: the
    /// port that the client did, for routes that name none of several.
    pub fn named<'a>(
        &'a self,
        to: &NamedDestination<'_>,
        client: Client<'_>,
        addressed: u16,
    ) -> Option<FoundDestination<'a>> {
        let service = self.destination(to.service?, client.namespace)?;
        let service = self.unaliased(service, client.namespace);
        let port = match (to.port, &*service.ports) {
            (Some(port), _) => port,
            (None, [only]) => only.port,
            (None, _) => addressed,
        };
        let subset = match to.subset {
            Some(name) => Some(self.subset(service, client, name)?),
            None => None,
        };
        Some((service, port, subset))
    }

    /// Whether a route would take a client to a wrong place. Of some destinations only a client knows an
    /// address, one that asked for them and dialled it: of an `ExternalName` for a host outside the mesh,
    /// and of a service whose endpoint is what was dialled. `asked`: the service that this client asked
    /// for. An address outside may be the destination's all the same, one of a Service is not.
    pub fn misleads(
        &self,
        found: FoundDestination<'_>,
        client: Client<'_>,
        asked: Option<&Service>,
        dialled: SocketAddr,
    ) -> bool {
        if asked.is_some_and(|asked| asked.key == found.0.key) {
            return false;
        }
        let is_dialled = || self.target(found, client).is_some_and(|target| target.is_dialled());
        matches!(found.0.kind, ServiceKind::ExternalName(_))
            || self.services_by_ip.contains_key(&dialled.ip()) && is_dialled()
    }

    /// A service port with the policy that holds for it; `None`: the service has no such port.
    pub fn target<'a>(
        &'a self,
        (service, port, subset): FoundDestination<'a>,
        client: Client<'_>,
    ) -> Option<ServiceTarget<'a>> {
        let port = service.port(port)?;
        let rule = self.destination_rule(service, client);
        let policy = rule.map_or(TrafficPolicy::of_mesh(), |rule| rule.policy(subset, port.port));
        Some(ServiceTarget { service, port, subset, policy })
    }
}
