//! Waits until the mesh's workloads run what was applied.
//!
//! Whether they do is decided by pure functions over their status, as `kubectl rollout status` does it.
//! Invariant: what was true of the generation before is not taken for this one.

use std::time::Duration;

use anyhow::bail;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::time::Instant;

use super::cluster::{Cluster, said};
use super::manifest::{AGENT, AUTHORITY};
use super::{Clock, say};

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Pods that an error names.
const NAMED: usize = 5;

/// How far a workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All of it runs.
    Done,
    /// Not yet, in words.
    Not(String),
}

/// How far the agents are.
pub(super) fn of_daemon_set(set: &DaemonSet) -> Progress {
    let Some(status) = &set.status else { return Progress::Not("not seen yet".to_owned()) };
    if status.observed_generation < set.metadata.generation {
        return Progress::Not("not seen yet".to_owned());
    }
    let wanted = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or_default();
    let available = status.number_available.unwrap_or_default();
    match () {
        () if updated < wanted => {
            Progress::Not(format!("{updated} of {wanted} are of this version"))
        }
        () if available < wanted => Progress::Not(format!("{available} of {wanted} are ready")),
        () => Progress::Done,
    }
}

/// How far the authority is.
pub(super) fn of_deployment(deployment: &Deployment) -> Progress {
    let status = match &deployment.status {
        Some(status) if status.observed_generation >= deployment.metadata.generation => status,
        _ => return Progress::Not("not seen yet".to_owned()),
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let old = status.replicas.unwrap_or_default() - updated;
    match () {
        () if updated < wanted => {
            Progress::Not(format!("{updated} of {wanted} are of this version"))
        }
        () if old > 0 => Progress::Not(format!("{old} of the version before still run")),
        () if available < updated => Progress::Not(format!("{available} of {updated} are ready")),
        () => Progress::Done,
    }
}

/// Waits for agents and authority.
///
/// # Errors
/// They are not ready by the deadline: with what their pods wait for.
pub(super) async fn wait(
    cluster: &Cluster,
    namespace: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let agents: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), namespace);
    let authorities: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let clock = Clock::start(timeout);
    let mut shown = String::new();
    loop {
        let authority = authorities.get(AUTHORITY).await.map_err(said)?;
        let agent = agents.get(AGENT).await.map_err(said)?;
        let both = [(AUTHORITY, of_deployment(&authority)), (AGENT, of_daemon_set(&agent))];
        let waiting: Vec<String> = both
            .into_iter()
            .filter_map(|(name, progress)| match progress {
                Progress::Done => None,
                Progress::Not(why) => Some(format!("{name}: {why}")),
            })
            .collect();
        if waiting.is_empty() {
            say("the mesh is up");
            return Ok(());
        }
        let line = waiting.join("; ");
        if clock.is_over(Instant::now()) {
            let pods: Vec<Pod> = cluster.list_in(namespace, super::SELECTOR).await?;
            bail!("not up after {} s: {line}\n{}", timeout.as_secs(), troubles(&pods).join("\n"));
        }
        if line != shown {
            say(&line);
            shown = line;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why pods are not ready, a line for each of the first ones.
pub(super) fn troubles(pods: &[Pod]) -> Vec<String> {
    let mut lines: Vec<String> = pods.iter().filter_map(trouble).collect();
    let more = lines.len().saturating_sub(NAMED);
    lines.truncate(NAMED);
    if more > 0 {
        lines.push(format!("and {more} more pods"));
    }
    lines
}

fn trouble(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let mut bad = conditions.filter(|condition| condition.status != "True");
    let condition = bad.find(|condition| matches!(&*condition.type_, "PodScheduled" | "Ready"))?;
    let containers = status.container_statuses.iter().flatten();
    let why = containers.filter_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone()?;
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let last = last.and_then(|ended| ended.message.clone());
        Some([Some(reason), waiting.message.clone(), last])
    });
    let mut why: Vec<String> = why.flatten().flatten().collect();
    if why.is_empty() {
        why.extend(condition.reason.clone());
        why.extend(condition.message.clone());
    }
    let place = node.map(|node| format!(" on {node}")).unwrap_or_default();
    Some(format!("pod {name}{place}: {}", why.join(": ")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn daemon_set(status: Value) -> DaemonSet {
        let object = json!({"metadata": {"generation": 2}, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn not(why: &str) -> Progress {
        Progress::Not(why.to_owned())
    }

    #[test]
    fn agents_are_up_once_all_of_this_generation_are_available() {
        let mut status = json!({
            "observedGeneration": 1, "currentNumberScheduled": 3, "numberMisscheduled": 0,
            "desiredNumberScheduled": 3, "numberReady": 3, "updatedNumberScheduled": 3,
            "numberAvailable": 3,
        });
        assert_eq!(of_daemon_set(&daemon_set(status.clone())), not("not seen yet"));
        status["observedGeneration"] = 2.into();
        assert_eq!(of_daemon_set(&daemon_set(status.clone())), Progress::Done);
        status["numberAvailable"] = 2.into();
        assert_eq!(of_daemon_set(&daemon_set(status.clone())), not("2 of 3 are ready"));
        status["updatedNumberScheduled"] = 1.into();
        assert_eq!(of_daemon_set(&daemon_set(status)), not("1 of 3 are of this version"));
    }

    #[test]
    fn an_authority_is_up_once_the_old_ones_are_gone() {
        let deployment = |status: Value| -> Deployment {
            let spec = json!({"replicas": 2, "selector": {}, "template": {}});
            let object = json!({"metadata": {"generation": 1}, "spec": spec, "status": status});
            serde_json::from_value(object).unwrap()
        };
        let mut status = json!({
            "observedGeneration": 1, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2,
        });
        let old = "1 of the version before still run";
        assert_eq!(of_deployment(&deployment(status.clone())), not(old));
        status["replicas"] = 2.into();
        assert_eq!(of_deployment(&deployment(status)), Progress::Done);
    }

    #[test]
    fn a_pod_that_is_not_ready_says_why() {
        let pods: Vec<Pod> = serde_json::from_value(json!([
            {
                "metadata": {"name": "agent-1"}, "spec": {"nodeName": "a", "containers": []},
                "status": {
                    "conditions": [{"type": "Ready", "status": "False"}],
                    "containerStatuses": [{
                        "name": "agent", "image": "i", "imageID": "", "ready": false,
                        "restartCount": 0,
                        "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
                    }],
                },
            },
            {
                "metadata": {"name": "agent-2"}, "spec": {"containers": []},
                "status": {"conditions": [{
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "no node",
                }]},
            },
            {
                "metadata": {"name": "agent-3"}, "spec": {"containers": []},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            },
        ]))
        .unwrap();
        assert_eq!(
            troubles(&pods),
            ["pod agent-1 on a: ErrImagePull: not found", "pod agent-2: Unschedulable: no node"]
        );
    }
}
