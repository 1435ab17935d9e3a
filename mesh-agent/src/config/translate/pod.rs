//! `Pod`: identity, addresses, exclusions from capture (annotations of istio-surface 1.10 and
//! DESIGN, section 3). Whether it is selected depends on its namespace: see `compile`. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::{Scope, network};
use crate::config::api::{Container, Labels, Metadata, Pod, PodSpec, PodStatus, Probe};
use crate::config::diagnostic::Report;
use crate::model::{
    CaptureRules, Locality, PeerPolicy, Readiness, Selection, SpiffeId, Workload, WorkloadName,
};

/// Set by the agent of the pod's node once it is in the mesh.
pub const ENROLLED: &str = "malha.dev/enrolled";
/// Present on pods that have a sidecar.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Opts a pod out; a label or an annotation.
const INJECT: &str = "sidecar.istio.io/inject";
/// Which application a pod is a part of, as Kubernetes recommends to label it.
const PART_OF: &str = "app.kubernetes.io/part-of";
/// A pod's own locality, in place of its node's.
const LOCALITY: &str = "istio-locality";
const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Istio's other capture annotations, with the value that says what happens anyway.
const NOT_YET: [(&str, &str); 5] = [
    ("traffic.sidecar.istio.io/includeInboundPorts", "*"),
    ("traffic.sidecar.istio.io/includeOutboundPorts", "*"),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", "*"),
    ("traffic.sidecar.istio.io/excludeInterfaces", ""),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", ""),
];
/// Runtime classes whose pods have a kernel of their own, which the node's programs do not see.
const SANDBOXED: [&str; 5] = ["gvisor", "runsc", "kata", "kata-qemu", "kata-containers"];

/// One pod.
#[derive(Debug)]
pub(in crate::config) struct PodFacts {
    /// Without what other objects decide: selection, peer policy, announcements.
    pub(in crate::config) workload: Workload,
    /// Whether it may be in the mesh.
    pub(in crate::config) mark: Mark,
    /// Its condition `Ready`; one that tells none, as in a folder, is.
    ready: bool,
}

impl PodFacts {
    /// As an endpoint of a service whose pods nobody else watches over.
    pub(in crate::config) fn readiness(&self) -> Readiness {
        match (self.ready, self.workload.terminating) {
            (true, false) => Readiness::Ready,
            (true, true) => Readiness::Terminating,
            (false, _) => Readiness::NotReady,
        }
    }
}

/// What a pod says itself of being in the mesh.
#[derive(Debug)]
pub(in crate::config) struct Mark {
    /// Opted out with `sidecar.istio.io/inject: "false"`.
    opted_out: bool,
    /// Why it can never be in the mesh, though labels may ask for it: the field, and in words.
    pub(in crate::config) unfit: Option<(&'static str, &'static str)>,
}

impl Mark {
    fn new(labels: &Labels, annotations: &Labels, runtime: &str) -> Self {
        let opts_out = |from: &Labels| from.get(INJECT).is_some_and(|value| &**value == "false");
        let opted_out = opts_out(labels) || opts_out(annotations) || is_own(labels);
        Self { opted_out, unfit: unfit(runtime, annotations) }
    }

    /// Whether labels ask for it to be in the mesh, and it has not opted out.
    pub(in crate::config) fn opted_in(
        &self,
        selection: &Selection,
        namespace: &str,
        labels: &Labels,
    ) -> bool {
        !self.opted_out && selection.wants(namespace, labels)
    }
}

/// A pod as its container runtime knows it, which is before the API server tells of its addresses, and
/// maybe of the pod at all.
#[derive(Clone, Copy, Debug)]
pub struct StartingPod<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Its annotations.
    pub annotations: &'a Labels,
    /// Its runtime's name.
    pub runtime: &'a str,
}

/// What to capture of a pod that starts; `None` if it is not selected.
pub fn starting(selection: &Selection, pod: StartingPod<'_>) -> Option<CaptureRules> {
    let mark = Mark::new(pod.labels, pod.annotations, pod.runtime);
    let selected = mark.opted_in(selection, pod.namespace, pod.labels) && mark.unfit.is_none();
    // What cannot be read of the annotations is reported when the pod's object comes.
    selected.then(|| capture(pod.annotations, &mut Report::new(None, None)))
}

/// Translates one.
pub(in crate::config) fn pod(
    pod: Pod,
    metadata: &Metadata,
    scope: &Scope<'_>,
    report: &mut Report,
) -> PodFacts {
    let name: Arc<str> = metadata.name.as_str().into();
    let namespace = Arc::clone(scope.namespace);
    // A folder's pod may lack what the API server would have filled in.
    let uid = metadata.uid.clone().filter(|uid| !uid.is_empty());
    let identity = SpiffeId {
        trust_domain: Arc::clone(&scope.mesh.trust_domain),
        namespace: Arc::clone(&namespace),
        service_account: account(&pod.spec).into(),
    };
    let annotations = &metadata.annotations;
    let workload = Workload {
        uid: uid.unwrap_or_else(|| format!("{namespace}/{name}").into()),
        name: WorkloadName { namespace, name },
        node: Arc::clone(&pod.spec.node_name),
        locality: own_locality(&metadata.labels).map(Arc::new),
        identity,
        ips: addresses(&pod.status),
        labels: metadata.labels.clone(),
        host_network: pod.spec.host_network,
        selected: false,
        unfit: None,
        enrolled: annotations.get(ENROLLED).is_some_and(|value| &**value == "true"),
        finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
        terminating: metadata.deletion_timestamp.is_some(),
        capture: CaptureRules {
            probed_ports: probed_ports(&pod.spec),
            ..capture(annotations, report)
        },
        peer_policy: PeerPolicy::default(),
    };
    let mark = Mark::new(&metadata.labels, annotations, &pod.spec.runtime_class_name);
    PodFacts { workload, mark, ready: is_ready(&pod.status) }
}

