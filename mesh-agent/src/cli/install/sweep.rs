//! One pod on each node that takes the node's pods out of the mesh and cleans up after the agents.
//!
//! The pod is the agents' own (image, folders of the node, rights), with another command:
//! `mesh-agent cleanup --withdraw`. It is ready once no pod of its node is captured any more, and ends once
//! the agents have ended and nothing of them is left. Should it go before, the agents take the pods in
//! again. Invariant: what a node needs for cleaning is read off the DaemonSet before that is deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HTTPGetAction, Node, Pod, PodSpec, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::inventory::Id;
use super::manifest::{AGENT, MANAGED_BY, MANAGER, PART_OF, value_of};
use super::{Clock, say};

/// Label `app` of the pods.
pub(super) const APP: &str = "malha-cleanup";
/// Selects them.
pub(super) const SELECTOR: &str = "app=malha-cleanup";
/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Arguments of an agent's that cleaning needs as well.
const SHARED: [&str; 5] = ["--pin-dir", "--cgroup", "--key-dir", "--state-dir", "--probe-address"];

/// How far a sweep is on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It will not come to anything.
    Failed,
    /// Pods are being withdrawn.
    Begun,
    /// No pod of the node is captured; agents may end.
    Withdrawn,
    /// Nothing is left.
    Clean,
}

