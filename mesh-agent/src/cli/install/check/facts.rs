//! What the checks are about, asked of the API server at one time.
//!
//! It judges nothing. What a kind is missing that the server does not know counts as none of it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams, PostParams};
#[cfg(test)]
use serde_json::Value;

use super::Stage;
use crate::cli::install::cluster::{Cluster, said};
use crate::cli::install::inventory::Id;
use crate::config::Kind;

/// What installing does, as RBAC says it: group, resource, verb.
const NEEDED: [(&str, &str, &str); 13] = [
    ("", "namespaces", "patch"),
    ("", "configmaps", "patch"),
    ("", "serviceaccounts", "patch"),
    ("", "services", "patch"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "patch"),
    ("rbac.authorization.k8s.io", "clusterroles", "patch"),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "patch"),
    ("rbac.authorization.k8s.io", "roles", "patch"),
    ("rbac.authorization.k8s.io", "rolebindings", "patch"),
    ("apps", "daemonsets", "patch"),
    ("apps", "deployments", "patch"),
    ("policy", "poddisruptionbudgets", "patch"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", "patch"),
];
/// Where kubelets renew their leases.
const LEASES: &str = "kube-node-lease";
/// Cilium's configuration.
const CILIUM: &str = "cilium-config";
/// Questions under way at once.
const AT_ONCE: usize = 8;

/// A cluster at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Of the API server: major and minor, as it writes them.
    pub(super) version: (String, String),
    /// Verbs and resources that the caller may not use.
    pub(super) denied: Vec<String>,
    pub(super) nodes: Vec<Node>,
    pub(super) leases: Vec<Lease>,
    pub(super) daemon_sets: Vec<DaemonSet>,
    pub(super) deployments: Vec<Deployment>,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) pods: Vec<Pod>,
    pub(super) policies: Vec<NetworkPolicy>,
    /// Cilium's settings, if it is there.
    pub(super) cilium: Option<BTreeMap<String, String>>,
    /// Whether the kinds of the Gateway API are known.
    pub(super) has_gateway_api: bool,
    /// Objects that are not enforced.
    pub(super) unenforced: Vec<Id>,
    /// Why pods are not in the mesh, by namespace and name.
    pub(super) refusals: BTreeMap<(String, String), String>,
    /// The clocks of the API server and of this machine, in seconds since 1970.
    pub(super) clocks: Option<(i64, i64)>,
}

impl Facts {
    /// Asks for everything.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub(super) async fn gather(cluster: &Cluster, stage: Stage) -> anyhow::Result<Self> {
        let version = cluster.client.apiserver_version().await.map_err(said)?;
        let daemon_sets: Vec<DaemonSet> = cluster.list("").await?;
        let denied = match stage {
            Stage::Before => denied(cluster).await?,
            Stage::After => Vec::new(),
        };
        let gateway = Id::new(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "",
            "httproutes.gateway.networking.k8s.io",
        );
        Ok(Self {
            version: (version.major, version.minor),
            denied,
            nodes: cluster.list("").await?,
            leases: cluster.list_in(LEASES, "").await?,
            cilium: cilium(cluster, &daemon_sets).await?,
            daemon_sets,
            deployments: cluster.list("").await?,
            namespaces: cluster.list("").await?,
            pods: cluster.list("").await?,
            policies: cluster.list("").await?,
            has_gateway_api: cluster.get(&gateway).await?.is_some(),
            unenforced: unenforced(cluster).await?,
            refusals: refusals(cluster).await?,
            clocks: clocks(cluster).await,
        })
    }
}

async fn denied(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let ask = |(group, resource, verb): (&'static str, &'static str, &'static str)| {
        let api = api.clone();
        async move {
            let attributes = ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            let answer = api.create(&PostParams::default(), &review).await.map_err(said)?;
            let is_allowed = answer.status.is_some_and(|status| status.allowed);
            anyhow::Ok((!is_allowed).then(|| format!("{verb} {resource}")))
        }
    };
    let answers = stream::iter(NEEDED).map(ask).buffered(AT_ONCE);
    let answers: Vec<Option<String>> = answers.try_collect().await?;
    Ok(answers.into_iter().flatten().collect())
}

async fn cilium(
    cluster: &Cluster,
    sets: &[DaemonSet],
) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    let is_cilium = |set: &&DaemonSet| set.metadata.name.as_deref() == Some("cilium");
    let Some(set) = sets.iter().find(is_cilium) else { return Ok(None) };
    let namespace = set.metadata.namespace.as_deref().unwrap_or("kube-system");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let map = maps.get_opt(CILIUM).await.map_err(said)?;
    Ok(Some(map.and_then(|map| map.data).unwrap_or_default()))
}

async fn unenforced(cluster: &Cluster) -> anyhow::Result<Vec<Id>> {
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_enforced()) {
        let version = kind.versions().first().copied().unwrap_or_default();
        let kind = Id::new(version, kind.name(), "", "");
        all.extend(cluster.list_any(&kind).await?.iter().filter_map(Id::of));
    }
    Ok(all)
}

/// The last thing that agents have said about pods that they cannot enrol.
async fn refusals(cluster: &Cluster) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let api: Api<Event> = Api::all(cluster.client.clone());
    let params = ListParams::default().fields("reason=NotEnrolled");
    let events = api.list(&params).await.map_err(said).context("cannot list events")?;
    let told = events.items.into_iter().filter_map(|event| {
        let about = event.involved_object;
        Some(((about.namespace?, about.name?), event.message?))
    });
    Ok(told.collect())
}

/// The server's clock is in the head of each of its answers. One that is not there is not known.
async fn clocks(cluster: &Cluster) -> Option<(i64, i64)> {
    let request = http::Request::get("/version").body(kube::client::Body::empty()).ok()?;
    let answer = cluster.client.send(request).await.ok()?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    let there = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some((i64::try_from(there).ok()?, i64::try_from(here).ok()?))
}

/// Reads objects of a test.
#[cfg(test)]
pub(super) fn read<T: serde::de::DeserializeOwned>(objects: Value) -> T {
    serde_json::from_value(objects).unwrap()
}
