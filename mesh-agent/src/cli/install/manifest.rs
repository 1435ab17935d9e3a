//! The mesh's objects: the manifest that is built in, and how settings change it. Pure.
//!
//! Invariant: with the same settings this gives what Helm renders from the chart, but for the label that
//! names the installer; `tests/kube/install.rs` compares them. Source: `deploy/malha.yaml`.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::settings::Settings;

const EMBEDDED: &str = include_str!("../../../../deploy/malha.yaml");
/// The namespace that the manifest is written for.
pub(super) const NAMESPACE: &str = "malha-system";
/// The agents' DaemonSet, and the label `app` of their pods.
pub(super) const AGENT: &str = "malha-agent";
/// The authority's Deployment, and the label `app` of its pods.
pub(super) const AUTHORITY: &str = "malha-authority";
/// Label of every object of ours.
pub(super) const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "malha");
/// Label with the name of whoever made an object.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The field manager of server-side apply, and the value of [`MANAGED_BY`].
pub(super) const MANAGER: &str = "meshctl";
/// Seconds beyond the drain that the kubelet gives an agent, as in the chart.
const MORE_GRACE: u32 = 10;

/// The objects of a mesh with these settings, in the order in which they are to be made.
///
/// # Errors
/// The manifest cannot be read, or has no place for a setting: a fault of this build.
pub(super) fn objects(namespace: &str, settings: &Settings) -> anyhow::Result<Vec<Value>> {
    let documents = format!("\n{EMBEDDED}");
    let mut objects = Vec::new();
    for text in documents.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(text).context("the manifest of this build")?;
        // The manifest ends with a separator's empty rest where a template renders nothing.
        if object.is_object() {
            objects.push(object);
        }
    }
    // The chart has none for a single replica.
    if settings.authority_replicas == Some(1) {
        objects.retain(|object| kind(object) != "PodDisruptionBudget");
    }
    for object in &mut objects {
        if kind(object) == "Namespace" {
            object["metadata"]["name"] = namespace.into();
        }
        rename_namespace(object, namespace);
        object["metadata"]["labels"][MANAGED_BY] = MANAGER.into();
        if matches!(kind(object), "DaemonSet" | "Deployment") {
            object["spec"]["template"]["metadata"]["labels"][MANAGED_BY] = MANAGER.into();
            set(object, settings).with_context(|| format!("{} of this build", name(object)))?;
        }
    }
    Ok(objects)
}

/// The kind of an object.
pub(super) fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// As text of several YAML documents.
///
/// # Errors
/// An object cannot be written: a fault of ours.
pub(super) fn yaml(objects: &[Value]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object)?);
    }
    Ok(text)
}

