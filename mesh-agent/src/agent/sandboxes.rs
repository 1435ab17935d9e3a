//! Captures pods before their first process, when the container runtime tells of them.
//!
//! The runtime starts nothing on the node while it waits for an answer: what decides here is at hand
//! (the snapshot's selection), and nothing waits for the authority or the API server. The enroller gets
//! what was captured and completes it. Invariant: a pod that cannot be captured here starts all the
//! same, and is enrolled as if there were no plugin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::held::{Heard, Held};
use crate::capture::{Charge, PodHooks, PodSettings, Sandbox};
use crate::config::{StartingPod, starting};
use crate::model::CaptureRules;
use crate::proxy::Shared;

/// After this the runtime gets its answer, whatever is still being done: at two seconds it would drop
/// the plugin.
const LIMIT: Duration = Duration::from_secs(1);

/// Bounds in seconds; the aim is below 0.01.
const BOUNDS: [f64; 10] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

/// What a hook came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What the runtime's calls cost.
#[derive(Clone, Debug)]
pub(super) struct HookMetrics {
    hooks: Family<Outcome, Counter>,
    seconds: Histogram,
}

/// Answers the runtime.
pub(super) struct Hooks {
    shared: Arc<Shared>,
    heard: mpsc::UnboundedSender<Heard>,
    metrics: HookMetrics,
    /// Whether pods come into the mesh that something is meant to protect which is not enforced.
    accept_not_enforced: bool,
}

impl HookMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self { hooks: Family::default(), seconds: Histogram::new(BOUNDS) };
        registry.register(
            "malha_nri_pod_starts",
            "Pods that the container runtime told of, by what was done before their first process",
            metrics.hooks.clone(),
        );
        registry.register(
            "malha_nri_pod_start_seconds",
            "Time for which the container runtime waited before it started a pod's first process",
            metrics.seconds.clone(),
        );
        metrics
    }
}

impl Hooks {
    /// `heard` is read by the enroller. Unbounded: what comes through is bounded by the pods of the
    /// node, and whoever waited here would hold up their starts.
    pub(super) const fn new(
        shared: Arc<Shared>,
        heard: mpsc::UnboundedSender<Heard>,
        metrics: HookMetrics,
        accept_not_enforced: bool,
    ) -> Self {
        Self { shared, heard, metrics, accept_not_enforced }
    }

    /// Captures a pod that belongs in the mesh. Returns what it came to.
    async fn take(&self, sandbox: &Sandbox) -> &'static str {
        if self.shared.capture.charge() != Charge::This {
            return "not_in_charge";
        }
        if self.shared.capture.is_leaving() {
            return "leaving";
        }
        let live = self.shared.live.load();
        let pod = StartingPod {
            namespace: &sandbox.namespace,
            labels: &sandbox.labels,
            annotations: &sandbox.annotations,
            runtime: &sandbox.runtime,
        };
        let Some(rules) = starting(&live.snapshot.selection, pod) else { return "not_selected" };
        if !sandbox.has_network() {
            return "host_network";
        }
        let unprotected = live.snapshot.unprotected(&sandbox.namespace, &sandbox.labels);
        if unprotected.is_some() && !self.accept_not_enforced {
            return "held_back";
        }
        let (shared, heard) = (self.shared.clone(), self.heard.clone());
        let sandbox = sandbox.clone();
        let work = tokio::task::spawn_blocking(move || capture(&shared, &heard, &sandbox, &rules));
        match tokio::time::timeout(LIMIT, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => "failed",
            // It goes on, and the enroller hears of it.
            Err(_) => "late",
        }
    }
}

impl PodHooks for Hooks {
    async fn running(&self, sandboxes: Vec<Sandbox>) {
        let begin = Instant::now();
        let found = sandboxes.len();
        let mut taken = 0_usize;
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.has_network()) {
            taken += usize::from(self.take(sandbox).await == "captured");
            if begin.elapsed() >= LIMIT {
                // The rest run already: the enroller finds them.
                break;
            }
        }
        let took = begin.elapsed();
        tracing::debug!(found, taken, ?took, "sandboxes of the container runtime");
    }

    async fn started(&self, sandbox: Sandbox) {
        let begin = Instant::now();
        let outcome = self.take(&sandbox).await;
        let took = begin.elapsed();
        self.metrics.hooks.get_or_create(&Outcome { outcome }).inc();
        self.metrics.seconds.observe(took.as_secs_f64());
        let (namespace, name) = (&sandbox.namespace, &sandbox.name);
        tracing::debug!(pod = %format_args!("{namespace}/{name}"), outcome, ?took, "pod starts");
    }

    async fn stopped(&self, sandbox: Sandbox) {
        // The agent stops if nobody hears.
        let _ = self.heard.send(Heard::Stopped { uid: sandbox.uid, sandbox: sandbox.id });
    }
}

/// Blocks for the kernel: a few milliseconds.
fn capture(
    shared: &Shared,
    heard: &mpsc::UnboundedSender<Heard>,
    sandbox: &Sandbox,
    rules: &CaptureRules,
) -> &'static str {
    let net = match sandbox.network() {
        Ok(net) => net,
        Err(error) => {
            tracing::debug!(pod = %sandbox.name, %error, "a pod that starts has no network");
            return "gone";
        }
    };
    let pods = shared.pods.load();
    if pods.captured_by_uid(&sandbox.uid).is_some_and(|pod| pod.net.cookie() == net.cookie()) {
        return "enrolled";
    }
    let settings = settings(&sandbox.ips, rules);
    let listeners = match shared.capture.enroll(&net, &settings) {
        Ok(listeners) => listeners,
        Err(error) => {
            tracing::warn!(pod = %sandbox.name, %error, "cannot capture a pod before it starts");
            return "failed";
        }
    };
    let name = format!("{}/{}", sandbox.namespace, sandbox.name);
    let held = Box::new(Held::new((sandbox.id.clone(), name), net, settings, listeners));
    // The agent stops if nobody hears: the pod stays captured for the next one.
    let _ = heard.send(Heard::Captured { uid: sandbox.uid.clone(), held });
    "captured"
}

/// What is captured of a pod.
pub(super) fn settings(ips: &[std::net::IpAddr], rules: &CaptureRules) -> PodSettings {
    PodSettings {
        ips: ips.to_vec(),
        exclude_outbound_ports: rules.exclude_outbound_ports.clone(),
        exclude_inbound_ports: rules.exclude_inbound_ports.clone(),
        exclude_outbound_ranges: rules.exclude_outbound_ranges.clone(),
    }
}
