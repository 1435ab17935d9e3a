//! Keeps the set of captured pods as the configuration asks for it.
//!
//! Invariant: a running pod is enrolled last (certificate and listeners are there first), and only
//! an enrolled pod is announced; a pod that leaves the mesh is taken from the announcement before
//! its capture ends, so that no source tunnels to a pod that is not listening; once another agent has
//! taken over, pods and announcement are that agent's, as long as it lives. A pod that was captured
//! before its first process (`sandboxes`) is held until it is enrolled.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::direct::DirectTable;
use super::held::{Heard, HeldPods};
use super::options::NodeOptions;
use super::probes::Probes;
use super::sandboxes::settings;
use super::workers::Workers;
use crate::capture::{Charge, PodFinder, PodListeners, PodNet};
use crate::config::{Announcement, Announcer};
use crate::model::{CaptureRules, ObjectRef, Snapshot, Workload};
use crate::proxy::{Command, Shared};
use crate::tunnel::{LocalPod, LocalPods, Quota};

/// How often the node's cgroups are looked through: a pod's first process may come after its object.
const SCAN: Duration = Duration::from_millis(200);

/// Time between the end of a pod's announcement and the end of its capture: the other agents read
/// the announcement within it.
const WITHDRAW_GRACE: Duration = Duration::from_millis(1500);

/// A pod is withdrawn after this long, though this agent has not yet read that its announcement has
/// ended: the API server is away.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(15);

/// A pod that cannot be enrolled is tried again after this long, and after twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// But no later than after this.
const LAST_RETRY: Duration = Duration::from_secs(15);

/// A pod that is captured.
struct Enrolled {
    pod: Arc<LocalPod>,
    rules: CaptureRules,
    /// The container runtime's name for its sandbox, if that told of it.
    sandbox: Option<Arc<str>>,
}

/// Who tells the enroller what.
pub(super) struct Ends {
    /// What the container runtime says of pods.
    pub(super) heard: mpsc::UnboundedReceiver<Heard>,
    /// Told when the pods of the first configuration have been enrolled.
    pub(super) ready: oneshot::Sender<()>,
    /// Told when this agent has taken over again from one that ended.
    pub(super) taken_back: Arc<Notify>,
}

/// Why a pod is not enrolled, which is logged once, and when it is tried again.
struct Failure {
    reason: String,
    wait: Duration,
    next: Instant,
}

/// `mesh-agent cleanup --withdraw` wants the node's pods out of the mesh: all nodes' at once, when the
/// mesh is taken off a cluster.
struct Departure {
    since: Instant,
    /// When no pod on any node was announced any more.
    unannounced: Option<Instant>,
}

impl Departure {
    /// Whether captures may end. Every agent of the cluster lets plaintext in by the time that its pods
    /// are unannounced, so that a pod that is no longer captured reaches the others' pods then.
    fn is_due(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        if self.unannounced.is_none() {
            let mut workloads = snapshot.workloads_by_uid.values();
            self.unannounced = (!workloads.any(|workload| workload.enrolled)).then_some(now);
        }
        let is_told = |at: Instant| now.duration_since(at) >= WITHDRAW_GRACE;
        self.unannounced.is_some_and(is_told) || now.duration_since(self.since) >= WITHDRAW_LIMIT
    }
}

