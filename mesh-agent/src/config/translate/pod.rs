//! `Pod`: identity, addresses, exclusions from capture (annotations of istio-surface 1.10 and
//! DESIGN, section 3). Whether it is selected depends on its namespace: see `compile`. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Scope;
use crate::config::api::{Labels, Metadata, Pod, PodSpec, PodStatus};
use crate::config::diagnostic::Report;
use crate::model::{CaptureRules, PeerPolicy, SpiffeId, Workload, WorkloadName};

/// Set by the agent of the pod's node once it is in the mesh.
const ENROLLED: &str = "malha.dev/enrolled";
/// Present on pods that have a sidecar.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Opts a pod out; a label or an annotation.
const INJECT: &str = "sidecar.istio.io/inject";
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
    /// Opted out with `sidecar.istio.io/inject: "false"`.
    pub(in crate::config) opted_out: bool,
    /// Why it can never be in the mesh, though labels may ask for it.
    pub(in crate::config) unfit: Option<&'static str>,
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
    let opts_out = |from: &Labels| from.get(INJECT).is_some_and(|value| &**value == "false");
    let workload = Workload {
        uid: uid.unwrap_or_else(|| format!("{namespace}/{name}").into()),
        name: WorkloadName { namespace, name },
        node: Arc::clone(&pod.spec.node_name),
        identity,
        ips: addresses(&pod.status),
        labels: metadata.labels.clone(),
        host_network: pod.spec.host_network,
        selected: false,
        enrolled: annotations.get(ENROLLED).is_some_and(|value| &**value == "true"),
        finished: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
        terminating: metadata.deletion_timestamp.is_some(),
        capture: capture(annotations, report),
        peer_policy: PeerPolicy::default(),
    };
    PodFacts {
        workload,
        opted_out: opts_out(&metadata.labels) || opts_out(annotations),
        unfit: unfit(&pod.spec, annotations),
    }
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

fn unfit(spec: &PodSpec, annotations: &Labels) -> Option<&'static str> {
    if annotations.contains_key(SIDECAR_STATUS) {
        return Some("has a sidecar");
    }
    let sandboxed = SANDBOXED.contains(&spec.runtime_class_name.as_str());
    sandboxed.then_some("runs in a sandbox with a kernel of its own")
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
            range,
            report,
        ),
    }
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

fn range(text: &str) -> Option<IpNet> {
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(host)
}
