//! How requests are spread over a service's endpoints (Istio `DestinationRule`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{HostPattern, ObjectRef, Visibility};

/// `trafficPolicy.loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancer {
    /// Power of two choices over active requests: Istio's default.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// The address that the client dialled.
    Passthrough,
}

/// Effective policy for one (subset, port): everything inherited is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Balancing.
    pub load_balancer: LoadBalancer,
    /// `connectionPool.tcp.connectTimeout`; Istio's mesh default is 10 s.
    pub connect_timeout: Duration,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self { load_balancer: LoadBalancer::default(), connect_timeout: Duration::from_secs(10) }
    }
}

/// `subsets[]`: endpoints by label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    /// Name that routes refer to.
    pub name: Arc<str>,
    /// All of these must be on the pod; empty selects every endpoint.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Policy of this subset on any port without an entry of its own.
    pub policy: TrafficPolicy,
    /// Policy by service port, where it differs.
    pub port_policies: BTreeMap<u16, TrafficPolicy>,
}

/// A compiled `DestinationRule` (those of one host and namespace merged, istio-surface 1.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// The oldest object it comes from.
    pub object: ObjectRef,
    /// Host or wildcard, expanded.
    pub host: HostPattern,
    /// `exportTo`.
    pub visibility: Visibility,
    /// Policy without subset on any port without an entry of its own.
    pub policy: TrafficPolicy,
    /// Policy by service port, where it differs.
    pub port_policies: BTreeMap<u16, TrafficPolicy>,
    /// Subsets by order of appearance.
    pub subsets: Vec<Subset>,
}

impl DestinationRule {
    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| &*subset.name == name)
    }

    /// Effective policy for a subset (or none) and service port.
    pub fn policy<'a>(&'a self, subset: Option<&'a Subset>, port: u16) -> &'a TrafficPolicy {
        match subset {
            Some(subset) => subset.port_policies.get(&port).unwrap_or(&subset.policy),
            None => self.port_policies.get(&port).unwrap_or(&self.policy),
        }
    }
}