/// The pod for one node.
///
/// # Errors
/// The DaemonSet is not one of ours.
pub(super) fn pod(agents: &DaemonSet, namespace: &str, node: &str) -> anyhow::Result<Pod> {
    let template = agents.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let template = template.context("a DaemonSet without pods")?;
    let agent = template.containers.first().context("a DaemonSet without containers")?;
    let volumes: Vec<_> =
        template.volumes.iter().flatten().filter(|volume| volume.host_path.is_some()).collect();
    let mounts = agent.volume_mounts.iter().flatten();
    let mounts = mounts.filter(|mount| volumes.iter().any(|volume| volume.name == mount.name));
    let mut arguments = vec!["cleanup".to_owned(), "--withdraw".to_owned()];
    let given = agent.args.iter().flatten();
    arguments.extend(given.filter(|argument| is_shared(argument)).cloned());
    let ready = Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/readyz".to_owned()),
            port: IntOrString::String("probes".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        ..Probe::default()
    };
    let container = Container {
        name: "cleanup".to_owned(),
        image: agent.image.clone(),
        image_pull_policy: agent.image_pull_policy.clone(),
        args: Some(arguments),
        ports: agent.ports.clone().or_else(|| Some(vec![probe_port()])),
        readiness_probe: Some(ready),
        security_context: agent.security_context.clone(),
        volume_mounts: Some(mounts.cloned().collect()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let spec = PodSpec {
        node_name: Some(node.to_owned()),
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        // Nothing to finish: whoever deletes it early wants it gone.
        termination_grace_period_seconds: Some(1),
        host_pid: template.host_pid,
        image_pull_secrets: template.image_pull_secrets.clone(),
        priority_class_name: template.priority_class_name.clone(),
        tolerations: template.tolerations.clone(),
        containers: vec![container],
        volumes: Some(volumes.into_iter().cloned().collect()),
        ..PodSpec::default()
    };
    let mut pod = Pod { spec: Some(spec), ..Pod::default() };
    pod.metadata.generate_name = Some(format!("{APP}-"));
    pod.metadata.namespace = Some(namespace.to_owned());
    let labels = [("app", APP), PART_OF, (MANAGED_BY, MANAGER)];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    pod.metadata.labels = Some(BTreeMap::from(labels));
    Ok(pod)
}

fn is_shared(argument: &str) -> bool {
    let argument = argument.into();
    SHARED.iter().any(|flag| value_of(&argument, flag).is_some())
}

fn probe_port() -> ContainerPort {
    ContainerPort {
        name: Some("probes".to_owned()),
        container_port: 15020,
        ..ContainerPort::default()
    }
}

/// Nodes to clean: those that agents may run on, with whether a pod can run there now.
pub(super) fn nodes(agents: &DaemonSet, nodes: &[Node]) -> Vec<(String, bool)> {
    let template = agents.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let selector = template.and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    let is_wanted = |node: &&Node| {
        let labels = node.metadata.labels.clone().unwrap_or_default();
        selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let wanted = nodes.iter().filter(is_wanted);
    wanted.filter_map(|node| Some((node.metadata.name.clone()?, is_ready(node)))).collect()
}

/// Whether a node's condition `Ready` is true.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// How far a pod is.
pub(super) fn stage(pod: &Pod) -> Stage {
    let Some(status) = &pod.status else { return Stage::Begun };
    let is_ready = || {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    match status.phase.as_deref() {
        Some("Succeeded") => Stage::Clean,
        Some("Failed") => Stage::Failed,
        _ if is_ready() => Stage::Withdrawn,
        _ => Stage::Begun,
    }
}

/// Starts a pod on every node where one can run. Those that could not be are returned.
///
/// # Errors
/// The API server refuses.
pub(super) async fn start(
    cluster: &Cluster,
    agents: &DaemonSet,
    namespace: &str,
) -> anyhow::Result<Vec<String>> {
    let all: Vec<Node> = cluster.list("").await?;
    let mut absent = Vec::new();
    for (node, can_run) in nodes(agents, &all) {
        if can_run {
            cluster.create(namespace, &pod(agents, namespace, &node)?).await?;
        } else {
            absent.push(node);
        }
    }
    Ok(absent)
}

/// Starts those anew that have failed after the DaemonSet was deleted.
///
/// # Errors
/// The API server refuses.
pub(super) async fn start_again(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let pods: Vec<Pod> = cluster.list_in(namespace, SELECTOR).await?;
    for failed in pods.into_iter().filter(|pod| stage(pod) == Stage::Failed) {
        let mut next = Pod { spec: failed.spec, ..Pod::default() };
        next.metadata.generate_name = failed.metadata.generate_name;
        next.metadata.labels = failed.metadata.labels;
        cluster.create(namespace, &next).await?;
        let name = failed.metadata.name.unwrap_or_default();
        cluster.delete(&Id::new("v1", "Pod", namespace, &name)).await?;
    }
    Ok(())
}

/// Waits until every pod has come so far.
///
/// # Errors
/// One fails, or the time is over: with what they say.
pub(super) async fn wait(
    cluster: &Cluster,
    namespace: &str,
    wanted: Stage,
    timeout: Duration,
) -> anyhow::Result<()> {
    let clock = Clock::start(timeout);
    let mut shown = None;
    loop {
        let pods: Vec<Pod> = cluster.list_in(namespace, SELECTOR).await?;
        let far = pods.iter().filter(|pod| stage(pod) >= wanted).count();
        if !pods.is_empty() && shown.replace(far) != Some(far) {
            let what = if wanted == Stage::Clean { "are clean" } else { "have left the mesh" };
            say(&format!("{far} of {} nodes {what}", pods.len()));
        }
        if far == pods.len() {
            return Ok(());
        }
        let failed: Vec<&Pod> = pods.iter().filter(|pod| stage(pod) == Stage::Failed).collect();
        if !failed.is_empty() {
            let why: Vec<String> = failed.into_iter().map(last_words).collect();
            bail!("a node cannot be cleaned:\n{}", why.join("\n"));
        }
        if clock.is_over(Instant::now()) {
            let late = pods.iter().filter(|pod| stage(pod) < wanted).map(last_words);
            let late: Vec<String> = late.collect();
            bail!("not done after {} s:\n{}", timeout.as_secs(), late.join("\n"));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Node and last words of a pod.
fn last_words(pod: &Pod) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let ended = containers
        .into_iter()
        .flatten()
        .find_map(|container| container.state.as_ref()?.terminated.as_ref()?.message.clone());
    let phase = status.and_then(|status| status.phase.clone());
    let words = ended.or(phase).unwrap_or_default();
    format!("node {node}: {}", words.trim())
}

/// Removes the pods.
///
/// # Errors
/// The API server refuses.
pub(super) async fn remove(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let pods: Vec<Pod> = cluster.list_in(namespace, SELECTOR).await?;
    for pod in pods {
        let name = pod.metadata.name.unwrap_or_default();
        cluster.delete(&Id::new("v1", "Pod", namespace, &name)).await?;
    }
    Ok(())
}

/// Waits until no pod of these is left.
///
/// # Errors
/// The time is over.
pub(super) async fn wait_gone(
    cluster: &Cluster,
    namespace: &str,
    app: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let clock = Clock::start(timeout);
    let nodes: Vec<Node> = cluster.list("").await?;
    let mut is_told = false;
    loop {
        let mut pods: Vec<Pod> = cluster.list_in(namespace, &format!("app={app}")).await?;
        pods.retain(|pod| !is_on_silent_node(pod, &nodes));
        if pods.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut is_told, true) {
            let end = if app == AGENT { "agents drain and end" } else { "authority ends" };
            say(&format!("{end}: {} pods", pods.len()));
        }
        if clock.is_over(Instant::now()) {
            bail!("{} pods of {app} have not ended after {} s", pods.len(), timeout.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a pod is on a node that does not answer: it stays there, as an object.
fn is_on_silent_node(pod: &Pod, nodes: &[Node]) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    let mut silent = nodes.iter().filter(|node| !is_ready(node));
    silent.any(|node| node.metadata.name.as_ref() == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::manifest::{NAMESPACE, kind, objects};
    use super::super::settings::Settings;
    use super::*;

    fn agents() -> DaemonSet {
        let all = objects(NAMESPACE, &Settings::default()).unwrap();
        let found = all.into_iter().find(|object| kind(object) == "DaemonSet").unwrap();
        serde_json::from_value(found).unwrap()
    }

    #[test]
    fn a_pod_has_the_agents_means_and_another_command() {
        let pod = pod(&agents(), NAMESPACE, "node-a").unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.host_pid), (Some("node-a"), Some(true)));
        let container = &spec.containers[0];
        assert_eq!(
            container.args.as_deref().unwrap(),
            [
                "cleanup",
                "--withdraw",
                "--cgroup=/host/cgroup",
                "--pin-dir=/host/bpf/malha",
                "--state-dir=/host/state",
                "--key-dir=/host/run/keys",
                "--probe-address=[::]:15020",
            ]
        );
        let names = |found: Vec<&String>| found.into_iter().cloned().collect::<Vec<_>>();
        let volumes = names(spec.volumes.as_ref().unwrap().iter().map(|v| &v.name).collect());
        let mounts = container.volume_mounts.as_ref().unwrap();
        assert_eq!(volumes, names(mounts.iter().map(|mount| &mount.name).collect()));
        assert!(!volumes.contains(&"token".to_owned()), "{volumes:?}");
    }

    #[test]
    fn nodes_of_other_platforms_are_left_out_and_silent_ones_are_told() {
        let node = |name: &str, platform: [&str; 2], ready: &str| -> Node {
            let [system, machine] = platform;
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {
                    "kubernetes.io/os": system, "kubernetes.io/arch": machine,
                }},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let all = [
            node("a", ["linux", "amd64"], "True"),
            node("b", ["linux", "amd64"], "Unknown"),
            node("c", ["windows", "amd64"], "True"),
            node("d", ["linux", "arm64"], "True"),
        ];
        let found = nodes(&agents(), &all);
        assert_eq!(found, [("a".to_owned(), true), ("b".to_owned(), false)]);
    }

    #[test]
    fn stages() {
        let pod = |phase: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({"status": {
                "phase": phase, "conditions": [{"type": "Ready", "status": ready}],
            }}))
            .unwrap()
        };
        assert_eq!(stage(&Pod::default()), Stage::Begun);
        assert_eq!(stage(&pod("Running", "False")), Stage::Begun);
        assert_eq!(stage(&pod("Running", "True")), Stage::Withdrawn);
        assert_eq!(stage(&pod("Succeeded", "False")), Stage::Clean);
        assert_eq!(stage(&pod("Failed", "False")), Stage::Failed);
    }
}
