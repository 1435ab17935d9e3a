//! Workloads: pods with an identity.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::locality::topology;
use super::{Locality, PeerPolicy, SpiffeId};

/// `namespace/name` of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
}

impl std::fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether all of the `wanted` labels are among these, as Kubernetes' `matchLabels` asks.
pub(super) fn has_all(
    labels: &BTreeMap<Arc<str>, Arc<str>>,
    wanted: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What of a pod's traffic stays outside the mesh
/// (annotations `traffic.sidecar.istio.io/exclude*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureRules {
    /// `excludeOutboundPorts`.
    pub exclude_outbound_ports: Vec<u16>,
    /// `excludeInboundPorts`.
    pub exclude_inbound_ports: Vec<u16>,
    /// `excludeOutboundIPRanges`.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Ports that the kubelet connects to: probes and lifecycle hooks.
    pub probed_ports: Vec<u16>,
}

/// One pod, on any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Namespace and name.
    pub name: WorkloadName,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// Where that is: by its own label `istio-locality`, else by its node's labels; `None`: not known.
    pub locality: Option<Arc<Locality>>,
    /// Identity, from namespace and `spec.serviceAccountName`.
    pub identity: SpiffeId,
    /// `status.podIPs`. Empty until the network is there.
    pub ips: Vec<IpAddr>,
    /// Pod labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `spec.hostNetwork`: never captured.
    pub host_network: bool,
    /// Labels say that it belongs in the mesh.
    pub selected: bool,
    /// Labels say so, and it can never be in it: why, in words that follow "it".
    pub unfit: Option<&'static str>,
    /// Its node announced that it is in the mesh: tunnels may be opened to it.
    pub enrolled: bool,
    /// `status.phase` is `Succeeded` or `Failed`: its address may belong to another pod.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Exclusions.
    pub capture: CaptureRules,
    /// Effective `PeerAuthentication`.
    pub peer_policy: PeerPolicy,
}

/// A client, as far as a `DestinationRule` looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Namespace of its pod.
    pub namespace: &'a str,
    /// Labels of its pod; `None`: of a pod that no rule names by labels.
    pub labels: Option<&'a BTreeMap<Arc<str>, Arc<str>>>,
}

impl<'a> Client<'a> {
    /// Any client of a namespace that no rule names by labels.
    pub fn of_namespace(namespace: &'a str) -> Self {
        Self { namespace, labels: None }
    }

    /// Whether its pod has all of these labels.
    pub fn has(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        labels.is_empty() || self.labels.is_some_and(|own| has_all(own, labels))
    }
}

impl Workload {
    /// Itself as a client.
    pub fn client(&self) -> Client<'_> {
        Client { namespace: &self.name.namespace, labels: Some(&self.labels) }
    }

    /// Whether it has all of these labels.
    pub fn has_labels(&self, wanted: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        has_all(&self.labels, wanted)
    }

    /// Its label, or what its node says of where it is, as `failoverPriority` sees it; empty without.
    pub fn topology(&self, key: &str) -> &str {
        topology(key, (self.locality.as_deref(), &self.node), Some(&self.labels))
    }

    /// The owning controller's name as `canonical-name` would give it: label
    /// `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, else the pod's name.
    pub fn canonical_name(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .iter()
            .find_map(|key| self.labels.get(*key))
            .map_or(&self.name.name, |value| value)
    }
}
