//! `meshctl install`, `upgrade`, `uninstall` and `check`: the mesh on a cluster, over the API server with
//! the rights of whoever calls.
//!
//! `manifest` is what is installed and `settings` what may be chosen of it; `inventory` remembers both on
//! the cluster; `cluster` asks the API server; `rollout` and `sweep` wait for nodes; `check` looks for
//! what would be in the way. What it is not: it knows no agent and no socket, but for `check --node`.
//! Invariant: what Helm has installed is left to Helm.

mod check;
mod cluster;
mod inventory;
mod manifest;
mod rollout;
mod settings;
mod sweep;
mod uninstall;

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use tokio::time::Instant;

pub use check::CheckOptions;
pub use cluster::Access;
pub use settings::Settings;

use super::Format;
use check::Stage;
use cluster::Cluster;
use inventory::{Id, Inventory};

/// Selects every object of ours.
const SELECTOR: &str = "app.kubernetes.io/part-of=malha";
/// Annotations of an object that Helm has installed.
const RELEASE: &str = "meta.helm.sh/release-name";

/// `meshctl install` and `meshctl upgrade`.
#[derive(Args, Clone, Debug)]
pub struct InstallOptions {
    /// Which cluster.
    #[command(flatten)]
    pub access: Access,
    /// Where the mesh's own pods run [default: where they are, or malha-system].
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// What the mesh is to be like.
    #[command(flatten)]
    pub settings: Settings,
    /// Print the manifest, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Do not look first whether the cluster can carry the mesh, nor afterwards whether it does.
    #[arg(long)]
    pub skip_check: bool,
    /// Overwrite what others have set in the mesh's objects.
    #[arg(long)]
    pub force: bool,
    /// Whether to wait until the mesh is up.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Seconds to wait for it.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
}

/// `meshctl uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallOptions {
    /// Which cluster.
    #[command(flatten)]
    pub access: Access,
    /// Where the mesh's own pods run [default: where they are].
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Also remove the CustomResourceDefinitions that came with the mesh, and so every VirtualService,
    /// DestinationRule and so on, of everybody.
    #[arg(long, conflicts_with = "of_helm")]
    pub purge: bool,
    /// Seconds to wait for the nodes, each time.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Remove only what Helm does not know of: for the chart's own hook.
    #[arg(long, hide = true)]
    pub of_helm: bool,
}

/// A mesh on a cluster.
struct Found {
    namespace: String,
    /// Name of the release, if Helm has installed it.
    release: Option<String>,
    /// What `meshctl` knows of it.
    inventory: Option<Inventory>,
}

/// A time that runs out.
struct Clock {
    end: Instant,
}

impl Clock {
    fn start(time: Duration) -> Self {
        Self { end: Instant::now() + time }
    }

    fn is_over(&self, now: Instant) -> bool {
        now >= self.end
    }
}

/// Progress is for people, and not part of what a command prints.
fn say(line: &str) {
    eprintln!("{line}");
}

/// Installs the mesh; what to print.
///
/// # Errors
/// Why there is no mesh, or not all of it.
pub(super) async fn install(options: &InstallOptions, format: Format) -> anyhow::Result<String> {
    let namespace = options.namespace.as_deref().unwrap_or(manifest::NAMESPACE);
    if options.dry_run {
        return manifest::yaml(&manifest::objects(namespace, &options.settings)?);
    }
    let cluster = Cluster::new(&options.access).await?;
    let found = find(&cluster, None).await?;
    if let Some(found) = &found {
        refuse_helm(found)?;
        ensure!(
            found.namespace == namespace,
            "there is a mesh in the namespace {}: a cluster has one. `meshctl uninstall` removes it",
            found.namespace
        );
        ensure!(
            found.inventory.is_none(),
            "the mesh is installed already: `meshctl upgrade` changes it"
        );
    }
    let nothing = Inventory::default();
    put(&cluster, namespace, options.settings.clone(), nothing, (options, format)).await
}

