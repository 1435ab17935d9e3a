//! Judges a cluster: versions, nodes, clocks, and what else there is that captures or rewrites
//! connections. Pure.
//!
//! Sources: `mesh-ebpf/KERNELS.md`; Cilium's documentation, socketLB; Istio's chart for the names of its
//! parts; Kubernetes, node leases.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSystemInfo};

use super::facts::Facts;
use super::selection::{is_selected, selection};
use super::{Finding, Stage, some};
use crate::cli::install::settings::Settings;
use crate::model::MeshSettings;

/// The node in a token that is bound to a pod, which the authority asks for.
const KUBERNETES: (u32, u32) = (1, 30);
/// `bpf_set_retval` in `cgroup/connect` is the newest thing that capture needs.
const KERNEL: (u32, u32) = (5, 18);
/// containerd has NRI switched on from here.
const CONTAINERD: (u32, u32) = (2, 0);
/// A certificate is valid from a minute before it is signed.
const SKEW: i64 = 30;
/// A kubelet renews its lease every 10 seconds.
const LEASE_AGE: i64 = 60;
/// Istio's parts that capture, by kind of workload and name.
const ISTIO: [&str; 3] = ["istiod", "istio-cni-node", "ztunnel"];

/// Judges what is not the mesh's own.
pub(super) fn judge(facts: &Facts, stage: Stage, settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![kubernetes(facts)];
    if stage == Stage::Before {
        findings.push(permissions(facts));
    }
    findings.extend([kernels(facts), platforms(facts), runtimes(facts), clock(facts)]);
    findings.extend(cilium(facts));
    findings.push(istio(facts, settings));
    findings.push(gateway_api(facts));
    findings.push(security(facts, settings));
    findings
}

fn kubernetes(facts: &Facts) -> Finding {
    const CHECK: &str = "Kubernetes";
    let (major, minor) = &facts.version;
    let shown = format!("{major}.{minor}");
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) if (major, minor) >= KUBERNETES => Finding::ok(CHECK, shown),
        _ => {
            let (major, minor) = KUBERNETES;
            Finding::failed(
                CHECK,
                shown,
                format!("upgrade the cluster to {major}.{minor} or newer"),
            )
        }
    }
}

fn permissions(facts: &Facts) -> Finding {
    const CHECK: &str = "permissions";
    if facts.denied.is_empty() {
        return Finding::ok(CHECK, "to install the mesh");
    }
    let found = format!("may not {}", some(&facts.denied));
    Finding::failed(CHECK, found, "install as somebody who may, such as a cluster-admin")
}

/// The first two numbers of a version such as `5.15.0-105-generic` or `2.1.4`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn info(node: &Node) -> Option<&NodeSystemInfo> {
    node.status.as_ref()?.node_info.as_ref()
}

fn name(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

/// Nodes that agents run on.
fn agents_nodes(facts: &Facts) -> impl Iterator<Item = (&Node, &NodeSystemInfo)> {
    let all = facts.nodes.iter().filter_map(|node| Some((node, info(node)?)));
    all.filter(|(_, info)| can_run(info))
}

/// Whether the image is for a node: what the chart's `malha.nodeSelector` says.
fn can_run(info: &NodeSystemInfo) -> bool {
    info.operating_system == "linux" && info.architecture == "amd64"
}

fn kernels(facts: &Facts) -> Finding {
    const CHECK: &str = "kernels";
    let old: Vec<String> = agents_nodes(facts)
        .filter(|(_, info)| version(&info.kernel_version).is_none_or(|found| found < KERNEL))
        .map(|(node, info)| format!("{} has {}", name(node), info.kernel_version))
        .collect();
    let (major, minor) = KERNEL;
    if !old.is_empty() {
        let fix =
            format!("agents need Linux {major}.{minor} or newer on every node: upgrade these");
        return Finding::failed(CHECK, some(&old), fix);
    }
    let oldest = agents_nodes(facts).min_by_key(|(_, info)| version(&info.kernel_version));
    let oldest = oldest.map_or("no nodes", |(_, info)| &info.kernel_version);
    Finding::ok(CHECK, format!("{oldest} and newer"))
}

fn platforms(facts: &Facts) -> Finding {
    const CHECK: &str = "platforms";
    let all = facts.nodes.iter().filter_map(|node| Some((node, info(node)?)));
    let others: Vec<String> =
        all.filter(|(_, info)| !can_run(info)).map(|(node, _)| name(node)).collect();
    if others.is_empty() {
        return Finding::ok(CHECK, "Linux on amd64 on every node");
    }
    let found = format!("not Linux on amd64: {}", some(&others));
    Finding::warning(CHECK, found, "pods of these nodes are not in the mesh: nothing can be done")
}

fn runtimes(facts: &Facts) -> Finding {
    const CHECK: &str = "container runtimes";
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, info) in agents_nodes(facts) {
        *nodes.entry(&info.container_runtime_version).or_default() += 1;
    }
    let is_old = |runtime: &str| {
        let version = runtime.strip_prefix("containerd://").and_then(version);
        version.is_some_and(|version| version < CONTAINERD)
    };
    let all: Vec<String> =
        nodes.iter().map(|(runtime, count)| format!("{runtime} on {count}")).collect();
    if !nodes.keys().any(|runtime| is_old(runtime)) {
        return Finding::ok(CHECK, some(&all));
    }
    Finding::warning(
        CHECK,
        some(&all),
        "before containerd 2.0 NRI is off: a pod's first connections may leave before it is captured. \
         Upgrade, or set `disable = false` for the plugin `io.containerd.nri.v1.nri`",
    )
}

