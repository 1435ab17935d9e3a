//! What the agent writes to the API server about its pods: the annotation that says a pod takes
//! tunnels, and Events for people.
//!
//! It compares what the agent wants with what the snapshot says is written, and writes the difference,
//! until they agree: a write that was lost, or undone by someone else, is made again. Of a pod only
//! `status` may be written (`pods/status` of RBAC), which covers annotations; the pod's UID goes along,
//! so that a pod of the same name that has taken its place is left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use rustc_hash::FxHashMap;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::translate::ENROLLED;
use super::super::writer::Announcement;
use crate::model::{Snapshot, Workload};

/// Writes under way at once; a node that comes up has some hundred pods.
const AT_ONCE: usize = 16;
/// A write that cannot be seen in the snapshot after this long is made again.
const AGAIN: Duration = Duration::from_secs(2);
/// Who the Events are from.
const CONTROLLER: &str = "malha.dev/agent";

/// Keeps annotations and Events as announced, until dropped. Nothing is written before the first
/// announcement: until then the annotations of the agent before hold.
pub async fn annotate(
    client: Client,
    node: Arc<str>,
    mut wanted: watch::Receiver<Option<Arc<Announcement>>>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_string()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut writer =
        Writer { client, recorder, node, tried: FxHashMap::default(), failed: BTreeMap::new() };
    loop {
        let announced = wanted.borrow_and_update().clone();
        let snapshot = snapshots.borrow_and_update().clone();
        if let Some(announced) = announced {
            writer.write(&announced, &snapshot).await;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            changed = snapshots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

struct Writer {
    client: Client,
    recorder: Recorder,
    node: Arc<str>,
    /// What was last written for a pod, and when.
    tried: FxHashMap<Arc<str>, (bool, Instant)>,
    /// Failures that an Event tells of.
    failed: BTreeMap<Arc<str>, String>,
}

impl Writer {
    async fn write(&mut self, announced: &Announcement, snapshot: &Snapshot) {
        let now = Instant::now();
        let local = || snapshot.workloads_by_uid.values().filter(|pod| pod.node == self.node);
        let mut due = differences(announced, (snapshot.generation, local()));
        due.retain(|(pod, enrolled)| {
            let tried = self.tried.get(&pod.uid);
            tried.is_none_or(|(tried, at)| tried != enrolled || now.duration_since(*at) >= AGAIN)
        });
        let failures = failures(announced, local());
        self.tried.retain(|uid, _| snapshot.workloads_by_uid.contains_key(uid));
        for (pod, enrolled) in &due {
            self.tried.insert(pod.uid.clone(), (*enrolled, now));
        }
        let told = std::mem::take(&mut self.failed);
        let reasons = failures.iter().map(|(pod, reason)| (pod.uid.clone(), reason.clone()));
        self.failed = reasons.collect();
        let this = &*self;
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(pod, enrolled)| async move {
                this.mark(&pod, enrolled).await
            })
            .await;
        for (pod, reason) in failures {
            if told.get(&pod.uid) == Some(&reason) {
                continue;
            }
            let note = format!("not in the mesh: {reason}");
            self.tell(&pod, EventType::Warning, "NotEnrolled", note).await;
        }
    }

    async fn mark(&self, pod: &Workload, enrolled: bool) {
        let value = enrolled.then_some("true");
        let change = json!({"metadata": {"uid": pod.uid, "annotations": {ENROLLED: value}}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.name.namespace);
        let written =
            pods.patch_status(&pod.name.name, &PatchParams::default(), &Patch::Merge(change)).await;
        match written {
            Ok(_) if enrolled => {
                let note = format!("in the mesh as {}", pod.identity);
                self.tell(pod, EventType::Normal, "Enrolled", note).await;
            }
            Ok(_) => {
                let note = "no longer in the mesh".to_owned();
                self.tell(pod, EventType::Normal, "Withdrawn", note).await;
            }
            // Gone, or another pod of that name: the snapshot will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                tracing::warn!(pod = %pod.name, %error, "cannot write the pod's annotation");
            }
        }
    }

    /// Events are for people: one that cannot be written is not missed by anything.
    async fn tell(&self, pod: &Workload, type_: EventType, reason: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Enroll".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.name.to_string()),
            namespace: Some(pod.name.namespace.to_string()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            tracing::debug!(pod = %pod.name, %error, "cannot write an Event");
        }
    }
}

/// Pods that should be in the mesh and are not, and why: those that could not be enrolled, and those
/// that never can be, which the enroller does not try.
fn failures<'a>(
    announced: &Announcement,
    local: impl Iterator<Item = &'a Arc<Workload>>,
) -> Vec<(Arc<Workload>, String)> {
    let unfit = |pod: &Workload| {
        let reason = pod.unfit.filter(|_| !pod.finished)?;
        Some(format!("it {reason}"))
    };
    let failed = |pod: &Workload| announced.failed.get(&pod.uid).cloned();
    local.filter_map(|pod| Some((pod.clone(), failed(pod).or_else(|| unfit(pod))?))).collect()
}

/// Pods whose annotation is not as announced, and what it should be. An announcement that is older
/// than the snapshot may not know of a pod yet: then what the agent before has written holds.
fn differences<'a>(
    announced: &Announcement,
    (generation, local): (u64, impl Iterator<Item = &'a Arc<Workload>>),
) -> Vec<(Arc<Workload>, bool)> {
    let is_known = announced.generation >= generation;
    local
        .map(|pod| (pod, announced.enrolled.contains(&pod.uid)))
        .filter(|(pod, enrolled)| pod.enrolled != *enrolled && (*enrolled || is_known))
        .map(|(pod, enrolled)| (pod.clone(), enrolled))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CaptureRules, PeerPolicy, SpiffeId, WorkloadName};

    fn pod(enrolled: bool) -> Arc<Workload> {
        Arc::new(Workload {
            uid: "u".into(),
            name: WorkloadName { namespace: "shop".into(), name: "web".into() },
            node: "n1".into(),
            locality: None,
            identity: SpiffeId {
                trust_domain: "cluster.local".into(),
                namespace: "shop".into(),
                service_account: "web".into(),
            },
            ips: Vec::new(),
            labels: BTreeMap::new(),
            host_network: false,
            selected: true,
            unfit: None,
            enrolled,
            finished: false,
            terminating: false,
            capture: CaptureRules::default(),
            peer_policy: PeerPolicy::default(),
        })
    }

    /// An agent that takes over has announced nobody of a snapshot that it has not looked through.
    #[test]
    fn an_older_announcement_takes_nothing_back() {
        let found = |generation, enrolled: &[&str], written| {
            let announced = Announcement {
                generation,
                enrolled: enrolled.iter().map(|uid| Arc::from(*uid)).collect(),
                ..Announcement::default()
            };
            let pod = pod(written);
            let due = differences(&announced, (7, [&pod].into_iter()));
            due.first().map(|(_, enrolled)| *enrolled)
        };
        assert_eq!(found(6, &[], true), None, "it may not have been looked at");
        assert_eq!(found(7, &[], true), Some(false));
        assert_eq!(found(6, &["u"], false), Some(true));
        assert_eq!(found(7, &["u"], true), None);
        assert_eq!(found(7, &[], false), None);
    }

    /// Whoever labelled a pod learns why it is not in the mesh, also where nobody will ever try.
    #[test]
    fn a_pod_that_cannot_be_in_the_mesh_is_told_of() {
        let unfit =
            Workload { selected: false, unfit: Some("has a sidecar"), ..(*pod(false)).clone() };
        let finished = Workload { finished: true, ..unfit.clone() };
        let failed = Announcement {
            failed: [("u".into(), "no address".into())].into(),
            ..Announcement::default()
        };
        let told = |announced: &Announcement, pod: Workload| {
            let found = failures(announced, [&Arc::new(pod)].into_iter());
            found.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>()
        };
        let nobody = Announcement::default();
        assert_eq!(told(&nobody, unfit.clone()), ["it has a sidecar"]);
        assert_eq!(told(&failed, unfit), ["no address"], "once");
        assert!(told(&nobody, finished).is_empty());
        assert!(told(&nobody, (*pod(false)).clone()).is_empty());
    }
}