/// Brings the mesh on a cluster to this version, and to other settings; what to print.
///
/// # Errors
/// Why not, or not all of it.
pub(super) async fn upgrade(options: &InstallOptions, format: Format) -> anyhow::Result<String> {
    let cluster = Cluster::new(&options.access).await?;
    let found = find(&cluster, options.namespace.as_deref()).await?;
    let found = found.context("there is no mesh on this cluster: `meshctl install` installs it")?;
    refuse_helm(&found)?;
    let kept = found.inventory.context(
        "the mesh was not installed by meshctl, but with kubectl or Kustomize: apply the next manifest \
         with them, or run `meshctl install` with the settings that it has",
    )?;
    say(&format!("was {}, will be {}", kept.version, env!("CARGO_PKG_VERSION")));
    let domain = kept.settings.trust_domain.clone();
    let settings = options.settings.clone().over(kept.settings.clone());
    ensure!(
        settings.trust_domain == domain || options.force,
        "a mesh in use cannot take another trust domain: pods of the old one and of the new one would \
         refuse each other. --force does it all the same"
    );
    if options.dry_run {
        return manifest::yaml(&manifest::objects(&found.namespace, &settings)?);
    }
    put(&cluster, &found.namespace, settings, kept, (options, format)).await
}

/// Removes the mesh.
///
/// # Errors
/// Why not, or not all of it.
pub(super) async fn uninstall(options: &UninstallOptions) -> anyhow::Result<String> {
    let cluster = Cluster::new(&options.access).await?;
    uninstall::run(&cluster, options).await?;
    Ok(String::new())
}

/// Looks at a cluster or at this node. What to print, and whether all is well.
///
/// # Errors
/// The cluster cannot be asked.
pub(super) async fn check(
    options: &CheckOptions,
    format: Format,
) -> anyhow::Result<(String, bool)> {
    let findings = if options.node {
        check::of_node(options)
    } else {
        let cluster = Cluster::new(&options.access).await?;
        let found = find(&cluster, None).await?;
        let stage = if options.pre || found.is_none() { Stage::Before } else { Stage::After };
        let settings = installed_settings(&cluster, found.as_ref()).await?;
        let namespace = found.map(|found| found.namespace);
        check::of_cluster(&cluster, stage, namespace.as_deref(), &settings).await?
    };
    Ok((check::print(&findings, format)?, check::are_well(&findings)))
}

/// The settings that matter to the check, as far as they can be known.
async fn installed_settings(cluster: &Cluster, found: Option<&Found>) -> anyhow::Result<Settings> {
    let Some(found) = found else { return Ok(Settings::default()) };
    if let Some(inventory) = &found.inventory {
        return Ok(inventory.settings.clone());
    }
    // Helm's: read off the agents.
    let id = Id::new("apps/v1", "DaemonSet", &found.namespace, manifest::AGENT);
    let agents = cluster.get(&id).await?.unwrap_or_default();
    let arguments = &agents["spec"]["template"]["spec"]["containers"][0]["args"];
    let arguments = arguments.as_array().map(Vec::as_slice).unwrap_or_default();
    let given = arguments.iter().find_map(|one| manifest::value_of(one, "--istio-labels"));
    Ok(Settings { istio_labels: given.map(|value| value == "true"), ..Settings::default() })
}