/// `region.zone.subzone`, since a label cannot have a `/`; where it has one all the same, as an object
/// of a folder may, that separates and dots are part of the names (Istio's `GetLocalityLabel`).
fn own_locality(labels: &Labels) -> Option<Locality> {
    let text = labels.get(LOCALITY)?;
    let locality = match text.contains('/') {
        true => Locality::parse(text),
        false => Locality::parse(&text.replace('.', "/")),
    };
    (!locality.is_empty()).then_some(locality)
}

/// Malha's own pods are never captured: an agent would wait for itself.
fn is_own(labels: &Labels) -> bool {
    labels.get(PART_OF).is_some_and(|value| &**value == "malha")
}

fn is_ready(status: &PodStatus) -> bool {
    let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready");
    ready.is_none_or(|condition| condition.status == "True")
}

fn account(spec: &PodSpec) -> &str {
    [&spec.service_account_name, &spec.service_account]
        .into_iter()
        .find(|name| !name.is_empty())
        .map_or("default", |name| name)
}

fn addresses(status: &PodStatus) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = status.pod_ips.iter().map(|entry| entry.ip).collect();
    if let Some(ip) = status.pod_ip.filter(|ip| !ips.contains(ip)) {
        ips.insert(0, ip);
    }
    ips
}

fn unfit(runtime: &str, annotations: &Labels) -> Option<(&'static str, &'static str)> {
    if annotations.contains_key(SIDECAR_STATUS) {
        return Some(("metadata.annotations[sidecar.istio.io/status]", "has a sidecar"));
    }
    let sandboxed = SANDBOXED.contains(&runtime);
    let why = "runs in a sandbox with a kernel of its own";
    sandboxed.then_some(("spec.runtimeClassName", why))
}

fn capture(annotations: &Labels, report: &mut Report) -> CaptureRules {
    for (key, harmless) in NOT_YET {
        if annotations.get(key).is_some_and(|value| &**value != harmless) {
            report.warning(annotation(key), "not supported yet, ignored");
        }
    }
    CaptureRules {
        exclude_outbound_ports: list(annotations, EXCLUDE_OUTBOUND_PORTS, "a port", port, report),
        exclude_inbound_ports: list(annotations, EXCLUDE_INBOUND_PORTS, "a port", port, report),
        exclude_outbound_ranges: list(
            annotations,
            EXCLUDE_OUTBOUND_RANGES,
            "an address range such as 10.0.0.0/8",
            network,
            report,
        ),
        probed_ports: Vec::new(),
    }
}

/// Ports of probes and lifecycle hooks, sorted. The API server has checked them.
fn probed_ports(spec: &PodSpec) -> Vec<u16> {
    let mut ports: Vec<u16> = Vec::new();
    for container in spec.containers.iter().chain(&spec.init_containers) {
        let lifecycle = container.lifecycle.as_ref();
        let probes = [
            container.liveness_probe.as_ref(),
            container.readiness_probe.as_ref(),
            container.startup_probe.as_ref(),
            lifecycle.and_then(|hooks| hooks.post_start.as_ref()),
            lifecycle.and_then(|hooks| hooks.pre_stop.as_ref()),
        ];
        ports.extend(probes.into_iter().flatten().flat_map(|probe| targets(probe, container)));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn targets(probe: &Probe, container: &Container) -> impl Iterator<Item = u16> {
    let targets = [&probe.http_get, &probe.tcp_socket, &probe.grpc];
    let own = targets.into_iter().flatten().filter(|target| target.host.is_empty());
    own.filter_map(|target| match target.port.as_ref()? {
        Value::String(text) => {
            let named = container.ports.iter().find(|port| port.name == *text);
            named.map(|port| port.container_port).or_else(|| port(text))
        }
        number => number.as_u64().and_then(|number| u16::try_from(number).ok()),
    })
}

/// A comma-separated list; entries that cannot be read are reported and left out.
fn list<T>(
    annotations: &Labels,
    key: &str,
    wanted: &str,
    read: fn(&str) -> Option<T>,
    report: &mut Report,
) -> Vec<T> {
    let Some(value) = annotations.get(key) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in value.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match read(entry) {
            Some(entry) => found.push(entry),
            None => report.warning(annotation(key), format!("`{entry}` is not {wanted}, ignored")),
        }
    }
    found
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}