/// Changes every field `namespace` that names the manifest's: of metadata, of a binding's subjects, of a
/// webhook's service.
fn rename_namespace(value: &mut Value, namespace: &str) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "namespace" && *value == NAMESPACE {
                    *value = namespace.into();
                } else {
                    rename_namespace(value, namespace);
                }
            }
        }
        Value::Array(items) => {
            items.iter_mut().for_each(|item| rename_namespace(item, namespace));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Changes a workload.
fn set(workload: &mut Value, settings: &Settings) -> anyhow::Result<()> {
    let is_agent = name(workload) == AGENT;
    if let Some(replicas) = settings.authority_replicas
        && !is_agent
    {
        workload["spec"]["replicas"] = replicas.into();
    }
    let spec = &mut workload["spec"]["template"]["spec"];
    if !settings.image_pull_secret.is_empty() {
        let secrets = settings.image_pull_secret.iter().map(|name| json!({ "name": name }));
        spec["imagePullSecrets"] = secrets.collect();
    }
    if is_agent {
        if let Some(seconds) = settings.drain_seconds {
            spec["terminationGracePeriodSeconds"] = (seconds + MORE_GRACE).into();
        }
        if let Some(path) = &settings.cgroup_path {
            let volumes = spec["volumes"].as_array_mut().context("no volumes")?;
            let volume = volumes.iter_mut().find(|volume| volume["name"] == "cgroup");
            volume.context("no volume `cgroup`")?["hostPath"]["path"] = path.as_str().into();
        }
    }
    let container = spec["containers"].get_mut(0).context("no container")?;
    if let Some(image) = &settings.image {
        container["image"] = image.as_str().into();
    }
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
    let arguments = container["args"].as_array_mut().context("no arguments")?;
    let both = [
        ("--trust-domain", settings.trust_domain.clone()),
        ("--cluster-domain", settings.cluster_domain.clone()),
        ("--root-namespace", settings.root_namespace.clone()),
        ("--log-level", settings.log_level.clone()),
        ("--log-format", settings.log_format.clone()),
    ];
    let agents = [
        ("--istio-labels", settings.istio_labels.map(|on| on.to_string())),
        ("--drain-seconds", settings.drain_seconds.map(|seconds| seconds.to_string())),
    ];
    let agents = agents.into_iter().filter(|_| is_agent);
    for (flag, value) in both.into_iter().chain(agents) {
        if let Some(value) = value {
            set_argument(arguments, flag, &value)?;
        }
    }
    // The chart leaves it out where it is false.
    if settings.accept_not_enforced == Some(true) {
        let flag = if is_agent { "--istio-labels" } else { "--webhook-address" };
        let before = position(arguments, flag).with_context(|| format!("no {flag}"))?;
        arguments.insert(before + 1, "--accept-not-enforced".into());
    }
    // The chart leaves it out where it is 0.
    if let Some(workers) = settings.workers.filter(|workers| is_agent && *workers > 0) {
        let before = position(arguments, "--log-format").context("no --log-format")?;
        arguments.insert(before + 1, format!("--workers={workers}").into());
    }
    Ok(())
}

fn set_argument(arguments: &mut [Value], flag: &str, value: &str) -> anyhow::Result<()> {
    let found = position(arguments, flag).and_then(|at| arguments.get_mut(at));
    *found.with_context(|| format!("no argument {flag}"))? = format!("{flag}={value}").into();
    Ok(())
}

fn position(arguments: &[Value], flag: &str) -> Option<usize> {
    arguments.iter().position(|argument| value_of(argument, flag).is_some())
}

/// The value in an argument `--flag=value`.
pub(super) fn value_of<'a>(argument: &'a Value, flag: &str) -> Option<&'a str> {
    argument.as_str()?.strip_prefix(flag)?.strip_prefix('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        let mut all = objects.iter();
        all.find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
    }

    #[test]
    fn the_manifest_is_whole_and_in_order() {
        let objects = objects(NAMESPACE, &Settings::default()).unwrap();
        let kinds: Vec<&str> = objects.iter().map(kind).collect();
        assert_eq!(kinds.first(), Some(&"Namespace"));
        let crds = kinds.iter().filter(|kind| **kind == "CustomResourceDefinition").count();
        assert_eq!(crds, crate::config::crd::definitions().len());
        assert!(kinds.iter().skip(1).take(crds).all(|kind| *kind == "CustomResourceDefinition"));
        for object in &objects {
            assert_eq!(object["metadata"]["labels"][PART_OF.0], PART_OF.1, "{object}");
        }
        find(&objects, "DaemonSet", AGENT);
        find(&objects, "Deployment", AUTHORITY);
    }

    #[test]
    fn settings_are_where_the_chart_has_them() {
        let settings = Settings {
            image: Some("here/agent:7".to_owned()),
            image_pull_secret: vec!["pull".to_owned()],
            trust_domain: Some("corp".to_owned()),
            istio_labels: Some(false),
            drain_seconds: Some(30),
            workers: Some(3),
            authority_replicas: Some(5),
            cgroup_path: Some("/sys/fs/cgroup/unified".to_owned()),
            ..Settings::default()
        };
        let objects = objects("mesh", &settings).unwrap();
        let text = serde_json::to_string(&objects).unwrap();
        assert!(!text.contains(NAMESPACE), "{text}");
        let agent = find(&objects, "DaemonSet", AGENT);
        let spec = &agent["spec"]["template"]["spec"];
        assert_eq!(spec["terminationGracePeriodSeconds"], 40);
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        assert_eq!(spec["containers"][0]["image"], "here/agent:7");
        let arguments = spec["containers"][0]["args"].to_string();
        for argument in
            ["--trust-domain=corp", "--istio-labels=false", "--drain-seconds=30", "--workers=3"]
        {
            assert!(arguments.contains(&format!("\"{argument}\"")), "{arguments}");
        }
        let authority = find(&objects, "Deployment", AUTHORITY);
        assert_eq!(authority["spec"]["replicas"], 5);
        let arguments = authority["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        assert!(arguments.contains("--trust-domain=corp"), "{arguments}");
    }

    #[test]
    fn one_replica_of_the_authority_keeps_no_node_from_being_drained() {
        let budgets = |replicas| {
            let settings = Settings { authority_replicas: replicas, ..Settings::default() };
            let objects = objects(NAMESPACE, &settings).unwrap();
            objects.iter().filter(|object| kind(object) == "PodDisruptionBudget").count()
        };
        assert_eq!([None, Some(1), Some(2)].map(budgets), [1, 0, 1]);
    }

    #[test]
    fn yaml_reads_as_it_was_written() {
        let objects = objects("mesh", &Settings::default()).unwrap();
        let text = yaml(&objects).unwrap();
        let read: Vec<Value> = text
            .split("---\n")
            .filter(|text| !text.is_empty())
            .map(|text| serde_saphyr::from_str(text).unwrap())
            .collect();
        assert_eq!(read, objects);
    }
}
