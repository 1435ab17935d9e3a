//! The Kubernetes API server as the source.
//!
//! A task for each kind lists and watches ([`watch`]); one place takes what they say, in batches, into
//! the store, keeps accepted objects on disk ([`cache`]) and publishes. Nothing is published before
//! every kind has been listed once, unless an earlier agent's objects are on disk: these are in force
//! at once, and the lists then put right what has changed. A server that is away changes nothing: what
//! was in force stays in force.

mod annotate;
mod cache;
mod client;
mod observe;
mod trim;
mod watch;

pub use annotate::annotate;
pub use client::{client_of, kubernetes_client, read_kubeconfig};
pub use observe::{Observed, Seen};
pub use watch::resource;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::DynamicObject;
use serde_json::Value;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::api::Kind;
use super::objects::{Key, Settings};
use super::parse::object;
use super::store::{Store, now};
use super::{Answers, ConfigError, Publish, answered};
use cache::Cache;
use watch::Heard;

/// Changes are compiled once nothing has come for this long.
const QUIET: Duration = Duration::from_millis(10);
/// Changes that keep coming are compiled after this long all the same.
const PATIENCE: Duration = Duration::from_millis(50);
/// Changes between two compilations; beyond it the watchers wait.
const MAX_BATCH: usize = 8192;

