//! Keeps the set of captured pods as the configuration asks for it.
//!
//! Invariant: a running pod is enrolled last (certificate and listeners are there first), and only
//! an enrolled pod is announced; a pod that leaves the mesh is taken from the announcement before
//! its capture ends, so that no source tunnels to a pod that is not listening; once another agent has
//! taken over, pods and announcement are that agent's, as long as it lives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::direct::DirectTable;
use super::options::NodeOptions;
use super::workers::Workers;
use crate::capture::{Charge, PodFinder, PodNet, PodSettings};
use crate::config;
use crate::model::{CaptureRules, Snapshot, Workload};
use crate::proxy::{Command, Shared};
use crate::tunnel::{LocalPod, LocalPods, Quota};

/// How often the node's cgroups are looked through: a pod's first process may come after its object.
const SCAN: Duration = Duration::from_millis(200);

/// Time between the end of a pod's announcement and the end of its capture: the other agents read
/// the announcement within it.
const WITHDRAW_GRACE: Duration = Duration::from_millis(1500);

/// A pod that is captured.
struct Enrolled {
    pod: Arc<LocalPod>,
    rules: CaptureRules,
}

/// Enrols and withdraws pods of this node.
pub(super) struct Enroller {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    node: Arc<str>,
    cgroup: PathBuf,
    finder: PodFinder,
    config_dir: PathBuf,
    enrolled: FxHashMap<Arc<str>, Enrolled>,
    announced: Option<BTreeSet<Arc<str>>>,
    /// Withdrawn pods that still run: connections made in the mesh go on, and on an open HTTP
    /// connection so do new requests, under the pod's certificate.
    drained: FxHashMap<Arc<str>, Arc<LocalPod>>,
    /// Pods that are no longer announced, and when their capture ends.
    leaving: FxHashMap<Arc<str>, Instant>,
    /// Pods that are enrolled, and have to be so anew: another agent has been in charge.
    stale: BTreeSet<Arc<str>>,
    /// Failures already reported, so that a pod that cannot be enrolled is logged once.
    reported: FxHashMap<Arc<str>, String>,
    direct: DirectTable,
    /// Connections that each pod may have.
    pod_connections: usize,
    /// Told when the pods of the first configuration have been enrolled.
    ready: Option<oneshot::Sender<()>>,
    /// Told when this agent has taken over again from one that ended.
    taken_back: Arc<Notify>,
    /// Whether another agent is in charge, and this one only lives to finish what it has begun.
    replaced: bool,
}

impl Enroller {
    pub(super) fn new(
        shared: Arc<Shared>,
        workers: Arc<Workers>,
        options: &NodeOptions,
        ready: oneshot::Sender<()>,
        taken_back: Arc<Notify>,
    ) -> Self {
        Self {
            shared,
            workers,
            node: options.node_name.as_str().into(),
            cgroup: options.cgroup.clone(),
            finder: PodFinder::default(),
            config_dir: options.config_dir.clone(),
            enrolled: FxHashMap::default(),
            announced: None,
            drained: FxHashMap::default(),
            leaving: FxHashMap::default(),
            stale: BTreeSet::new(),
            reported: FxHashMap::default(),
            direct: DirectTable::default(),
            pod_connections: options.max_connections_per_pod.unwrap_or(usize::MAX),
            ready: Some(ready),
            taken_back,
            replaced: false,
        }
    }