/// Certificates are only valid from their time on, and only until theirs.
fn clock(facts: &Facts) -> Finding {
    const CHECK: &str = "clocks";
    let Some((server, here)) = facts.clocks else {
        return Finding::ok(CHECK, "the API server does not tell its time");
    };
    let mut wrong = Vec::new();
    for lease in &facts.leases {
        let node = lease.metadata.name.clone().unwrap_or_default();
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
        let Some(renewed) = renewed.map(|time| time.0.as_second()) else { continue };
        let is_ready = facts
            .nodes
            .iter()
            .any(|one| name(one) == node && crate::cli::install::sweep::is_ready(one));
        match renewed - server {
            ahead @ SKEW.. => wrong.push(format!("{node} is {ahead} s ahead")),
            behind if behind <= -LEASE_AGE && is_ready => {
                wrong.push(format!("{node} is {} s behind", -behind));
            }
            _ => {}
        }
    }
    if !wrong.is_empty() {
        let fix = "certificates would not be valid there: keep the nodes' clocks by NTP";
        return Finding::failed(CHECK, some(&wrong), fix);
    }
    let found = match here - server {
        0 => "nodes and API server agree".to_owned(),
        skew => format!("nodes and API server agree; this machine is {skew} s off them"),
    };
    Finding::ok(CHECK, found)
}

/// Cilium's socket load balancer rewrites a pod's `connect` to an endpoint's address, as capture does to
/// the agent's: the agent would not see which Service was meant.
fn cilium(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "Cilium";
    let settings = facts.cilium.as_ref()?;
    let is = |key: &str, wanted: &[&str]| {
        settings.get(key).is_some_and(|value| wanted.contains(&value.as_str()))
    };
    let balances =
        is("bpf-lb-sock", &["true"]) || is("kube-proxy-replacement", &["true", "strict"]);
    Some(if !balances {
        Finding::ok(CHECK, "without socket load balancing")
    } else if is("bpf-lb-sock-hostns-only", &["true"]) {
        Finding::ok(CHECK, "socket load balancing for the host alone")
    } else {
        Finding::failed(
            CHECK,
            "its socket load balancing rewrites the connections of pods",
            "set `socketLB.hostNamespaceOnly=true` in Cilium's Helm values (`bpf-lb-sock-hostns-only` in \
             the ConfigMap cilium-config) and restart its agents",
        )
    })
}

