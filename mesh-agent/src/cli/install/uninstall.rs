//! Takes the mesh off a cluster so that no request of a workload's fails, and nothing of it is left.
//!
//! Order: every node's pods leave the mesh, announcement first and capture last, with mutual TLS no longer
//! asked for meanwhile ([`sweep`]) -> agents drain and end -> nodes are cleaned -> the authority and
//! what it has made -> the other objects -> with `--purge` definitions, and so people's objects.
//! `helm uninstall` does the first steps by a hook, the chart's `templates/uninstall.yaml`, and the rest
//! itself. Invariant: it can be run again after any failure.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::cluster::{Cluster, said};
use super::inventory::{Id, Inventory, NAME};
use super::manifest::{AGENT, AUTHORITY, NAMESPACE, PART_OF, objects};
use super::settings::Settings;
use super::sweep::{self, Stage};
use super::{Found, SELECTOR, UninstallOptions, find, say};
use crate::config::ENROLLED;

/// What the authority makes: the root's key, and the roots that agents mount.
const OF_AUTHORITY: [(&str, &str); 2] = [("Secret", "malha-ca"), ("ConfigMap", "malha-ca-root")];
/// Kinds that people put into a namespace; one of them keeps it.
const PEOPLES: [(&str, &str); 8] = [
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
];
/// Objects that Kubernetes itself puts into every namespace.
const KUBERNETES_OWN: [&str; 1] = ["kube-root-ca.crt"];

/// Removes the mesh.
///
/// # Errors
/// What could not be removed. Nothing is half done that a second run would not finish.
pub(super) async fn run(cluster: &Cluster, options: &UninstallOptions) -> anyhow::Result<()> {
    let found = found(cluster, options).await?;
    let namespace = found.namespace.as_str();
    let timeout = Duration::from_secs(options.timeout);
    tell_of_strict(cluster).await;
    clean_nodes(cluster, namespace, timeout).await?;
    let authority = Id::new("apps/v1", "Deployment", namespace, AUTHORITY);
    if !options.of_helm {
        // While there is nobody to answer a webhook, what it would be asked for would wait.
        delete_all(
            cluster,
            found.objects()?.filter(|id| id.kind.ends_with("WebhookConfiguration")),
        )
        .await?;
    }
    cluster.delete(&authority).await?;
    sweep::wait_gone(cluster, namespace, AUTHORITY, timeout).await?;
    for (kind, name) in OF_AUTHORITY {
        cluster.delete(&Id::new("v1", kind, namespace, name)).await?;
    }
    if options.of_helm {
        say("Helm may remove the rest");
        return Ok(());
    }
    delete_all(cluster, found.objects()?).await?;
    cluster.delete(&Id::new("v1", "ConfigMap", namespace, NAME)).await?;
    if options.purge {
        purge(cluster).await?;
    }
    remove_namespace(cluster, namespace).await?;
    say("the mesh is removed");
    if !options.purge {
        say("CustomResourceDefinitions and their objects stay: --purge would remove both");
    }
    Ok(())
}

async fn found(cluster: &Cluster, options: &UninstallOptions) -> anyhow::Result<Found> {
    let found = match options.of_helm {
        true => None,
        false => find(cluster, options.namespace.as_deref()).await?,
    };
    // Also without any trace: a run before this one may have ended in its midst.
    let Some(found) = found else {
        let namespace = options.namespace.clone().unwrap_or_else(|| NAMESPACE.to_owned());
        return Ok(Found { namespace, release: None, inventory: None });
    };
    if let Some(release) = &found.release {
        bail!("the mesh is a release of Helm's: helm uninstall {release} -n {}", found.namespace);
    }
    Ok(found)
}

impl Found {
    /// Objects that go with the mesh: those that were noted, and those of this build's manifest, which
    /// somebody may have applied with kubectl.
    fn objects(&self) -> anyhow::Result<impl Iterator<Item = Id>> {
        let listed = self.inventory.clone().unwrap_or_default();
        let own =
            Inventory::new(Settings::default(), &objects(&self.namespace, &Settings::default())?);
        let mut all: Vec<Id> = own.with(&listed).objects.into_iter().collect();
        all.retain(Id::is_ours_to_delete);
        Ok(all.into_iter())
    }
}

/// Those of the objects that bear our label.
async fn delete_all(cluster: &Cluster, ids: impl Iterator<Item = Id>) -> anyhow::Result<()> {
    for id in ids {
        let object = cluster.get(&id).await?;
        if object.is_some_and(|object| object["metadata"]["labels"][PART_OF.0] == PART_OF.1) {
            cluster.delete(&id).await?;
            say(&format!("removed {id}"));
        }
    }
    Ok(())
}

