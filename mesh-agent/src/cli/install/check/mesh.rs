//! Judges the mesh on a cluster: is it whole, of one version, and are the pods in it that belong in it.
//! Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use super::facts::Facts;
use super::selection::{is_running, wanted};
use super::{Finding, Stage, some};
use crate::cli::install::manifest::{AGENT, AUTHORITY, PART_OF};
use crate::cli::install::rollout::{Progress, of_daemon_set, of_deployment, troubles};
use crate::cli::install::settings::Settings;
use crate::config::ENROLLED;

/// Judges what is ours. `namespace` is where the mesh is, or is to be.
pub(super) fn judge(
    facts: &Facts,
    stage: Stage,
    namespace: Option<&str>,
    settings: &Settings,
) -> Vec<Finding> {
    let mut findings = vec![other_meshes(facts, namespace)];
    if stage == Stage::After {
        findings.extend([workloads(facts, namespace), versions(facts), enrolment(facts, settings)]);
    }
    findings
}

fn has_label(metadata: &kube::core::ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(PART_OF.0)).is_some_and(|value| value == PART_OF.1)
}

fn other_meshes(facts: &Facts, namespace: Option<&str>) -> Finding {
    const CHECK: &str = "other installations";
    let sets = facts.daemon_sets.iter().map(|set| &set.metadata).filter(|set| has_label(set));
    let others: Vec<String> = sets
        .filter(|set| set.namespace.as_deref() != namespace)
        .map(|set| {
            let name = set.name.as_deref().unwrap_or_default();
            format!("{}/{name}", set.namespace.as_deref().unwrap_or_default())
        })
        .collect();
    if namespace.is_none() || others.is_empty() {
        return Finding::ok(CHECK, "none of Malha's");
    }
    let fix = "a node can have one agent: remove the mesh that is not wanted (`meshctl uninstall -n \
               NAMESPACE`, or `helm uninstall`)";
    Finding::failed(CHECK, some(&others), fix)
}

fn workloads(facts: &Facts, namespace: Option<&str>) -> Finding {
    const CHECK: &str = "agents and authority";
    let is = |metadata: &kube::core::ObjectMeta, name: &str| {
        metadata.name.as_deref() == Some(name) && metadata.namespace.as_deref() == namespace
    };
    let agents = facts.daemon_sets.iter().find(|set| is(&set.metadata, AGENT));
    let authority = facts.deployments.iter().find(|one| is(&one.metadata, AUTHORITY));
    let absent = || Progress::Not("is not there".to_owned());
    let both = [
        (AGENT, agents.map_or_else(absent, of_daemon_set)),
        (AUTHORITY, authority.map_or_else(absent, of_deployment)),
    ];
    let mut wrong: Vec<String> = both
        .into_iter()
        .filter_map(|(name, progress)| match progress {
            Progress::Done => None,
            Progress::Not(why) => Some(format!("{name}: {why}")),
        })
        .collect();
    if wrong.is_empty() {
        let count = agents.and_then(|set| Some(set.status.as_ref()?.desired_number_scheduled));
        return Finding::ok(CHECK, format!("ready on {} nodes", count.unwrap_or_default()));
    }
    let pods: Vec<Pod> =
        facts.pods.iter().filter(|pod| has_label(&pod.metadata)).cloned().collect();
    wrong.extend(troubles(&pods));
    let place = namespace.unwrap_or_default();
    let fix = format!(
        "`kubectl logs -n {place} -l {}={} --prefix` says more; `/readyz` of a pod names what it lacks",
        PART_OF.0, PART_OF.1
    );
    Finding::failed(CHECK, wrong.join("; "), fix)
}

/// Agents of two versions work together for as long as an upgrade takes.
fn versions(facts: &Facts) -> Finding {
    const CHECK: &str = "versions";
    let pods = facts.pods.iter().filter(|pod| has_label(&pod.metadata) && is_running(pod));
    let images: BTreeSet<String> =
        pods.filter_map(|pod| pod.spec.as_ref()?.containers.first()?.image.clone()).collect();
    let images: Vec<String> = images.into_iter().collect();
    match images.len() {
        0 | 1 => Finding::ok(CHECK, some(&images)),
        _ => Finding::warning(
            CHECK,
            some(&images),
            "agents of several versions run: finish the upgrade, or look why it does not go on",
        ),
    }
}

fn enrolment(facts: &Facts, settings: &Settings) -> Finding {
    const CHECK: &str = "enrolment";
    let (mut enrolled, mut missing) = (0_usize, Vec::new());
    for pod in wanted(facts, settings) {
        let annotations = pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key(ENROLLED)) {
            enrolled += 1;
            continue;
        }
        let key = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let why = facts.refusals.get(&key).map(|why| format!(" ({why})")).unwrap_or_default();
        missing.push(format!("{}/{}{why}", key.0, key.1));
    }
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("{enrolled} pods are in the mesh, none is missing"));
    }
    Finding::warning(
        CHECK,
        format!("{enrolled} pods are in the mesh; not (yet): {}", some(&missing)),
        "a pod is in the mesh a second after it runs. If it stays outside, `kubectl describe pod` shows \
         the agent's Event with the reason",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::super::facts::read;
    use super::*;

    fn said(finding: Finding) -> (State, String) {
        (finding.state, finding.found)
    }

    #[test]
    fn a_cluster_has_one_mesh() {
        let sets = json!([{"metadata": {
            "namespace": "old", "name": "malha-agent", "labels": {"app.kubernetes.io/part-of": "malha"},
        }}]);
        let facts = Facts { daemon_sets: read(sets), ..Facts::default() };
        assert_eq!(other_meshes(&facts, Some("old")).state, State::Ok);
        let found = said(other_meshes(&facts, Some("malha-system")));
        assert_eq!(found, (State::Failed, "old/malha-agent".to_owned()));
    }

    #[test]
    fn a_mesh_that_is_not_there_is_told() {
        let found = said(workloads(&Facts::default(), Some("malha-system")));
        let wanted = "malha-agent: is not there; malha-authority: is not there";
        assert_eq!(found, (State::Failed, wanted.to_owned()));
    }

    #[test]
    fn pods_outside_are_named_with_the_reason() {
        let pod = |name: &str, annotations: serde_json::Value| {
            json!({
                "metadata": {"namespace": "shop", "name": name, "annotations": annotations},
                "status": {"phase": "Running"},
            })
        };
        let pods = json!([pod("in", json!({"malha.dev/enrolled": "true"})), pod("out", json!({}))]);
        let labels = json!({"istio.io/dataplane-mode": "malha"});
        let key = ("shop".to_owned(), "out".to_owned());
        let mut facts = Facts {
            pods: read(pods),
            namespaces: read(json!([{"metadata": {"name": "shop", "labels": labels}}])),
            refusals: [(key, "not in the mesh: no address".to_owned())].into(),
            ..Facts::default()
        };
        let found = said(enrolment(&facts, &Settings::default()));
        let wanted = "1 pods are in the mesh; not (yet): shop/out (not in the mesh: no address)";
        assert_eq!(found, (State::Warning, wanted.to_owned()));
        facts.pods.truncate(1);
        assert_eq!(enrolment(&facts, &Settings::default()).state, State::Ok);
    }
}