    /// Reconciles at every snapshot and every [`SCAN`], until `stop`. While another agent is in charge
    /// it waits: should that one end first, this one takes over again.
    pub(super) async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(SCAN);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut snapshot = snapshots.borrow_and_update().clone();
        let mut local = self.local(&snapshot);
        loop {
            if self.is_in_charge() {
                self.reconcile(&snapshot, &local).await;
                self.direct.update(&self.shared, &snapshot);
                self.tell_ready(&snapshot);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    snapshot = snapshots.borrow_and_update().clone();
                    local = self.local(&snapshot);
                }
                _ = tick.tick() => {}
            }
        }
    }

    fn is_in_charge(&mut self) -> bool {
        match self.shared.capture.charge() {
            Charge::This => true,
            Charge::Another => {
                if !std::mem::replace(&mut self.replaced, true) {
                    tracing::info!("another agent has taken over, this one drains");
                }
                false
            }
            Charge::Nobody => {
                if let Err(error) = self.shared.capture.take_back() {
                    tracing::error!(%error, "cannot take over again from an agent that ended");
                    return false;
                }
                tracing::warn!("the agent that had taken over has ended, this one goes on");
                self.replaced = false;
                // Listeners and announcement were the other's.
                self.stale = self.enrolled.keys().cloned().collect();
                self.announced = None;
                self.taken_back.notify_one();
                true
            }
        }
    }

    fn tell_ready(&mut self, snapshot: &Snapshot) {
        // Told by the snapshot itself: the first one may be older than this task's first turn.
        if let Some(ready) = self.ready.take_if(|_| snapshot.generation > 0) {
            if let Err(error) = self.shared.capture.settle() {
                tracing::error!(%error, "cannot remove what another version has left");
            }
            // Nobody waits any more: the agent stops.
            let _ = ready.send(());
        }
    }

    /// The pods of this node that belong in the mesh: a few of the snapshot's many.
    fn local(&self, snapshot: &Snapshot) -> Vec<Arc<Workload>> {
        let all = snapshot.workloads_by_uid.values();
        all.filter(|workload| *workload.node == *self.node && wanted(workload)).cloned().collect()
    }

    async fn reconcile(&mut self, snapshot: &Snapshot, local: &[Arc<Workload>]) {
        let running: FxHashMap<String, u32> = match self.finder.find(&self.cgroup) {
            Ok(pods) => pods.into_iter().map(|pod| (pod.uid, pod.pid)).collect(),
            Err(error) => {
                tracing::error!(cgroup = %self.cgroup.display(), %error, "cannot list pods");
                return;
            }
        };
        self.forget_dead(&running);
        self.update_leaving(snapshot, Instant::now());
        for workload in local {
            self.enroll(workload, &running).await;
        }
        self.announce();
    }

    /// Pods whose labels no longer ask for the mesh lose their announcement now, their capture
    /// later. A pod whose object is gone stays in the mesh until its sandbox stops.
    fn update_leaving(&mut self, snapshot: &Snapshot, now: Instant) {
        for uid in self.enrolled.keys() {
            match snapshot.workloads_by_uid.get(uid) {
                Some(workload) if !wanted(workload) => {
                    self.leaving.entry(uid.clone()).or_insert(now + WITHDRAW_GRACE);
                }
                _ => {
                    self.leaving.remove(uid);
                }
            }
        }
        let due: Vec<Arc<str>> = self
            .leaving
            .iter()
            .filter(|(_, end)| **end <= now)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in due {
            self.withdraw(&uid);
        }
    }

    async fn enroll(&mut self, workload: &Arc<Workload>, running: &FxHashMap<String, u32>) {
        let current = self.enrolled.get(&workload.uid);
        let is_stale = self.stale.contains(&workload.uid);
        if current.is_some_and(|enrolled| enrolled.rules == workload.capture && !is_stale) {
            return;
        }
        let Some(pid) = running.get(&*workload.uid) else { return };
        match self.try_enroll(workload, *pid).await {
            Ok(()) => {
                self.reported.remove(&workload.uid);
                self.stale.remove(&workload.uid);
                tracing::info!(pod = %workload.name, identity = %workload.identity, "pod enrolled");
            }
            Err(error) => {
                let message = format!("{error:#}");
                if self.reported.get(&workload.uid) != Some(&message) {
                    tracing::error!(pod = %workload.name, error = message, "cannot enroll a pod");
                    self.reported.insert(workload.uid.clone(), message);
                }
            }
        }
    }

    async fn try_enroll(&mut self, workload: &Arc<Workload>, pid: u32) -> anyhow::Result<()> {
        let net = PodNet::of_pid(pid)?;
        let settings = PodSettings {
            ips: workload.ips.clone(),
            exclude_outbound_ports: workload.capture.exclude_outbound_ports.clone(),
            exclude_inbound_ports: workload.capture.exclude_inbound_ports.clone(),
            exclude_outbound_ranges: workload.capture.exclude_outbound_ranges.clone(),
        };
        // Enrolled already: only its exclusions changed, and new listeners take over from the old
        // ones. Enrolled before: its certificate was kept.
        let known =
            self.enrolled.contains_key(&workload.uid) || self.drained.contains_key(&workload.uid);
        if !known {
            self.shared.identities.ensure(&workload.identity).await?;
        }
        // Its connections go on, and count on.
        let before = self.enrolled.get(&workload.uid).map(|enrolled| &enrolled.pod);
        let before = before.or_else(|| self.drained.get(&workload.uid));
        let name: Arc<str> = workload.name.to_string().into();
        let budget = &self.shared.budget;
        let quota = before.map_or_else(
            || Quota::new(name.clone(), budget.clone(), self.pod_connections),
            |pod| pod.quota.clone(),
        );
        let pod = Arc::new(LocalPod {
            uid: workload.uid.clone(),
            name,
            identity: workload.identity.clone(),
            ips: workload.ips.clone(),
            net,
            quota,
        });
        let listeners = match self.shared.capture.enroll(&pod.net, &settings) {
            Ok(listeners) => listeners,
            Err(error) => {
                if !known {
                    self.shared.identities.release(&workload.identity);
                }
                return Err(error.into());
            }
        };
        self.drained.remove(&workload.uid);
        if let Some(worker) = self.workers.home(&workload.uid) {
            worker.send(Command::Listen(pod.clone(), listeners));
        }
        self.enrolled
            .insert(workload.uid.clone(), Enrolled { pod, rules: workload.capture.clone() });
        self.publish();
        Ok(())
    }

    fn withdraw(&mut self, uid: &Arc<str>) {
        self.leaving.remove(uid);
        self.stale.remove(uid);
        let Some(enrolled) = self.enrolled.remove(uid) else { return };
        if let Err(error) =
            self.shared.capture.withdraw(enrolled.pod.net.cookie(), &enrolled.pod.ips)
        {
            tracing::error!(pod = %enrolled.pod.name, %error, "cannot withdraw a pod");
        }
        tracing::info!(pod = %enrolled.pod.name, "pod withdrawn");
        self.drained.insert(uid.clone(), enrolled.pod);
        self.publish();
        if let Some(worker) = self.workers.home(uid) {
            worker.send(Command::Unlisten(uid.clone()));
        }
    }

    /// Pods whose last process has ended.
    fn forget_dead(&mut self, running: &FxHashMap<String, u32>) {
        let dead: Vec<Arc<str>> =
            self.enrolled.keys().filter(|uid| !running.contains_key(&***uid)).cloned().collect();
        for uid in dead {
            self.withdraw(&uid);
        }
        let gone = |uid: &Arc<str>| !running.contains_key(&**uid);
        let ended: Vec<Arc<str>> = self.drained.keys().filter(|uid| gone(uid)).cloned().collect();
        for uid in &ended {
            if let Some(pod) = self.drained.remove(uid) {
                self.shared.identities.release(&pod.identity);
            }
        }
        if !ended.is_empty() {
            self.publish();
        }
    }

    /// Makes the set of local pods known to the data path.
    fn publish(&self) {
        let mut pods = LocalPods::default();
        for (uid, pod) in &self.drained {
            pods.by_uid.insert(uid.clone(), pod.clone());
        }
        for enrolled in self.enrolled.values() {
            pods.by_uid.insert(enrolled.pod.uid.clone(), enrolled.pod.clone());
            for ip in &enrolled.pod.ips {
                pods.by_ip.insert(*ip, enrolled.pod.clone());
            }
        }
        self.shared.pods.store(Arc::new(pods));
    }

    /// Tells the other agents which pods take tunnels here.
    fn announce(&mut self) {
        let set: BTreeSet<Arc<str>> =
            self.enrolled.keys().filter(|uid| !self.leaving.contains_key(*uid)).cloned().collect();
        if self.announced.as_ref() == Some(&set) {
            return;
        }
        match config::announce(&self.config_dir, &self.node, &set) {
            Ok(()) => self.announced = Some(set),
            Err(error) => tracing::error!(%error, "cannot announce enrolled pods"),
        }
    }
}

/// Whether a pod belongs in the mesh and can be captured.
fn wanted(workload: &Workload) -> bool {
    workload.selected && !workload.host_network && !workload.finished && !workload.ips.is_empty()
}