/// What is enforced now, and will not be.
async fn tell_of_strict(cluster: &Cluster) {
    let kind = Id::new("security.istio.io/v1", "PeerAuthentication", "", "");
    // It is a notice: who may not list them uninstalls without.
    let all = cluster.list_any(&kind).await.unwrap_or_default();
    let strict: Vec<String> = all
        .iter()
        .filter(|object| object["spec"].to_string().contains("\"STRICT\""))
        .filter_map(Id::of)
        .map(|id| id.to_string())
        .collect();
    if !strict.is_empty() {
        say(&format!(
            "from now on pods take plaintext from everybody: nothing enforces {}",
            strict.join(", ")
        ));
    }
}

/// Takes every pod out of the mesh, ends the agents and removes what they have left.
async fn clean_nodes(cluster: &Cluster, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let api: Api<DaemonSet> = Api::namespaced(cluster.client.clone(), namespace);
    let agents = api.get_opt(AGENT).await.map_err(said)?;
    let mut absent = Vec::new();
    if let Some(agents) = &agents {
        // Of a run that has failed.
        sweep::remove(cluster, namespace).await?;
        sweep::wait_gone(cluster, namespace, sweep::APP, timeout).await?;
        absent = sweep::start(cluster, agents, namespace).await?;
        sweep::wait(cluster, namespace, Stage::Withdrawn, timeout).await?;
    } else {
        sweep::start_again(cluster, namespace).await?;
    }
    // Of agents that do not live.
    remove_annotations(cluster).await?;
    if agents.is_some() {
        cluster.delete(&Id::new("apps/v1", "DaemonSet", namespace, AGENT)).await?;
    }
    sweep::wait_gone(cluster, namespace, AGENT, timeout).await?;
    sweep::wait(cluster, namespace, Stage::Clean, timeout).await?;
    remove_annotations(cluster).await?;
    sweep::remove(cluster, namespace).await?;
    sweep::wait_gone(cluster, namespace, sweep::APP, timeout).await?;
    if !absent.is_empty() {
        say(&format!(
            "not ready, and so not cleaned: {}. A reboot cleans them, and so does `mesh-agent cleanup`",
            absent.join(", ")
        ));
    }
    Ok(())
}

/// Takes the annotation off every pod that still has it.
async fn remove_annotations(cluster: &Cluster) -> anyhow::Result<()> {
    let pods: Vec<Pod> = cluster.list("").await?;
    for pod in pods {
        let annotations = pod.metadata.annotations.unwrap_or_default();
        if !annotations.contains_key(ENROLLED) {
            continue;
        }
        let name = pod.metadata.name.unwrap_or_default();
        let namespace = pod.metadata.namespace.unwrap_or_default();
        let change = json!({
            "metadata": {"uid": pod.metadata.uid, "annotations": {ENROLLED: null}},
        });
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let change = Patch::Merge(change);
        match api.patch_status(&name, &PatchParams::default(), &change).await {
            Ok(_) => {}
            // Gone, or another pod of that name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                return Err(said(error)).with_context(|| {
                    format!("cannot take the annotation off pod {namespace}/{name}")
                });
            }
        }
    }
    Ok(())
}

/// Removes the definitions that are ours, and with them all objects of those kinds.
async fn purge(cluster: &Cluster) -> anyhow::Result<()> {
    let ours: Vec<CustomResourceDefinition> = cluster.list(SELECTOR).await?;
    for crd in ours {
        let name = crd.metadata.name.unwrap_or_default();
        let kind = "CustomResourceDefinition";
        cluster.delete(&Id::new("apiextensions.k8s.io/v1", kind, "", &name)).await?;
        say(&format!("removed {kind} {name} and all its objects"));
    }
    Ok(())
}

/// Removes the namespace if it is ours and nobody has put anything into it.
async fn remove_namespace(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let Some(object) = api.get_opt(namespace).await.map_err(said)? else { return Ok(()) };
    let labels = object.metadata.labels.unwrap_or_default();
    if labels.get(PART_OF.0).is_none_or(|value| value != PART_OF.1) {
        return Ok(());
    }
    for (version, kind) in PEOPLES {
        let kind = Id::new(version, kind, namespace, "");
        for object in cluster.list_any(&kind).await? {
            let Some(id) = Id::of(&object) else { continue };
            if !KUBERNETES_OWN.contains(&id.name.as_str()) {
                say(&format!("the namespace {namespace} stays: {id} is in it"));
                return Ok(());
            }
        }
    }
    cluster.delete(&Id::new("v1", "Namespace", "", namespace)).await?;
    say(&format!("removed Namespace {namespace}"));
    Ok(())
}
