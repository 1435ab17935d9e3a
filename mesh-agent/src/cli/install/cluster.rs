//! What `meshctl` asks of the API server, in the words of this folder: objects by name, apply, delete.
//!
//! It decides nothing. Invariant: an error says what was asked, and what the server answered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::config::KubeConfigOptions;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::inventory::Id;
use super::manifest::MANAGER;
use crate::config::{client_of, read_kubeconfig};

/// Time for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that says nothing for so long is not waited for.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// Which cluster, and as whom.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// How to reach the API server. Without it KUBECONFIG, ~/.kube/config, or the account of the pod
    /// that this is.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; its current one if absent.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// A cluster's API server.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
}

impl Cluster {
    /// Makes no request yet.
    pub(super) async fn new(access: &Access) -> anyhow::Result<Self> {
        let mut config = config(access.kubeconfig.as_deref(), access.context.clone()).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        Ok(Self { client: client_of(config)? })
    }

    fn api(&self, id: &Id) -> Api<DynamicObject> {
        let (group, version) = id.group();
        let kind = GroupVersionKind::gvk(group, version, &id.kind);
        let resource = ApiResource::from_gvk(&kind);
        match id.namespace.as_str() {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        }
    }

    /// An object, if it is there. Of a kind that the server does not know there is none.
    pub(super) async fn get(&self, id: &Id) -> anyhow::Result<Option<Value>> {
        let found = self.api(id).get_opt(&id.name).await;
        let found = found.map_err(said).with_context(|| format!("cannot get {id}"))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// Makes an object as it is here, where there are differences; other fields stay as they are.
    pub(super) async fn apply(&self, id: &Id, object: &Value, force: bool) -> anyhow::Result<()> {
        let params = PatchParams { force, ..PatchParams::apply(MANAGER) };
        let applied = self.api(id).patch(&id.name, &params, &Patch::Apply(object)).await;
        match applied {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && !force => {
                anyhow::bail!(
                    "cannot apply {id}: {}. Give --force to overwrite what others have set",
                    status.message
                )
            }
            Err(error) => Err(said(error)).with_context(|| format!("cannot apply {id}")),
        }
    }

    /// Deletes an object; whether there was one.
    pub(super) async fn delete(&self, id: &Id) -> anyhow::Result<bool> {
        match self.api(id).delete(&id.name, &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(said(error)).with_context(|| format!("cannot delete {id}")),
        }
    }

    /// Objects of a kind in all namespaces that a label selector chooses.
    pub(super) async fn list<K>(&self, selector: &str) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        pages(Api::all(self.client.clone()), selector).await
    }

    /// The same in one namespace.
    pub(super) async fn list_in<K>(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        pages(Api::namespaced(self.client.clone(), namespace), selector).await
    }

    /// Objects of any kind in all namespaces; none if the server does not know the kind.
    pub(super) async fn list_any(&self, kind: &Id) -> anyhow::Result<Vec<Value>> {
        match self.api(kind).list(&ListParams::default()).await {
            Ok(list) => {
                let named = |object: DynamicObject| {
                    let mut object = serde_json::to_value(object)?;
                    // The server says it once, of the list.
                    object["apiVersion"] = kind.api_version.as_str().into();
                    object["kind"] = kind.kind.as_str().into();
                    Ok(object)
                };
                list.items.into_iter().map(named).collect()
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) => Err(said(error)).with_context(|| format!("cannot list {}", kind.kind)),
        }
    }

    /// Creates an object whose name the server chooses.
    pub(super) async fn create<K>(&self, namespace: &str, object: &K) -> anyhow::Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let created = api.create(&PostParams::default(), object).await;
        created.map_err(said).with_context(|| format!("cannot create a {}", K::kind(&())))
    }
}

async fn pages<K>(api: Api<K>, selector: &str) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = ListParams::default().labels(selector).limit(PAGE);
    loop {
        let page = api.list(&params).await.map_err(said);
        let page = page.with_context(|| format!("cannot list {}", K::plural(&())))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

async fn config(path: Option<&Path>, context: Option<String>) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    match path {
        Some(path) => read_kubeconfig(path, &options).await,
        None if options.context.is_some() => Ok(Config::from_kubeconfig(&options).await?),
        None => Config::infer()
            .await
            .context("no cluster: give --kubeconfig or set KUBECONFIG to say which one"),
    }
}

/// The server's words alone, where it gave an answer.
pub(super) fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => {
            anyhow::Error::msg(status.message)
        }
        error => anyhow::Error::new(error),
    }
}
