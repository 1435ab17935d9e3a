//! Writes the status of Istio's objects, as the leader's compiler finds them.
//!
//! It follows the configuration as an agent does (`config::run`), so a status says what an agent says.
//! Invariant: what is written twice to one object in vain waits twice as long each time, whoever is at
//! fault (an API server that refuses, another writer that undoes it), and all writes together have a
//! rate.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::ExponentialBackoff;
use futures_util::StreamExt as _;
use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::Metrics;
use super::status::{Facts, desired, is_own, patch};
use crate::config::{
    self, Cluster, Diagnostic, Key, Observed, Publish, Seen, Settings, Source, resource,
};
use crate::model::{ObjectRef, Snapshot};
use crate::waits::growing;

/// Writes in one round, and under way at once.
const ROUND: usize = 50;
const AT_ONCE: usize = 8;
/// From the end of a round to the next.
const BETWEEN: Duration = Duration::from_secs(1);
/// Wait before the same is written to an object again, at first and at most; with jitter.
const FIRST_AGAIN: Duration = Duration::from_secs(2);
const LAST_AGAIN: Duration = Duration::from_secs(600);
/// Nothing is due: looked at again all the same.
const IDLE: Duration = Duration::from_secs(60);
/// Time for one write.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Writes until dropped.
pub(super) async fn follow(client: Client, settings: Settings, metrics: &Metrics) {
    let (observe, observed) = watch::channel(None);
    let source = Source::Cluster(Box::new(Cluster {
        client: client.clone(),
        cache: None,
        observe: Some(observe),
    }));
    let publish = Publish {
        snapshot: watch::Sender::new(Arc::new(Snapshot::default())),
        diagnostics: watch::Sender::default(),
        missing: watch::Sender::new(Arc::from([])),
    };
    // What a name resolves to is no matter of an object's status.
    let (_, no_answers) = watch::channel(Arc::default());
    let mut writer = Writer { client, metrics, pace: Pace::default() };
    tokio::select! {
        ended = config::run(source, settings, no_answers, publish) => {
            tracing::error!(?ended, "objects are not followed any more");
        }
        never = writer.run(observed) => match never {},
    }
}

struct Writer<'a> {
    client: Client,
    metrics: &'a Metrics,
    pace: Pace,
}

/// A write that is due.
struct Due {
    key: Key,
    seen: Arc<Seen>,
    status: Value,
}

impl Writer<'_> {
    async fn run(&mut self, mut observed: watch::Receiver<Option<Arc<Observed>>>) -> Infallible {
        loop {
            let now = observed.borrow_and_update().clone();
            let next = match now {
                Some(now) => self.round(&now).await,
                None => Instant::now() + IDLE,
            };
            tokio::select! {
                // Never again, if the source has ended: then this is dropped.
                Ok(()) = observed.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Writes what differs. Returns when to look again, should nothing change.
    async fn round(&mut self, observed: &Observed) -> Instant {
        let stamp = stamp(SystemTime::now());
        let (due, next) = self.due(observed, &stamp, Instant::now());
        if due.is_empty() {
            return next;
        }
        let this = &*self;
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |due| async move { this.write(due).await })
            .await;
        tokio::time::sleep(BETWEEN).await;
        Instant::now()
    }

    /// Writes that are due at `now`, and when the next one will be.
    fn due(&mut self, observed: &Observed, stamp: &str, now: Instant) -> (Vec<Due>, Instant) {
        self.pace.keep(|key| observed.objects.contains_key(key));
        let findings = by_object(&observed.diagnostics);
        let (mut due, mut next) = (Vec::new(), now + IDLE);
        for (key, seen) in &observed.objects {
            let found = findings.get(&key.to_ref()).map(Vec::as_slice).unwrap_or_default();
            let facts = Facts { kind: key.kind, generation: seen.generation, findings: found };
            let Some(status) = desired(&seen.status, facts, stamp) else { continue };
            match self.pace.attempt(key, facts.generation, &status, now) {
                Ok(()) => due.push(Due { key: key.clone(), seen: Arc::clone(seen), status }),
                Err(at) => next = next.min(at),
            }
            if due.len() >= ROUND {
                break;
            }
        }
        (due, next)
    }

    async fn write(&self, due: Due) {
        let Due { key, seen, status } = due;
        let object = key.to_ref();
        let resource = resource(key.kind, &seen.version);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let patch = Patch::Merge(patch(status, &seen.resource_version));
        let params = PatchParams::default();
        let written =
            tokio::time::timeout(TIMEOUT, api.patch_status(&key.name, &params, &patch)).await;
        match written {
            Ok(Ok(_)) => self.metrics.written("ok"),
            // It is gone, or another version of it is on its way here.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                self.metrics.written("conflict");
            }
            Ok(Err(error)) => {
                self.metrics.written("error");
                tracing::warn!(%object, %error, "cannot write the status of an object");
            }
            Err(_) => {
                self.metrics.written("error");
                tracing::warn!(%object, "cannot write the status of an object in time");
            }
        }
    }
}

