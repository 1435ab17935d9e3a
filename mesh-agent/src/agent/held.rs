//! Pods that are captured and not enrolled yet: their listeners hold connections until there is a
//! certificate to serve them with, for [`HOLD`] at most; then new ones are refused.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::capture::{Capture, PodListeners, PodNet, PodSettings};

/// For how long connections of a pod wait for its enrolment. The kernel keeps 4096 of each direction,
/// or `net.core.somaxconn` of them, and refuses further ones.
const HOLD: Duration = Duration::from_secs(10);

/// How long a pod is left alone after its sandbox was stopped. Its last process ends within that; should
/// it run on, it belongs in the mesh again.
const STOPPED: Duration = Duration::from_secs(10);

/// What the container runtime tells the enroller.
pub(super) enum Heard {
    /// A pod was captured before its first process.
    Captured { uid: Arc<str>, held: Box<Held> },
    /// A pod's sandbox stops.
    Stopped { uid: Arc<str>, sandbox: Arc<str> },
}

/// A pod that is captured and waits to be enrolled.
pub(super) struct Held {
    /// The runtime's name for its sandbox.
    pub(super) sandbox: Arc<str>,
    name: String,
    pub(super) net: PodNet,
    pub(super) settings: PodSettings,
    /// None once they have held connections for too long.
    listeners: Option<PodListeners>,
    /// The pod was captured by somebody else too, maybe later.
    overtaken: bool,
    since: Instant,
}

/// All of them, and what has been said of others.
pub(super) struct HeldPods {
    heard: mpsc::UnboundedReceiver<Heard>,
    /// By the pod's UID.
    held: FxHashMap<Arc<str>, Held>,
    /// Sandboxes that were stopped, by the pod's UID, and when.
    stopped: FxHashMap<Arc<str>, (Arc<str>, Instant)>,
}

impl Held {
    /// `sandbox` and the pod's name, which is for people.
    pub(super) fn new(
        (sandbox, name): (Arc<str>, String),
        net: PodNet,
        settings: PodSettings,
        listeners: PodListeners,
    ) -> Self {
        let (listeners, since) = (Some(listeners), Instant::now());
        Self { sandbox, name, net, settings, listeners, overtaken: false, since }
    }

    /// Its listeners may not be those that the kernel gives connections to.
    pub(super) const fn overtake(&mut self) {
        self.overtaken = true;
    }

    /// The pod's listeners for these settings. Made anew where those that are here are for others: what
    /// waits in them moves on when they are closed.
    pub(super) fn listeners(
        &mut self,
        capture: &Capture,
        settings: &PodSettings,
    ) -> anyhow::Result<PodListeners> {
        match self.listeners.take_if(|_| self.settings == *settings && !self.overtaken) {
            Some(listeners) => Ok(listeners),
            None => Ok(capture.enroll(&self.net, settings)?),
        }
    }

    /// The network, and the runtime's name for the sandbox. Listeners that are still here are closed.
    pub(super) fn into_parts(self) -> (PodNet, Arc<str>) {
        (self.net, self.sandbox)
    }

    /// Ends the capture of a pod that is not enrolled after all.
    pub(super) fn release(self, capture: &Capture) {
        let done = capture.withdraw(self.net.cookie(), &self.settings.ips);
        if let Err(error) = done.and_then(|()| capture.restore(&self.net)) {
            // The namespace may be on its way out.
            tracing::debug!(pod = self.name, %error, "cannot release a pod wholly");
        }
    }
}

impl HeldPods {
    pub(super) fn new(heard: mpsc::UnboundedReceiver<Heard>) -> Self {
        Self { heard, held: FxHashMap::default(), stopped: FxHashMap::default() }
    }

    /// What the runtime has said, as far as it has not been heard yet.
    pub(super) fn hear(&mut self) -> Option<Heard> {
        self.heard.try_recv().ok()
    }

    /// Waits until there is something to hear. For ever without a runtime that talks.
    pub(super) async fn wait(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Held> {
        self.held.get(uid)
    }

    /// Returns what was held under the pod's name until now: of a sandbox before.
    pub(super) fn insert(&mut self, uid: Arc<str>, held: Held) -> Option<Held> {
        self.stopped.remove(&uid);
        self.held.insert(uid, held)
    }

    pub(super) fn take(&mut self, uid: &str) -> Option<Held> {
        self.held.remove(uid)
    }

    /// Takes the pod if it is held for this sandbox, which has stopped.
    pub(super) fn stop(&mut self, uid: &Arc<str>, sandbox: &Arc<str>) -> Option<Held> {
        self.stopped.insert(uid.clone(), (sandbox.clone(), Instant::now()));
        if self.held.get(uid)?.sandbox != *sandbox {
            return None;
        }
        self.held.remove(uid)
    }

    /// Whether the pod's sandbox has been stopped, so that the pod is about to be gone.
    pub(super) fn is_stopped(&self, uid: &str) -> bool {
        self.stopped.contains_key(uid)
    }

    /// Whether this is the sandbox of the pod's that was stopped last.
    pub(super) fn was_stopped(&self, uid: &str, sandbox: &Arc<str>) -> bool {
        self.stopped.get(uid).is_some_and(|(stopped, _)| stopped == sandbox)
    }

    /// Which there are.
    pub(super) fn uids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.held.keys()
    }

    /// Takes those of which `is_over` says that they will not be enrolled, and ends the waiting in those
    /// that have waited for too long.
    pub(super) fn turn(&mut self, is_over: impl Fn(&str) -> bool) -> Vec<Held> {
        let now = Instant::now();
        self.stopped.retain(|_, (_, since)| now.duration_since(*since) < STOPPED);
        for held in self.held.values_mut() {
            if now.duration_since(held.since) >= HOLD && held.listeners.take().is_some() {
                tracing::warn!(
                    pod = held.name,
                    "captured, and not enrolled in time: its connections are refused until it is"
                );
            }
        }
        self.held.extract_if(|uid, _| is_over(uid)).map(|(_, held)| held).collect()
    }
}