/// Enrols and withdraws pods of this node.
pub(super) struct Enroller {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    node: Arc<str>,
    cgroup: PathBuf,
    finder: PodFinder,
    announcer: Announcer,
    enrolled: FxHashMap<Arc<str>, Enrolled>,
    announced: Option<Announcement>,
    /// Withdrawn pods that still run: connections made in the mesh go on, and on an open HTTP
    /// connection so do new requests, under the pod's certificate.
    drained: FxHashMap<Arc<str>, Arc<LocalPod>>,
    /// Pods that are no longer announced, and since when; their capture is about to end.
    leaving: FxHashMap<Arc<str>, Instant>,
    /// The whole node is leaving the mesh.
    departure: Option<Departure>,
    /// Pods that are enrolled, and have to be so anew: another agent has been in charge.
    stale: BTreeSet<Arc<str>>,
    /// Pods that could not be enrolled.
    failures: FxHashMap<Arc<str>, Failure>,
    /// Pods that were captured before their first process, and are not enrolled yet.
    held: HeldPods,
    direct: DirectTable,
    probes: Probes,
    /// Connections that each pod may have.
    pod_connections: usize,
    /// Whether pods come into the mesh that something is meant to protect which is not enforced.
    accept_not_enforced: bool,
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
        announcer: Announcer,
        ends: Ends,
    ) -> Self {
        Self {
            shared,
            workers,
            node: options.node_name.as_str().into(),
            cgroup: options.pods_cgroup.clone(),
            finder: PodFinder::default(),
            announcer,
            enrolled: FxHashMap::default(),
            announced: None,
            drained: FxHashMap::default(),
            leaving: FxHashMap::default(),
            departure: None,
            stale: BTreeSet::new(),
            failures: FxHashMap::default(),
            held: HeldPods::new(ends.heard),
            direct: DirectTable::default(),
            probes: Probes::new(options.cgroup.clone()),
            pod_connections: options.max_connections_per_pod.unwrap_or(usize::MAX),
            accept_not_enforced: options.accept_not_enforced,
            ready: Some(ends.ready),
            taken_back: ends.taken_back,
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
                // Before there is a configuration, what the agent before has put in place stays.
                let is_configured = snapshot.generation > 0;
                if is_configured {
                    self.admit_probes(&local);
                }
                self.reconcile(&snapshot, &local).await;
                if is_configured {
                    self.direct.update(&self.shared, &snapshot);
                }
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
                heard = self.held.wait() => self.hear(heard),
                _ = tick.tick() => {}
            }
        }
    }

    /// The container runtime says something of a pod.
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Captured { uid, held } if self.held.was_stopped(&uid, &held.sandbox) => {
                held.release(&self.shared.capture);
            }
            Heard::Captured { uid, mut held } => {
                let before = self.enrolled.get(&uid).map(|enrolled| enrolled.pod.net.cookie());
                if before == Some(held.net.cookie()) {
                    // Both at once, and nobody knows whose listeners the kernel has: made once more.
                    held.overtake();
                    self.stale.insert(uid.clone());
                } else if before.is_some() {
                    self.withdraw(&uid);
                }
                self.failures.remove(&uid);
                let of_before = self.held.insert(uid.clone(), *held);
                let now = self.held.get(&uid).map(|held| held.net.cookie());
                if let Some(held) = of_before.filter(|held| Some(held.net.cookie()) != now) {
                    held.release(&self.shared.capture);
                }
            }
            Heard::Stopped { uid, sandbox } => {
                if let Some(held) = self.held.stop(&uid, &sandbox) {
                    held.release(&self.shared.capture);
                }
                let of = self.enrolled.get(&uid).map(|enrolled| &enrolled.sandbox);
                if of.is_some_and(|of| of.as_ref().is_none_or(|of| *of == sandbox)) {
                    self.withdraw(&uid);
                }
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
        // Before the node is looked through: what was captured until now must be found there.
        while let Some(heard) = self.held.hear() {
            self.hear(heard);
        }
        let running: FxHashMap<String, u32> = match self.finder.find(&self.cgroup) {
            Ok(pods) => pods.into_iter().map(|pod| (pod.uid, pod.pid)).collect(),
            Err(error) => {
                tracing::error!(cgroup = %self.cgroup.display(), %error, "cannot list pods");
                return;
            }
        };
        self.forget_dead(&running);
        if self.shared.capture.look_for_leave() {
            self.depart(snapshot, Instant::now());
            self.release_held(|_| true);
            return self.announce(snapshot.generation);
        }
        self.departure = None;
        self.update_leaving(snapshot, Instant::now());
        for workload in local {
            if !self.holds_back(workload, snapshot) {
                self.enroll(workload, &running).await;
            }
        }
        self.release_unwanted(snapshot, &running);
        self.announce(snapshot.generation);
    }

    /// Takes back every announcement, and ends every capture once no pod of the mesh is announced.
    fn depart(&mut self, snapshot: &Snapshot, now: Instant) {
        let departure = self.departure.get_or_insert_with(|| {
            tracing::info!("the pods of this node are asked to leave the mesh");
            Departure { since: now, unannounced: None }
        });
        let is_due = departure.is_due(snapshot, now);
        let enrolled: Vec<Arc<str>> = self.enrolled.keys().cloned().collect();
        for uid in enrolled {
            match is_due {
                true => self.withdraw(&uid),
                false => {
                    self.leaving.entry(uid).or_insert(now);
                }
            }
        }
    }

    /// Pods whose labels no longer ask for the mesh lose their announcement now, their capture
    /// later. A pod whose object is gone stays in the mesh until its sandbox stops.
    fn update_leaving(&mut self, snapshot: &Snapshot, now: Instant) {
        for uid in self.enrolled.keys() {
            match snapshot.workloads_by_uid.get(uid) {
                Some(workload) if !wanted(workload) => {
                    self.leaving.entry(uid.clone()).or_insert(now);
                }
                _ => {
                    self.leaving.remove(uid);
                }
            }
        }
        let is_due = |(uid, since): &(&Arc<str>, &Instant)| {
            let workload = snapshot.workloads_by_uid.get(*uid);
            let is_announced = workload.is_some_and(|workload| workload.enrolled);
            let wait = if is_announced { WITHDRAW_LIMIT } else { WITHDRAW_GRACE };
            now.duration_since(**since) >= wait
        };
        let due: Vec<Arc<str>> =
            self.leaving.iter().filter(is_due).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.withdraw(&uid);
        }
    }

    /// Captured pods that turn out not to belong in the mesh, or have ended.
    fn release_unwanted(&mut self, snapshot: &Snapshot, running: &FxHashMap<String, u32>) {
        let is_unwanted = |workload: &Arc<Workload>| {
            !wanted(workload) || self.unprotected(workload, snapshot).is_some()
        };
        let is_over = |uid: &str| {
            let workload = snapshot.workloads_by_uid.get(uid);
            !running.contains_key(uid) || workload.is_some_and(is_unwanted)
        };
        let over: BTreeSet<Arc<str>> =
            self.held.uids().filter(|uid| is_over(uid)).cloned().collect();
        self.release_held(|uid| over.contains(uid));
    }

    fn release_held(&mut self, is_over: impl Fn(&str) -> bool) {
        for held in self.held.turn(is_over) {
            held.release(&self.shared.capture);
        }
    }

    /// Says why a pod waits, if it does.
    fn holds_back(&mut self, workload: &Workload, snapshot: &Snapshot) -> bool {
        let Some(object) = self.unprotected(workload, snapshot) else { return false };
        let reason = format!(
            "it waits, since nothing of {object} is enforced yet: install with \
             acceptNotEnforced=true (--accept-not-enforced) to take it in without"
        );
        let failure = self.failures.get(&workload.uid);
        if failure.is_none_or(|failure| failure.reason != reason) {
            self.failed(workload, reason);
        }
        true
    }

    /// What a pod has to wait for, as it is meant to protect it and does not. One that is in the mesh
    /// stays: outside nothing would protect it either.
    fn unprotected<'a>(
        &self,
        workload: &Workload,
        snapshot: &'a Snapshot,
    ) -> Option<&'a ObjectRef> {
        let is_in_mesh = workload.enrolled || self.enrolled.contains_key(&workload.uid);
        if is_in_mesh || self.accept_not_enforced {
            return None;
        }
        snapshot.unprotected(&workload.name.namespace, &workload.labels)
    }

    async fn enroll(&mut self, workload: &Arc<Workload>, running: &FxHashMap<String, u32>) {
        let current = self.enrolled.get(&workload.uid);
        let is_stale = self.stale.contains(&workload.uid);
        if current.is_some_and(|enrolled| enrolled.rules == workload.capture && !is_stale) {
            return;
        }
        let Some(pid) = running.get(&*workload.uid) else { return };
        let has_address = !workload.ips.is_empty() || self.held.get(&workload.uid).is_some();
        if !has_address || self.held.is_stopped(&workload.uid) {
            return;
        }
        let failure = self.failures.get(&workload.uid);
        if failure.is_some_and(|failure| Instant::now() < failure.next) {
            return;
        }
        match self.try_enroll(workload, *pid).await {
            Ok(()) => {
                self.failures.remove(&workload.uid);
                self.stale.remove(&workload.uid);
                tracing::info!(pod = %workload.name, identity = %workload.identity, "pod enrolled");
            }
            Err(error) => self.failed(workload, format!("{error:#}")),
        }
    }

    /// Each attempt may cost the authority a certificate: the waits grow.
    fn failed(&mut self, workload: &Workload, reason: String) {
        let before = self.failures.remove(&workload.uid);
        if before.as_ref().is_none_or(|before| before.reason != reason) {
            tracing::error!(pod = %workload.name, error = reason, "cannot enroll a pod");
        }
        let wait = before.map_or(FIRST_RETRY, |before| (before.wait * 2).min(LAST_RETRY));
        let failure = Failure { reason, wait, next: Instant::now() + wait };
        self.failures.insert(workload.uid.clone(), failure);
    }

    async fn try_enroll(&mut self, workload: &Arc<Workload>, pid: u32) -> anyhow::Result<()> {
        // The runtime knows a pod's addresses before its object does.
        let held = self.held.get(&workload.uid);
        let early = held.filter(|_| workload.ips.is_empty()).map(|held| &held.settings.ips);
        let ips = early.unwrap_or(&workload.ips).clone();
        let other = if held.is_some() { None } else { Some(PodNet::of_pid(pid)?) };
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
        // Its object may not tell its addresses yet.
        self.probes.admit_also(&self.shared.capture, (&ips, &workload.capture));
        let (net, listeners, sandbox) = match self.capture(workload, other, &ips) {
            Ok(captured) => captured,
            Err(error) => {
                if !known {
                    self.shared.identities.release(&workload.identity);
                }
                return Err(error);
            }
        };
        let pod = Arc::new(LocalPod {
            uid: workload.uid.clone(),
            name,
            identity: workload.identity.clone(),
            ips,
            net,
            quota,
        });
        self.drained.remove(&workload.uid);
        let rules = workload.capture.clone();
        let enrolled = Enrolled { pod: pod.clone(), rules, sandbox };
        self.enrolled.insert(workload.uid.clone(), enrolled);
        // Before it is served: connections wait for that already, and their first question is whose
        // they are.
        self.publish();
        if let Some(worker) = self.workers.home(&workload.uid) {
            worker.send(Command::Listen(pod, listeners));
        }
        Ok(())
    }

    /// A pod's network and the listeners in it: what was made before its first process, if it was.
    fn capture(
        &mut self,
        workload: &Workload,
        other: Option<PodNet>,
        ips: &[IpAddr],
    ) -> anyhow::Result<(PodNet, PodListeners, Option<Arc<str>>)> {
        let settings = settings(ips, &workload.capture);
        match (self.held.take(&workload.uid), other) {
            (Some(mut held), _) => {
                let listeners = held.listeners(&self.shared.capture, &settings)?;
                let (net, sandbox) = held.into_parts();
                Ok((net, listeners, Some(sandbox)))
            }
            (None, Some(net)) => {
                let listeners = self.shared.capture.enroll(&net, &settings)?;
                let before = self.enrolled.get(&workload.uid);
                let before = before.filter(|before| before.pod.net.cookie() == net.cookie());
                Ok((net, listeners, before.and_then(|before| before.sandbox.clone())))
            }
            (None, None) => anyhow::bail!("the pod has ended"),
        }
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
        self.failures.retain(|uid, _| running.contains_key(&**uid));
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

    /// Lets the kubelet's probes through to pods that are in the mesh, and to those that are about to
    /// be: a probe between capture and admission would fail, and one may be enough to take a pod out of
    /// its Service.
    fn admit_probes(&mut self, local: &[Arc<Workload>]) {
        let enrolled = self.enrolled.values().map(|found| (&*found.pod.ips, &found.rules));
        let coming = local.iter().map(|found| (&*found.ips, &found.capture));
        self.probes.admit(&self.shared.capture, enrolled.chain(coming));
    }

    /// Tells the other agents which pods take tunnels here. Nothing before there is a
    /// configuration: what the agent before has told holds.
    fn announce(&mut self, generation: u64) {
        let enrolled = self.enrolled.keys().filter(|uid| !self.leaving.contains_key(*uid));
        let failed = self.failures.iter().filter(|(uid, _)| !self.enrolled.contains_key(*uid));
        let announcement = Announcement {
            generation,
            enrolled: enrolled.cloned().collect(),
            failed: failed.map(|(uid, found)| (uid.clone(), found.reason.clone())).collect(),
        };
        if generation == 0 || self.announced.as_ref() == Some(&announcement) {
            return;
        }
        match self.announcer.announce(&announcement, self.announced.as_ref()) {
            Ok(()) => self.announced = Some(announcement),
            Err(error) => tracing::error!(%error, "cannot announce enrolled pods"),
        }
    }
}

/// Whether a pod belongs in the mesh and can be captured once it has an address.
fn wanted(workload: &Workload) -> bool {
    workload.selected && !workload.host_network && !workload.finished
}