fn istio(facts: &Facts, settings: &Settings) -> Finding {
    const CHECK: &str = "Istio";
    let sets = facts.daemon_sets.iter().map(|set| &set.metadata);
    let deployments = facts.deployments.iter().map(|deployment| &deployment.metadata);
    let mut found: Vec<String> = sets
        .chain(deployments)
        .filter_map(|metadata| {
            let name = metadata.name.as_deref()?;
            // A revision's name follows: istiod-1-27.
            let is_istio = ISTIO.iter().any(|part| {
                name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            });
            is_istio
                .then(|| format!("{}/{name}", metadata.namespace.as_deref().unwrap_or_default()))
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return Finding::ok(CHECK, "not on this cluster");
    }
    if settings.selects_by_istio_labels() {
        return Finding::failed(
            CHECK,
            format!("{} run, and pods with Istio's labels would be captured twice", some(&found)),
            "install with --istio-labels=false (Helm: istioLabels=false), and take namespaces over by \
             istio.io/dataplane-mode=malha",
        );
    }
    Finding::ok(CHECK, format!("{}; its labels are left to it", some(&found)))
}

fn gateway_api(facts: &Facts) -> Finding {
    let found =
        if facts.has_gateway_api { "installed, not read by the mesh yet" } else { "not installed" };
    Finding::ok("Gateway API", found)
}

/// Whoever asks for protection must not believe to have it.
fn security(facts: &Facts, settings: &Settings) -> Finding {
    const CHECK: &str = "security policies";
    if facts.unenforced.is_empty() {
        return Finding::ok(CHECK, "none that is not enforced");
    }
    let usual = MeshSettings::default().root_namespace;
    let root = settings.root_namespace.as_deref().unwrap_or(&usual);
    let selection = selection(&facts.namespaces, settings.selects_by_istio_labels());
    let selected = |namespace: &str| {
        facts.pods.iter().any(|pod| {
            (namespace == root || pod.metadata.namespace.as_deref() == Some(namespace))
                && is_selected(pod, &selection)
        })
    };
    let (in_force, others): (Vec<_>, Vec<_>) =
        facts.unenforced.iter().partition(|id| selected(&id.namespace));
    let names = |ids: Vec<_>| -> Vec<String> { ids.into_iter().map(ToString::to_string).collect() };
    if in_force.is_empty() {
        let found = format!("no pod of the mesh is asked to obey {}", some(&names(others)));
        return Finding::warning(
            CHECK,
            found,
            "the mesh does not enforce these kinds: do not take their namespaces into it, unless \
             something else protects them",
        );
    }
    Finding::failed(
        CHECK,
        format!("pods of the mesh do not obey {}", some(&names(in_force))),
        "the mesh does not enforce these kinds: protect the pods by NetworkPolicies, or take them out of \
         the mesh, and delete the objects so that nobody relies on them",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::State;
    use super::super::facts::read;
    use super::*;
    use crate::cli::install::inventory::Id;

    fn node(name: &str, kernel: &str, runtime: &str, system: &str) -> Value {
        json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {
                    "architecture": "amd64", "bootID": "", "containerRuntimeVersion": runtime,
                    "kernelVersion": kernel, "kubeProxyVersion": "", "kubeletVersion": "v1.34.1",
                    "machineID": "", "operatingSystem": system, "osImage": "", "systemUUID": "",
                },
            },
        })
    }

    fn nodes(nodes: &[Value]) -> Facts {
        let version = ("1".to_owned(), "34".to_owned());
        Facts { version, nodes: read(nodes.into()), ..Facts::default() }
    }

    fn said(finding: Finding) -> (State, String) {
        (finding.state, finding.found)
    }

    #[test]
    fn versions_of_kubernetes() {
        let of = |minor: &str| {
            kubernetes(&Facts { version: ("1".to_owned(), minor.to_owned()), ..Facts::default() })
                .state
        };
        assert_eq!(of("30"), State::Ok);
        assert_eq!(of("31+"), State::Ok);
        assert_eq!(of("29"), State::Failed);
        assert_eq!(of(""), State::Failed);
    }

    #[test]
    fn kernels_are_compared_as_numbers() {
        assert_eq!(version("5.15.0-105-generic"), Some((5, 15)));
        assert_eq!(version("6.1.0"), Some((6, 1)));
        assert_eq!(version("x"), None);
        let well = nodes(&[node("a", "6.18.5", "containerd://2.1.0", "linux")]);
        assert_eq!(said(kernels(&well)), (State::Ok, "6.18.5 and newer".to_owned()));
        let old = nodes(&[
            node("a", "5.18.0", "containerd://2.1.0", "linux"),
            node("b", "5.4.0-150", "containerd://2.1.0", "linux"),
            node("c", "10.0", "containerd://2.1.0", "windows"),
        ]);
        assert_eq!(said(kernels(&old)), (State::Failed, "b has 5.4.0-150".to_owned()));
        assert_eq!(said(platforms(&old)), (State::Warning, "not Linux on amd64: c".to_owned()));
    }

    #[test]
    fn runtimes_without_nri_are_told() {
        let new = nodes(&[node("a", "6.1", "containerd://2.0.1", "linux")]);
        assert_eq!(said(runtimes(&new)), (State::Ok, "containerd://2.0.1 on 1".to_owned()));
        let other = nodes(&[node("a", "6.1", "cri-o://1.31.0", "linux")]);
        assert_eq!(runtimes(&other).state, State::Ok);
        let old = nodes(&[node("a", "6.1", "containerd://1.7.9", "linux")]);
        assert_eq!(runtimes(&old).state, State::Warning);
    }

    #[test]
    fn clocks_by_the_kubelets_leases() {
        let mut facts = nodes(&[node("a", "6.1", "containerd://2.0.1", "linux")]);
        facts.clocks = Some((1_767_225_600, 1_767_225_603));
        let mut at = |time: &str| {
            facts.leases = read(json!([{"metadata": {"name": "a"}, "spec": {"renewTime": time}}]));
            said(clock(&facts))
        };
        let well = "nodes and API server agree; this machine is 3 s off them";
        assert_eq!(at("2026-01-01T00:00:00.000000Z"), (State::Ok, well.to_owned()));
        assert_eq!(at("2025-12-31T23:59:30.000000Z").0, State::Ok);
        let ahead = "a is 120 s ahead".to_owned();
        assert_eq!(at("2026-01-01T00:02:00.000000Z"), (State::Failed, ahead));
        let behind = "a is 300 s behind".to_owned();
        assert_eq!(at("2025-12-31T23:55:00.000000Z"), (State::Failed, behind));
    }

    #[test]
    fn cilium_must_leave_pods_connections_alone() {
        let with = |settings: Value| {
            let facts = Facts { cilium: Some(read(settings)), ..Facts::default() };
            cilium(&facts).unwrap().state
        };
        assert!(cilium(&Facts::default()).is_none());
        assert_eq!(with(json!({})), State::Ok);
        assert_eq!(with(json!({"kube-proxy-replacement": "true"})), State::Failed);
        assert_eq!(with(json!({"bpf-lb-sock": "true"})), State::Failed);
        let host = json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"});
        assert_eq!(with(host), State::Ok);
    }

    #[test]
    fn istios_labels_are_refused_where_istio_runs() {
        let deployments =
            json!([{"metadata": {"namespace": "istio-system", "name": "istiod-1-27"}}]);
        let facts = Facts { deployments: read(deployments), ..Facts::default() };
        assert_eq!(istio(&Facts::default(), &Settings::default()).state, State::Ok);
        let found = istio(&facts, &Settings::default());
        assert_eq!(found.state, State::Failed);
        assert!(found.found.starts_with("istio-system/istiod-1-27 run"), "{}", found.found);
        let without = Settings { istio_labels: Some(false), ..Settings::default() };
        assert_eq!(istio(&facts, &without).state, State::Ok);
    }

    #[test]
    fn unenforced_policies_fail_where_pods_are_in_the_mesh() {
        let policy = |namespace: &str| {
            Id::new("security.istio.io/v1", "AuthorizationPolicy", namespace, "deny")
        };
        let mut facts = Facts {
            unenforced: vec![policy("shop")],
            namespaces: read(json!([
                {"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}},
            ])),
            ..Facts::default()
        };
        assert_eq!(security(&facts, &Settings::default()).state, State::Warning);
        facts.pods = read(json!([{"metadata": {"namespace": "shop", "name": "cart"}}]));
        let found = said(security(&facts, &Settings::default()));
        let wanted = "pods of the mesh do not obey AuthorizationPolicy shop/deny";
        assert_eq!(found, (State::Failed, wanted.to_owned()));
        facts.unenforced = vec![policy("istio-system")];
        assert_eq!(security(&facts, &Settings::default()).state, State::Failed);
    }
}