fn by_object(diagnostics: &[Diagnostic]) -> HashMap<ObjectRef, Vec<&Diagnostic>> {
    let mut found: HashMap<ObjectRef, Vec<&Diagnostic>> = HashMap::new();
    for diagnostic in diagnostics {
        if let Some(object) = &diagnostic.object {
            found.entry(object.clone()).or_default().push(diagnostic);
        }
    }
    found
}

/// RFC 3339, in seconds, as Kubernetes writes times.
fn stamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or_default();
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

// === Pace ===

/// What was tried last for each object, and when it may be tried again.
#[derive(Default)]
struct Pace(BTreeMap<Key, Tried>);

struct Tried {
    /// The generation, and what was to be said of it.
    what: (i64, Value),
    waits: ExponentialBackoff,
    next: Instant,
}

impl Pace {
    /// Notes an attempt; or says when there may be one.
    fn attempt(
        &mut self,
        key: &Key,
        generation: i64,
        status: &Value,
        now: Instant,
    ) -> Result<(), Instant> {
        let what = (generation, said(status));
        let tried = self.0.get_mut(key).filter(|tried| tried.what == what);
        if let Some(tried) = tried {
            if now < tried.next {
                return Err(tried.next);
            }
            tried.next = now + tried.waits.next().unwrap_or(LAST_AGAIN);
            return Ok(());
        }
        let mut waits = growing(FIRST_AGAIN, LAST_AGAIN);
        let next = now + waits.next().unwrap_or(LAST_AGAIN);
        self.0.insert(key.clone(), Tried { what, waits, next });
        Ok(())
    }

    /// Forgets objects that are gone.
    fn keep(&mut self, is_there: impl Fn(&Key) -> bool) {
        self.0.retain(|key, _| is_there(key));
    }
}

/// The words of a status: neither its dates nor what others have in it.
fn said(status: &Value) -> Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|condition| is_own(condition))
        .map(|condition| {
            Value::from(vec![condition["status"].clone(), condition["message"].clone()])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Kind;

    fn key(name: &str) -> Key {
        Key { kind: Kind::VirtualService, namespace: "shop".into(), name: name.into() }
    }

    fn status(word: &str) -> Value {
        json!({ "conditions": [{ "type": "Accepted", "status": word, "message": "" }] })
    }

    #[test]
    fn the_same_waits_longer_each_time() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut attempts = 0;
        let begun = now;
        while now.duration_since(begun) < Duration::from_secs(600) {
            match pace.attempt(&key("a"), 1, &status("True"), now) {
                Ok(()) => attempts += 1,
                Err(next) => now = next,
            }
        }
        assert!((6..=10).contains(&attempts), "{attempts} in ten minutes");
        // News is told at once, and another object has its own pace.
        assert_eq!(pace.attempt(&key("a"), 2, &status("True"), now), Ok(()));
        assert_eq!(pace.attempt(&key("a"), 2, &status("False"), now), Ok(()));
        assert_eq!(pace.attempt(&key("b"), 1, &status("True"), now), Ok(()));
        assert!(pace.attempt(&key("b"), 1, &status("True"), now).is_err());
        let mut crowded = status("True");
        crowded["conditions"].as_array_mut().unwrap().push(json!({ "type": "Other" }));
        assert!(pace.attempt(&key("b"), 1, &crowded, now).is_err(), "others' words are no news");
        pace.keep(|key| &*key.name == "a");
        assert_eq!(pace.attempt(&key("b"), 1, &status("True"), now), Ok(()));
    }

    #[test]
    fn a_stamp_is_kubernetes_own() {
        let time = UNIX_EPOCH + Duration::from_millis(1_769_860_800_999);
        assert_eq!(stamp(time), "2026-01-31T12:00:00Z");
    }
}
