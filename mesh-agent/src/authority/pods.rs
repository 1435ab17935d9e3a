//! Which service accounts have pods on which node.
//!
//! Two sources: a watch of all pods that are on a node and not finished, of which a few words each
//! are kept; and one list of a node's pods, for a pod that is younger than what the watch has told.
//! Invariant: "it runs" comes from one of them, "it does not" only from the list.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Client, ResourceExt as _};
use rustc_hash::FxHashMap;
use tokio::sync::Semaphore;

use super::decide::Refusal;
use crate::model::SpiffeId;

/// What the watch asks for: finished pods have no identity.
const UNFINISHED: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
/// Pods in one page of the watch's list.
const PAGE: u32 = 500;
/// Lists of a node's pods at a time; further ones wait. An agent could ask for much that is not
/// there.
const LISTS: usize = 8;
/// Time for one such list.
const LIST_TIMEOUT: Duration = Duration::from_secs(3);

/// Pods of all nodes.
pub(super) struct Pods {
    client: Client,
    index: RwLock<Index>,
    listed: AtomicBool,
    lists: Semaphore,
}

/// Namespace and name.
type Key = (String, String);

/// Pods by node, each with its service account.
#[derive(Debug, Default)]
struct Index {
    nodes: FxHashMap<String, FxHashMap<Key, String>>,
    node_of: FxHashMap<Key, String>,
}

// === Pods ===

impl Pods {
    pub(super) fn new(client: Client) -> Self {
        let lists = Semaphore::new(LISTS);
        Self { client, index: RwLock::default(), listed: AtomicBool::new(false), lists }
    }

    /// Whether the first list is complete.
    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }

    /// Whether a pod of the identity is on the node, as far as the watch has told.
    pub(super) fn runs(&self, node: &str, identity: &SpiffeId) -> bool {
        self.index.read().unwrap_or_else(PoisonError::into_inner).runs(node, identity)
    }

    /// The same by the API server's word of now.
    pub(super) async fn runs_now(&self, node: &str, identity: &SpiffeId) -> Result<bool, Refusal> {
        let list = async {
            let _place = self.lists.acquire().await;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &identity.namespace);
            api.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await
        };
        let pods = tokio::time::timeout(LIST_TIMEOUT, list)
            .await
            .map_err(|_| Refusal::Away("no list of pods in time".to_owned()))?
            .map_err(|error| Refusal::Away(error.to_string()))?;
        let mut index = Index::default();
        pods.items.iter().for_each(|pod| index.apply(pod));
        Ok(index.runs(node, identity))
    }

    /// Watches; never returns.
    pub(super) async fn follow(&self) {
        let config = Config::default().fields(UNFINISHED).page_size(PAGE);
        let events = watcher(Api::<Pod>::all(self.client.clone()), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut next = Index::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => next = Index::default(),
                Ok(Event::InitApply(pod)) => next.apply(&pod),
                Ok(Event::InitDone) => {
                    self.change(|index| *index = std::mem::take(&mut next));
                    self.listed.store(true, Ordering::Relaxed);
                }
                Ok(Event::Apply(pod)) => self.change(|index| index.apply(&pod)),
                Ok(Event::Delete(pod)) => self.change(|index| index.remove(&key(&pod))),
                Err(error) => tracing::warn!(%error, "pods cannot be watched, trying again"),
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Index)) {
        change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
    }
}

// === Index ===

impl Index {
    fn runs(&self, node: &str, identity: &SpiffeId) -> bool {
        self.nodes.get(node).is_some_and(|pods| {
            pods.iter().any(|((namespace, _), account)| {
                **namespace == *identity.namespace && **account == *identity.service_account
            })
        })
    }

    fn apply(&mut self, pod: &Pod) {
        let key = key(pod);
        self.remove(&key);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return;
        }
        let Some(spec) = &pod.spec else { return };
        let Some(node) = spec.node_name.clone().filter(|node| !node.is_empty()) else { return };
        let account = spec.service_account_name.as_deref().filter(|account| !account.is_empty());
        let account = account.unwrap_or("default").to_owned();
        self.nodes.entry(node.clone()).or_default().insert(key.clone(), account);
        self.node_of.insert(key, node);
    }

    fn remove(&mut self, key: &Key) {
        let Some(node) = self.node_of.remove(key) else { return };
        if let Some(pods) = self.nodes.get_mut(&node) {
            pods.remove(key);
            if pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }
}

fn key(pod: &Pod) -> Key {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, account: &str, node: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "containers": [], "serviceAccountName": account, "nodeName": node },
            "status": { "phase": phase },
        }))
        .unwrap()
    }

    fn cart() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
    }

    #[test]
    fn an_identity_is_where_its_unfinished_pods_are() {
        let mut index = Index::default();
        index.apply(&pod("a", "cart", "node-a", "Pending"));
        index.apply(&pod("b", "front", "node-b", "Running"));
        assert!(index.runs("node-a", &cart()), "a pod that starts needs its certificate");
        assert!(!index.runs("node-b", &cart()));
        let elsewhere = SpiffeId { namespace: "other".into(), ..cart() };
        assert!(!index.runs("node-a", &elsewhere));
        index.apply(&pod("a", "cart", "node-a", "Succeeded"));
        assert!(!index.runs("node-a", &cart()));
        index.apply(&pod("c", "cart", "", "Pending"));
        assert!(!index.runs("", &cart()), "not on a node yet");
    }

    #[test]
    fn the_last_pod_takes_the_node_along() {
        let mut index = Index::default();
        index.apply(&pod("a", "cart", "node-a", "Running"));
        index.apply(&pod("b", "cart", "node-a", "Running"));
        index.remove(&("shop".to_owned(), "a".to_owned()));
        assert!(index.runs("node-a", &cart()));
        index.remove(&("shop".to_owned(), "b".to_owned()));
        index.remove(&("shop".to_owned(), "b".to_owned()));
        assert!(!index.runs("node-a", &cart()));
        assert!(index.nodes.is_empty() && index.node_of.is_empty());
    }
}
