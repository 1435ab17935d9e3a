//! `mesh-agent node`: start, serve, drain.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::enroll::Enroller;
use super::limits;
use super::options::NodeOptions;
use super::workers::Workers;
use crate::admin::{AdminSocket, AdminState};
use crate::balance::Live;
use crate::capture::{self, Capture, CaptureOptions, MapSizes};
use crate::config::{Publish, Settings, Source};
use crate::identity::{self, Identities, Issuer, LocalCa, Trust};
use crate::model::{MeshSettings, Snapshot};
use crate::proxy::Shared;
use crate::telemetry::Metrics;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting: a missing kernel feature, an unreadable certificate, a socket in
/// use.
pub async fn run(options: NodeOptions) -> anyhow::Result<()> {
    capture::probe()?;
    let descriptors = limits::raise_descriptors()?;
    let memory = match options.max_memory_mib {
        Some(mib) => mib.saturating_mul(1 << 20),
        None => limits::memory()?,
    };
    let capture = capture(&options)?;
    let identities = Arc::new(identities(&options)?);
    let mut registry = Registry::default();
    let shared = Arc::new(Shared {
        capture: Arc::new(capture),
        identities: identities.clone(),
        live: Live::handle(Arc::default()),
        pods: Arc::default(),
        metrics: Metrics::register(&mut registry),
        budget: limits::budget(descriptors, memory),
        workers: OnceLock::new(),
    });
    let workers = Arc::new(Workers::start(&shared, options.workers)?);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (snapshots, compiled) = watch::channel(Arc::new(Snapshot::default()));
    let (force, in_force) = watch::channel(Arc::new(Snapshot::default()));
    let (reports, diagnostics) = watch::channel(Arc::new(Vec::new()));
    tasks.spawn(follow_config(shared.clone(), compiled, force, stop.clone()));
    let source = Source::Folder(options.config_dir.clone());
    let publish = Publish { snapshot: snapshots, diagnostics: reports };
    let config = crate::config::run(source, settings(&options), publish);
    tasks.spawn(until(stop.clone(), async move {
        if let Err(error) = config.await {
            tracing::error!(%error, "configuration cannot be read any more");
        }
    }));
    tasks.spawn(until(stop.clone(), async move { identities.run_rotation().await }));
    let (ready, is_ready) = oneshot::channel();
    let taken_back = Arc::new(Notify::new());
    let enroller =
        Enroller::new(shared.clone(), workers.clone(), &options, ready, taken_back.clone());
    tasks.spawn(enroller.run(in_force, stop.clone()));
    let socket = AdminSocket::bind(&options.admin_socket)
        .with_context(|| format!("cannot open {}", options.admin_socket.display()))?;
    let state = Arc::new(super::state::admin_state(&options, &shared, diagnostics));
    let path = options.admin_socket.clone();
    tasks.spawn(until(stop.clone(), serve_admin(socket, state, path, taken_back, stop.clone())));
    // One and the same to the end: a signal that comes between two of them would be lost.
    let mut stopped = pin!(stopped());
    tokio::select! {
        stopped = &mut stopped => stopped?,
        // Not before: the one who replaces an agent ends the old one then.
        Ok(()) = is_ready => {
            tracing::info!(node = options.node_name, workers = options.workers, "agent ready");
            stopped.await?;
        }
    }
    tracing::info!("agent stopping");
    stop.cancel();
    tasks.close();
    let limit = Duration::from_secs(options.drain_seconds);
    let _ = tokio::time::timeout(limit, tasks.wait()).await;
    if let Some(workers) = Arc::into_inner(workers) {
        tokio::task::spawn_blocking(move || workers.stop(limit)).await?;
    }
    Ok(())
}

fn capture(options: &NodeOptions) -> anyhow::Result<Capture> {
    Capture::start(&CaptureOptions {
        cgroup: options.cgroup.clone(),
        pin_dir: options.pin_dir.clone(),
        sizes: MapSizes {
            pods: options.max_pods,
            pending_connections: options.max_pending_connections,
            admitted_connections: options.max_admitted_connections,
            exclusions: options.max_exclusions,
        },
    })
    .context("cannot set up capture")
}

/// Serves the admin interface, and does so anew when this agent is in charge again: its socket was
/// replaced by that of the agent that took over.
async fn serve_admin(
    mut socket: AdminSocket,
    state: Arc<AdminState>,
    path: PathBuf,
    taken_back: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            served = crate::admin::serve(socket, state.clone(), stop.cancelled()) => {
                if let Err(error) = served {
                    tracing::error!(%error, "admin interface ended");
                }
                return;
            }
            () = taken_back.notified() => {}
        }
        match AdminSocket::bind(&path) {
            Ok(next) => socket = next,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot open the admin socket again");
                return;
            }
        }
    }
}

/// Waits for SIGTERM or SIGINT.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn until(stop: CancellationToken, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = task => {}
    }
}

fn settings(options: &NodeOptions) -> Settings {
    let mesh = MeshSettings {
        trust_domain: options.trust_domain.as_str().into(),
        cluster_domain: options.cluster_domain.as_str().into(),
        root_namespace: options.root_namespace.as_str().into(),
    };
    Settings { mesh, istio_labels: options.istio_labels }
}

fn identities(options: &NodeOptions) -> anyhow::Result<Identities> {
    let ca = match (&options.ca_cert, &options.ca_key) {
        (Some(cert), Some(key)) => LocalCa::load(&read(cert)?, &read(key)?)
            .with_context(|| format!("cannot use {} as root certificate", cert.display()))?,
        _ => {
            tracing::warn!("no root certificate given, making one: other nodes will not trust it");
            LocalCa::generate(&options.trust_domain)?
        }
    };
    let trust = Trust::new([ca.certificate().clone()], [options.trust_domain.as_str().into()])?;
    let ttl = Duration::from_secs(options.certificate_ttl);
    let settings = identity::Settings { ttl, ..identity::Settings::default() };
    Ok(Identities::new(Issuer::Local(ca), trust, settings))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts each snapshot in force on the data path, and then tells of it: a pod's first connection may
/// come as soon as it is enrolled.
async fn follow_config(
    shared: Arc<Shared>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    in_force: watch::Sender<Arc<Snapshot>>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
        let snapshot = snapshots.borrow_and_update().clone();
        shared.live.store(Arc::new(shared.live.load().next(snapshot.clone())));
        shared.capture.keep_unreached(|address| snapshot.is_outside(address));
        // Nobody listens any more: the agent stops.
        let _ = in_force.send(snapshot);
    }
}