/// Makes the cluster's mesh as it should be. `kept`: what was noted of the one that is there.
async fn put(
    cluster: &Cluster,
    namespace: &str,
    settings: Settings,
    kept: Inventory,
    (options, format): (&InstallOptions, Format),
) -> anyhow::Result<String> {
    if !options.skip_check {
        let found = check::of_cluster(cluster, Stage::Before, Some(namespace), &settings).await?;
        if !check::are_well(&found) {
            bail!(
                "{}\nnothing was changed. --skip-check goes on all the same",
                check::print(&check::bad(&found), Format::Table)?.trim_end()
            );
        }
    }
    let objects = manifest::objects(namespace, &settings)?;
    let inventory = Inventory::new(settings.clone(), &objects);
    apply(cluster, namespace, &objects, &inventory.clone().with(&kept), options.force).await?;
    for id in inventory.surplus(&kept) {
        let object = cluster.get(id).await?.unwrap_or_default();
        // Somebody may have made it his own.
        if object["metadata"]["labels"][manifest::PART_OF.0] == manifest::PART_OF.1 {
            cluster.delete(id).await?;
            say(&format!("removed {id}, which is no part of the mesh any more"));
        }
    }
    write_inventory(cluster, namespace, &inventory).await?;
    if !options.wait {
        return Ok(String::new());
    }
    rollout::wait(cluster, namespace, Duration::from_secs(options.timeout)).await?;
    if options.skip_check {
        return Ok(String::new());
    }
    let found = check::of_cluster(cluster, Stage::After, Some(namespace), &settings).await?;
    let text = check::print(&found, format)?;
    ensure!(check::are_well(&found), "{}", text.trim_end());
    Ok(text)
}

/// Applies all objects, having noted them down.
async fn apply(
    cluster: &Cluster,
    namespace: &str,
    objects: &[Value],
    noted: &Inventory,
    force: bool,
) -> anyhow::Result<()> {
    let mut is_noted = false;
    for object in objects {
        let id = Id::of(object).context("an object without a name")?;
        // The one thing that must be there before the note.
        if id.kind != "Namespace" && !std::mem::replace(&mut is_noted, true) {
            write_inventory(cluster, namespace, noted).await?;
        }
        if id.kind == "CustomResourceDefinition" && is_somebody_elses(cluster, &id).await? {
            say(&format!("left {id} as it is: it is not Malha's"));
            continue;
        }
        cluster.apply(&id, object, force).await?;
    }
    say(&format!("applied {} objects", objects.len()));
    Ok(())
}

/// Whether a definition came with something else, such as Istio.
async fn is_somebody_elses(cluster: &Cluster, id: &Id) -> anyhow::Result<bool> {
    let there = cluster.get(id).await?;
    Ok(there.is_some_and(|there| {
        there["metadata"]["labels"][manifest::PART_OF.0] != manifest::PART_OF.1
    }))
}

async fn write_inventory(
    cluster: &Cluster,
    namespace: &str,
    inventory: &Inventory,
) -> anyhow::Result<()> {
    let map = inventory.config_map(namespace)?;
    let id = Id::new("v1", "ConfigMap", namespace, inventory::NAME);
    // Nobody else has any business in it.
    cluster.apply(&id, &map, true).await
}

/// The mesh on a cluster, if there is one: in this namespace, or in any.
async fn find(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Option<Found>> {
    let is_here =
        |found: &Option<String>| namespace.is_none_or(|wanted| found.as_deref() == Some(wanted));
    let sets: Vec<DaemonSet> = cluster.list(SELECTOR).await?;
    let agents = sets.into_iter().find(|set| {
        set.metadata.name.as_deref() == Some(manifest::AGENT) && is_here(&set.metadata.namespace)
    });
    let maps: Vec<ConfigMap> = cluster.list(SELECTOR).await?;
    let map = maps.into_iter().find(|map| {
        map.metadata.name.as_deref() == Some(inventory::NAME) && is_here(&map.metadata.namespace)
    });
    let metadata = agents.as_ref().map(|agents| &agents.metadata);
    let place = metadata.or(map.as_ref().map(|map| &map.metadata));
    let Some(place) = place.and_then(|place| place.namespace.clone()) else { return Ok(None) };
    let release = metadata.and_then(|found| found.annotations.as_ref()?.get(RELEASE).cloned());
    let map = map.filter(|map| map.metadata.namespace.as_ref() == Some(&place));
    let inventory = map.map(|map| Inventory::read(&serde_json::to_value(map)?)).transpose()?;
    Ok(Some(Found { namespace: place, release, inventory }))
}

fn refuse_helm(found: &Found) -> anyhow::Result<()> {
    if let Some(release) = &found.release {
        bail!(
            "the mesh is a release of Helm's: helm upgrade {release} deploy/chart -n {}",
            found.namespace
        );
    }
    Ok(())
}
