//! A plugin of the container runtime (NRI: containerd, CRI-O), which hears of a pod after its network
//! is there and before its first process.
//!
//! It decides nothing: [`PodHooks`] does. The invariant: what goes wrong here costs a pod its capture
//! from the first packet on, never its start. `wire` has the bytes, `messages` what they say,
//! `session` one connection.

mod messages;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::PodNet;
use crate::waits::growing;
use messages::PodSandbox;

/// Between two looks for a runtime that has gone: the first, and the longest, which is also that of a
/// node whose runtime knows no plugins.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A connection that lived for less than this counts as a failure: the runtime may refuse each.
const SETTLED: Duration = Duration::from_secs(10);

/// A pod's sandbox: its network and the process that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's name for it. A pod may have another one later.
    pub id: Arc<str>,
    /// `metadata.uid` of the pod.
    pub uid: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Its annotations.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// What runs it, as its runtime class says.
    pub runtime: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The process that holds the network namespace; none in a sandbox that has ended.
    pid: Option<u32>,
    /// The file of the network namespace; none for the node's own.
    netns: Option<String>,
}

/// What is done about pods, in the order in which the runtime tells of them. It waits for each, and so
/// does every other pod of the node; after two seconds it goes on without this plugin.
pub trait PodHooks: Send + Sync {
    /// The sandboxes that are there when the plugin comes, dead ones among them.
    fn running(&self, sandboxes: Vec<Sandbox>) -> impl Future<Output = ()> + Send;
    /// A sandbox is complete; nothing of the pod's own runs in it yet.
    fn started(&self, sandbox: Sandbox) -> impl Future<Output = ()> + Send;
    /// A sandbox is about to lose its network, or has lost it. May be told twice.
    fn stopped(&self, sandbox: Sandbox) -> impl Future<Output = ()> + Send;
}

impl Sandbox {
    /// `None` for what cannot be told from others.
    fn new(pod: PodSandbox) -> Option<Self> {
        if pod.id.is_empty() || pod.uid.is_empty() {
            return None;
        }
        let shared = |map: BTreeMap<String, String>| {
            map.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
        };
        let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
        let netns = namespaces.into_iter().find(|namespace| namespace.kind == "network");
        Some(Self {
            id: pod.id.into(),
            uid: pod.uid.into(),
            name: pod.name.into(),
            namespace: pod.namespace.into(),
            labels: shared(pod.labels),
            annotations: shared(pod.annotations),
            runtime: pod.runtime_handler,
            ips: pod.ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            pid: Some(pod.pid).filter(|pid| *pid > 0),
            netns: netns.map(|namespace| namespace.path).filter(|path| !path.is_empty()),
        })
    }

    /// Whether it is alive and has a network of its own.
    pub const fn has_network(&self) -> bool {
        self.pid.is_some() && self.netns.is_some()
    }

    /// Its network namespace. By the process, as the namespace's file is the runtime's, and an agent
    /// that is a pod need not see it.
    ///
    /// # Errors
    /// The kernel's, when it has ended, or has no network of its own.
    pub fn network(&self) -> io::Result<PodNet> {
        match self.pid.filter(|_| self.netns.is_some()) {
            Some(pid) => PodNet::of_pid(pid),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Serves the runtime whose socket this is, and looks for it while it is away, until dropped.
pub async fn serve_runtime(path: &Path, hooks: &impl PodHooks) {
    let mut waits = growing(FIRST_WAIT, LONGEST_WAIT);
    let mut said = String::new();
    loop {
        let begin = Instant::now();
        let ended = match UnixStream::connect(path).await {
            Ok(socket) => {
                let ended = session::serve(socket, hooks).await;
                ended.map_or_else(|error| error.to_string(), |()| "it closed the connection".into())
            }
            Err(error) => error.to_string(),
        };
        if begin.elapsed() >= SETTLED {
            waits = growing(FIRST_WAIT, LONGEST_WAIT);
            said.clear();
        }
        if said != ended {
            tracing::info!(
                socket = %path.display(),
                reason = ended,
                "no plugin of the container runtime: pods are captured once they run"
            );
            said = ended;
        }
        tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
    }
}