/// How the API server is reached, and where its objects are kept.
#[derive(Clone)]
pub struct Cluster {
    /// A client with the agent's own account.
    pub client: Client,
    /// Folder for accepted objects; without it an agent that starts needs the API server.
    pub cache: Option<PathBuf>,
    /// Where Istio's objects and the mesh's own go as the API server has them, once every kind has been listed.
    pub observe: Option<channel::Sender<Option<Arc<Observed>>>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Follows the API server until dropped.
pub(super) async fn run(
    cluster: Cluster,
    settings: Settings,
    mut answers: channel::Receiver<Arc<Answers>>,
    publish: Publish,
) -> Result<(), ConfigError> {
    let (out, mut heard) = mpsc::channel(MAX_BATCH);
    let mut watchers = JoinSet::new();
    for kind in Kind::ALL {
        watchers.spawn(watch::follow(cluster.client.clone(), kind, out.clone()));
    }
    drop(out);
    let mut store = Store::new(settings, &publish);
    store.quiet = true;
    let (dir, observe) = (cluster.cache, cluster.observe);
    let mut reader = blocking(move || Reader::open(store, dir)).await?;
    reader.observe = observe;
    reader.publish(&publish);
    loop {
        let Some(batch) = next_batch(&mut heard, &mut answers).await else { return Ok(()) };
        let resolved = answers.borrow_and_update().clone();
        reader = blocking(move || reader.take(batch, &resolved)).await?;
        reader.publish(&publish);
        reader.tell();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConfigError> {
    tokio::task::spawn_blocking(work).await.map_err(ConfigError::Stopped)
}

/// Waits for a change and then for a quiet moment, both bounded. Answers are a batch of their own.
async fn next_batch(
    heard: &mut mpsc::Receiver<Heard>,
    answers: &mut channel::Receiver<Arc<Answers>>,
) -> Option<Vec<Heard>> {
    let first = tokio::select! {
        first = heard.recv() => first,
        () = answered(answers) => return Some(Vec::new()),
    };
    let mut batch = vec![first?];
    let deadline = Instant::now() + PATIENCE;
    while batch.len() < MAX_BATCH {
        match timeout_at(deadline.min(Instant::now() + QUIET), heard.recv()).await {
            Ok(Some(next)) => batch.push(next),
            Ok(None) | Err(_) => break,
        }
    }
    Some(batch)
}

/// How far the watch of a kind has come.
#[derive(Debug, Default)]
struct Progress {
    /// It has been listed, or the server does not have it.
    known: bool,
    /// Objects of the list under way.
    listing: Option<HashSet<Key>>,
    /// Why the server was last asked in vain.
    failed: Option<String>,
}

/// What was heard, and what it compiled to.
struct Reader {
    store: Store,
    cache: Option<Cache>,
    kinds: BTreeMap<Kind, Progress>,
    /// Objects by kind, to find those that are missing in a list.
    keys: BTreeMap<Kind, HashSet<Key>>,
    /// Whether there is something to be in force: from disk, or every kind was listed.
    ready: bool,
    /// Something has come since the last compilation that may make a difference.
    is_stale: bool,
    observe: Option<channel::Sender<Option<Arc<Observed>>>>,
    /// What goes there, and whether it has changed since.
    seen: BTreeMap<Key, Arc<Seen>>,
    is_news: bool,
}

impl Reader {
    fn open(store: Store, dir: Option<PathBuf>) -> Self {
        let kinds = Kind::ALL.into_iter().map(|kind| (kind, Progress::default())).collect();
        let mut reader = Self {
            store,
            cache: None,
            kinds,
            keys: BTreeMap::new(),
            ready: false,
            is_stale: true,
            observe: None,
            seen: BTreeMap::new(),
            is_news: true,
        };
        let Some(dir) = dir else { return reader };
        match Cache::open(&dir) {
            Ok((cache, objects)) => {
                reader.ready = cache.is_complete();
                for (kind, value) in objects {
                    reader.accept(kind, value);
                }
                // Only now, or each of them would be written down again.
                reader.cache = Some(cache);
            }
            Err(error) => {
                tracing::error!(dir = %dir.display(), %error, "objects cannot be kept on disk: a start needs the API server");
            }
        }
        if reader.ready {
            reader.compile();
            tracing::info!(
                objects = reader.objects(),
                "configuration of an earlier agent in force"
            );
        }
        reader
    }

    fn objects(&self) -> usize {
        self.keys.values().map(HashSet::len).sum()
    }

    fn take(mut self, batch: Vec<Heard>, answers: &Arc<Answers>) -> Self {
        self.is_stale |= self.store.resolve(answers);
        for heard in batch {
            self.hear(heard);
        }
        let was_ready = self.ready;
        let all_known = self.kinds.values().all(|progress| progress.known);
        self.ready |= all_known;
        let written = self.cache.as_mut().map(|cache| {
            if all_known {
                cache.complete()?;
            }
            cache.flush()
        });
        if let Some(Err(error)) = written {
            self.give_up_cache(&error);
        }
        if self.ready {
            if !was_ready {
                tracing::info!(objects = self.objects(), "every kind has been listed");
            }
            if self.is_stale {
                self.compile();
            }
        }
        self
    }

    fn compile(&mut self) {
        self.is_stale = false;
        self.store.compile();
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Begin(kind) => {
                self.progress(kind).listing = Some(HashSet::new());
            }
            Heard::Found(kind, found) | Heard::Applied(kind, found) => self.arrived(kind, *found),
            Heard::Complete(kind) => self.complete(kind),
            Heard::Deleted(key) => self.remove(&key),
            Heard::Absent(kind) => {
                self.progress(kind).listing = Some(HashSet::new());
                self.complete(kind);
            }
            Heard::Failed(kind, reason) => {
                let before = self.progress(kind).failed.replace(reason.clone());
                if before.as_ref() != Some(&reason) {
                    tracing::warn!(kind = kind.name(), reason, "the API server does not answer");
                }
            }
        }
    }

    fn progress(&mut self, kind: Kind) -> &mut Progress {
        self.kinds.entry(kind).or_default()
    }

    fn arrived(&mut self, kind: Kind, found: DynamicObject) {
        let progress = self.progress(kind);
        progress.failed = None;
        let is_listing = progress.listing.is_some();
        let seen = self.observe.as_ref().and_then(|_| Seen::of(kind, &found));
        let key = self.accept(kind, trim::trim(kind, found));
        if let (Some(key), Some(seen)) = (&key, seen) {
            self.seen.insert(key.clone(), Arc::new(seen));
            self.is_news = true;
        }
        if let (true, Some(key), Some(progress)) = (is_listing, key, self.kinds.get_mut(&kind)) {
            progress.listing.get_or_insert_default().insert(key);
        }
    }

    /// What the list did not have is gone.
    fn complete(&mut self, kind: Kind) {
        let progress = self.progress(kind);
        if progress.failed.take().is_some() {
            tracing::info!(kind = kind.name(), "the API server answers again");
        }
        progress.known = true;
        let Some(listed) = progress.listing.take() else { return };
        let known = self.keys.entry(kind).or_default();
        let gone: Vec<Key> = known.difference(&listed).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// Takes an object in place of its last version, if it is sound.
    fn accept(&mut self, kind: Kind, value: Value) -> Option<Key> {
        let kept = self.cache.is_some().then(|| value.clone());
        let parsed = object(value, &self.store.objects.settings().mesh);
        let accepted = parsed.accepted.first().map(|object| object.key.clone());
        let key = accepted.clone().or_else(|| parsed.rejected.first().cloned())?;
        let name = name_of(&key);
        let is_same = |node| self.store.objects.has_same_node(&name, node);
        if kind == Kind::Node && parsed.accepted.first().is_some_and(is_same) {
            // Every node's status changes every few minutes.
            return Some(key);
        }
        self.is_stale = true;
        self.store.objects.apply(&name, parsed, now());
        self.keys.entry(kind).or_default().insert(key.clone());
        if let (Some(cache), Some(value), Some(_)) = (&mut self.cache, kept, accepted)
            && let Err(error) = cache.put(&key, value)
        {
            self.give_up_cache(&error);
        }
        Some(key)
    }

    fn remove(&mut self, key: &Key) {
        self.is_stale = true;
        self.is_news |= self.seen.remove(key).is_some();
        self.store.objects.remove(&name_of(key));
        self.keys.entry(key.kind).or_default().remove(key);
        if let Some(Err(error)) = self.cache.as_mut().map(|cache| cache.remove(key)) {
            self.give_up_cache(&error);
        }
    }

    /// A log that lacks a change must not be read by the next agent.
    fn give_up_cache(&mut self, error: &io::Error) {
        tracing::error!(%error, "objects can no longer be kept on disk: a start needs the API server");
        if let Some(Err(error)) = self.cache.take().map(Cache::discard) {
            tracing::error!(%error, "objects on disk are out of date and cannot be removed");
        }
    }

    fn publish(&self, publish: &Publish) {
        self.store.publish(publish);
        publish.missing.send_if_modified(|missing| {
            let now = self.missing();
            let changed = **missing != now;
            if changed {
                *missing = now.into();
            }
            changed
        });
    }

    /// Tells who writes objects' status what has changed.
    fn tell(&mut self) {
        let Some(observe) = self.observe.as_ref().filter(|_| self.ready) else { return };
        let before = observe.borrow().clone().unwrap_or_default();
        let found = self.store.diagnostics();
        if !std::mem::take(&mut self.is_news) && *before.diagnostics == *found {
            return;
        }
        let observed = Observed { objects: self.seen.clone(), diagnostics: found.into() };
        observe.send_replace(Some(Arc::new(observed)));
    }

    /// What keeps the first configuration from being in force.
    fn missing(&self) -> Vec<String> {
        if self.ready {
            return Vec::new();
        }
        let unknown = self.kinds.iter().filter(|(_, progress)| !progress.known);
        unknown
            .map(|(kind, progress)| match &progress.failed {
                Some(reason) => format!("list of {}: {reason}", kind.name()),
                None => format!("list of {}", kind.name()),
            })
            .collect()
    }
}

/// Each object is a source of its own in the store.
fn name_of(key: &Key) -> String {
    format!("{}/{}/{}", key.kind.name(), key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn publish() -> Publish {
        Publish {
            snapshot: channel::channel(Arc::default()).0,
            diagnostics: channel::channel(Arc::default()).0,
            missing: channel::channel(Arc::default()).0,
        }
    }

    /// A node as the API server has it, with what its kubelet says every few minutes.
    fn node(zone: &str, heard: u32) -> DynamicObject {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "n1",
                "uid": "1",
                "resourceVersion": heard.to_string(),
                "labels": {
                    "topology.kubernetes.io/zone": zone,
                    "heard": heard.to_string(),
                },
                "annotations": { "volumes.kubernetes.io/heard": heard.to_string() },
            },
            "spec": { "podCIDR": "10.1.0.0/24" },
            "status": { "conditions": [{ "type": "Ready", "lastHeartbeatTime": heard.to_string() }] },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_node_is_news_only_if_it_is_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let size = || std::fs::metadata(dir.path().join("objects")).unwrap().len();
        let store = Store::new(Settings::default(), &publish());
        let mut reader = Reader::open(store, Some(dir.path().to_owned()));
        let answers = Arc::default();
        let all =
            Kind::ALL.into_iter().flat_map(|kind| [Heard::Begin(kind), Heard::Complete(kind)]);
        reader = reader.take(all.collect(), &answers);
        let mut told = Vec::new();
        for (zone, heard) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5)] {
            let before = size();
            reader.hear(Heard::Applied(Kind::Node, Box::new(node(zone, heard))));
            let is_stale = reader.is_stale;
            reader = reader.take(Vec::new(), &answers);
            told.push((is_stale, size() > before));
        }
        let (news, none) = ((true, true), (false, false));
        assert_eq!(told, [news, none, none, news, none]);
        // A list that has it is no news either; one that lacks it is.
        reader.hear(Heard::Begin(Kind::Node));
        reader.hear(Heard::Found(Kind::Node, Box::new(node("b", 6))));
        reader.hear(Heard::Complete(Kind::Node));
        assert!(!reader.is_stale);
        reader.hear(Heard::Begin(Kind::Node));
        reader.hear(Heard::Complete(Kind::Node));
        assert!(reader.is_stale);
    }
}
