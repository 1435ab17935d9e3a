//! One worker of the data path: a thread with a current-thread runtime, its tunnels, its HTTP pools
//! and the connections it was given.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustc_hash::FxHashMap;
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listener::{self, Accepted, Kind};
use super::{flows, inbound, outbound};
use crate::balance::{Draws, LiveHandle};
use crate::capture::{Capture, PodListeners};
use crate::http::Engine;
use crate::identity::Identities;
use crate::model::SpiffeId;
use crate::origination::Origination;
use crate::telemetry::{Metrics, Telemetry};
use crate::tunnel::{Budget, LocalPod, LocalPodsHandle, Pool, Upstream};

/// What all workers share. Immutable, or atomic.
pub struct Shared {
    /// Kernel side.
    pub capture: Arc<Capture>,
    /// Certificates.
    pub identities: Arc<Identities>,
    /// Configuration and upstream state in force.
    pub live: LiveHandle,
    /// Pods of this node.
    pub pods: LocalPodsHandle,
    /// Counters and the list of open connections.
    pub metrics: Arc<Metrics>,
    /// TLS that policies have the agent speak to destinations.
    pub origination: Arc<Origination>,
    /// What the pods of this node may hold in total.
    pub budget: Arc<Budget>,
    /// Set once, when all workers have started.
    pub workers: OnceLock<Vec<WorkerHandle>>,
}

/// What a worker can be told.
pub enum Command {
    /// Accept for this pod from now on.
    Listen(Arc<LocalPod>, PodListeners),
    /// Stop accepting for the pod with this UID; its open connections go on.
    Unlisten(Arc<str>),
    /// Serve a connection that another worker accepted.
    Adopt(Accepted),
    /// Stop accepting, finish what is open, then end. At most this long.
    Drain(Duration),
}

/// How the others reach a worker.
#[derive(Clone)]
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    /// Connections open on it: accepted ones, tunnels, and those inside tunnels.
    pub load: Arc<AtomicUsize>,
    /// Connections that it has served or serves.
    pub accepted: Arc<AtomicUsize>,
}

impl WorkerHandle {
    /// A handle and the end that the worker reads. Unbounded: what comes through is bounded by the
    /// pods of the node and by the permits of their connections.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { commands, load: Arc::default(), accepted: Arc::default() }, receiver)
    }

    /// Hands over a command. A worker that has ended drops it, which closes what it holds.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Hands over a connection; gives it back if the worker has ended.
    pub(super) fn adopt(&self, accepted: Accepted) -> Option<Accepted> {
        match self.commands.send(Command::Adopt(accepted)) {
            Err(mpsc::error::SendError(Command::Adopt(accepted))) => Some(accepted),
            _ => None,
        }
    }
}

/// Counts one open connection for as long as it lives.
pub(super) struct LoadGuard(Arc<AtomicUsize>);

impl LoadGuard {
    pub(super) fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(load.clone())
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The identity that a tunnel's peer has proven.
pub(super) fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    crate::identity::peer_identity(chain).ok()
}

/// A pod that this worker accepts for.
struct Served {
    /// Ends the accept loops.
    accept: CancellationToken,
}

/// The worker itself; lives on its thread.
pub struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    /// What was accepted, and the accepting: an end waits for it.
    pub(super) serving: TaskTracker,
    pub(super) upstream: Upstream,
    pub(super) engine: Engine<Upstream>,
    pub(super) telemetry: Telemetry,
    pub(super) draws: Draws,
    /// Asks connections to finish.
    pub(super) drain: CancellationToken,
}

impl Worker {
    /// Runs until drained. Call within a runtime that can take local tasks.
    pub async fn run(
        shared: Arc<Shared>,
        index: usize,
        mut commands: mpsc::UnboundedReceiver<Command>,
    ) {
        // Pooled connections: an end waits for none of them.
        let tracker = TaskTracker::new();
        let drain = CancellationToken::new();
        let telemetry = shared.metrics.worker();
        let draws = Draws::unpredictable();
        let pool = Pool::new(tracker.clone(), peer_identity);
        let upstream = Upstream::new(
            shared.capture.clone(),
            shared.identities.clone(),
            shared.pods.clone(),
            shared.live.clone(),
            (pool, shared.origination.clone()),
        );
        let engine = Engine::new(
            shared.live.clone(),
            telemetry.clone(),
            upstream.clone(),
            Draws::unpredictable(),
            tracker.clone(),
        );
        let sweep = engine.clone();
        tracker.spawn_local(async move { sweep.maintain().await });
        let serving = TaskTracker::new();
        let worker =
            Rc::new(Self { shared, index, serving, upstream, engine, telemetry, draws, drain });
        if index == 0 {
            worker.follow_flows();
        }
        let mut served: FxHashMap<Arc<str>, Served> = FxHashMap::default();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Listen(pod, listeners) => {
                    let accept = worker.drain.child_token();
                    let uid = pod.uid.clone();
                    worker.listen(pod, listeners, &accept);
                    if let Some(previous) = served.insert(uid, Served { accept }) {
                        previous.accept.cancel();
                    }
                }
                Command::Unlisten(uid) => {
                    if let Some(pod) = served.remove(&uid) {
                        pod.accept.cancel();
                    }
                }
                Command::Adopt(accepted) => worker.serve(accepted),
                Command::Drain(limit) => {
                    let _ = tokio::time::timeout(limit, worker.finish(&mut commands)).await;
                    return;
                }
            }
        }
    }

    /// Finishes what is open. Other workers hear of the drain a moment later, and hand over what they
    /// have accepted until then: that is served, too.
    async fn finish(self: &Rc<Self>, commands: &mut mpsc::UnboundedReceiver<Command>) {
        self.drain.cancel();
        self.serving.close();
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Adopt(accepted)) => self.serve(accepted),
                    Some(_) => {}
                    None => break,
                },
                // Nothing more can come once it is closed; what waits there is read first.
                () = self.serving.wait() => commands.close(),
            }
        }
        self.serving.wait().await;
    }

    /// One worker tells of the connections that go past all of them.
    fn follow_flows(self: &Rc<Self>) {
        match self.shared.capture.take_flows() {
            Ok(Some(reports)) => {
                self.serving.spawn_local(flows::follow(Rc::clone(self), reports));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "no reports of direct connections"),
        }
    }

    fn listen(
        self: &Rc<Self>,
        pod: Arc<LocalPod>,
        listeners: PodListeners,
        stop: &CancellationToken,
    ) {
        let kinds = [
            (Kind::Outbound, listeners.outbound),
            (Kind::Plaintext, listeners.plaintext),
            (Kind::Tunnel, listeners.tunnel),
        ];
        for (kind, sockets) in kinds {
            for socket in sockets {
                let task = listener::accept(self.clone(), pod.clone(), kind, socket, stop.clone());
                self.serving.spawn_local(task);
            }
        }
    }

    /// Starts serving a connection on this worker.
    pub(super) fn serve(self: &Rc<Self>, accepted: Accepted) {
        let worker = self.clone();
        // Each as large as it must be: idle connections hold their task.
        match accepted.kind {
            Kind::Outbound => {
                self.serving.spawn_local(async move { outbound::serve(&worker, accepted).await })
            }
            Kind::Plaintext => {
                let serve = async move { inbound::serve_plaintext(&worker, accepted).await };
                self.serving.spawn_local(serve)
            }
            Kind::Tunnel => {
                let serve = async move { inbound::serve_tunnel(&worker, accepted).await };
                self.serving.spawn_local(serve)
            }
        };
    }

    /// Counts a connection that came inside a tunnel, for as long as the guard lives.
    pub(super) fn load(&self) -> Option<LoadGuard> {
        self.handles().get(self.index).map(|handle| LoadGuard::new(&handle.load))
    }

    pub(super) fn handles(&self) -> &[WorkerHandle] {
        self.shared.workers.get().map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: impl Fn(&'static Rc<Worker>, Accepted) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    /// Bytes that an idle connection's task holds.
    #[test]
    fn tasks_are_small() {
        let sizes = [size(outbound::serve), size(inbound::serve_plaintext)];
        assert!(sizes.iter().all(|size| *size <= 1280), "{sizes:?}");
    }
}
