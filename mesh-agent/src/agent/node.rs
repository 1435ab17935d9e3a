//! `mesh-agent node`: start, serve, drain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::enroll::{Ends, Enroller};
use super::limits;
use super::options::NodeOptions;
use super::sandboxes::{HookMetrics, Hooks};
use super::workers::Workers;
use crate::admin::{AdminSocket, AdminState, Probes, serve_probes};
use crate::balance::Live;
use crate::capture::{self, Capture, CaptureOptions, MapSizes};
use crate::config::{
    Announcer, Answers, Cluster, NameServers, Publish, Settings, Source, annotate,
    kubernetes_client, resolve,
};
use crate::identity::{self, AuthorityClient, Identities, Issuer, KeyDir, LocalCa, Trust};
use crate::model::{MeshSettings, Snapshot};
use crate::origination::{self, Origination};
use crate::proxy::Shared;
use crate::telemetry::{EjectionRow, Metrics, register_ejections};

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting: a missing kernel feature, an unreadable certificate, a socket in
/// use.
pub async fn run(options: NodeOptions) -> anyhow::Result<()> {
    let pods_cgroup = capture::pods_cgroup(&options.cgroup);
    let options = NodeOptions { pods_cgroup, ..options };
    capture::probe()?;
    let mut registry = Registry::default();
    let shared = shared(&options, &mut registry)?;
    let identities = shared.identities.clone();
    let workers = Arc::new(Workers::start(&shared, options.workers)?);
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let spawn = |task: BoxFuture| tasks.spawn(until(stop.clone(), task));
    let (snapshots, compiled) = watch::channel(Arc::new(Snapshot::default()));
    let (force, in_force) = watch::channel(Arc::new(Snapshot::default()));
    let (reports, diagnostics) = watch::channel(Arc::new(Vec::new()));
    let (wants, missing) = watch::channel(Arc::from(["configuration".to_owned()]));
    let origin = Origin::new(&options, in_force.clone()).await?;
    if let Some(annotations) = origin.annotations {
        spawn(annotations);
    }
    tasks.spawn(follow_config(shared.clone(), compiled, force, stop.clone()));
    let publish = Publish { snapshot: snapshots, diagnostics: reports, missing: wants };
    let (answers, resolved) = watch::channel(Arc::default());
    let servers = NameServers(options.dns_server.iter().map(|server| server.0).collect());
    spawn(Box::pin(resolve(servers, in_force.clone(), answers)));
    spawn(Box::pin(read_config(origin.source, settings(&options), resolved, publish)));
    let kept = identities.clone();
    spawn(Box::pin(async move {
        tokio::join!(identities.run_rotation(), identities.run_trust());
    }));
    let (ready, is_ready) = oneshot::channel();
    let taken_back = Arc::new(Notify::new());
    let (hooks, heard) = mpsc::unbounded_channel();
    let metrics = HookMetrics::register(&mut registry);
    let hooks = Hooks::new(shared.clone(), hooks, metrics, options.accept_not_enforced);
    let ends = Ends { heard, ready, taken_back: taken_back.clone() };
    let enroller = Enroller::new(shared.clone(), workers.clone(), &options, origin.announcer, ends);
    spawn(Box::pin(follow_runtime(options.nri_socket.clone(), hooks, in_force.clone())));
    tasks.spawn(enroller.run(in_force, stop.clone()));
    let serving = Arc::new(AtomicBool::new(false));
    if let Some(address) = options.probe_address {
        spawn(probes(address, registry, missing, serving.clone()).await?);
    }
    let socket = AdminSocket::bind(&options.admin_socket)
        .with_context(|| format!("cannot open {}", options.admin_socket.display()))?;
    let state = Arc::new(super::state::admin_state(&options, &shared, diagnostics));
    let path = options.admin_socket.clone();
    spawn(Box::pin(serve_admin(socket, state, path, taken_back, stop.clone())));
    // One and the same to the end: a signal that comes between two of them would be lost.
    let mut stopped = pin!(stopped());
    tokio::select! {
        stopped = &mut stopped => stopped?,
        // Not before: the one who replaces an agent ends the old one then.
        Ok(()) = is_ready => {
            serving.store(true, Ordering::Relaxed);
            kept.forget_other_keys();
            tracing::info!(node = options.node_name, workers = options.workers, "agent ready");
            stopped.await?;
        }
    }
    tracing::info!("agent stopping");
    stop.cancel();
    drain(tasks, workers, Duration::from_secs(options.drain_seconds)).await
}

/// What all workers share; capture is in force from here on.
fn shared(options: &NodeOptions, registry: &mut Registry) -> anyhow::Result<Arc<Shared>> {
    let descriptors = limits::raise_descriptors()?;
    let memory = match options.max_memory_mib {
        Some(mib) => mib.saturating_mul(1 << 20),
        None => limits::memory()?,
    };
    let live = Live::handle(Arc::default());
    let counted = Arc::clone(&live);
    register_ejections(registry, move || ejections(&counted.load()));
    Ok(Arc::new(Shared {
        capture: Arc::new(capture(options)?),
        identities: Arc::new(identities(options)?),
        live,
        pods: Arc::default(),
        metrics: Metrics::register(registry),
        origination: Arc::new(origination(options)?),
        budget: limits::budget(descriptors, memory),
        workers: OnceLock::new(),
    }))
}

/// TLS to destinations, with files of the pods of this node.
fn origination(options: &NodeOptions) -> anyhow::Result<Origination> {
    let roots = origination::roots(options.tls_roots.as_deref());
    let cgroup = options.pods_cgroup.clone();
    let read = move |uid: &str, path: &str| capture::read_in_pod(&cgroup, uid, path);
    Ok(Origination::new(roots.context("cannot use --tls-roots")?, Arc::new(read)))
}

fn ejections(live: &Live) -> Vec<EjectionRow> {
    let rows = live.ejection_counts().into_iter().map(|count| EjectionRow {
        service: count.service.name,
        namespace: count.service.namespace,
        reason: count.reason.as_str(),
        total: count.total,
        active: count.active,
    });
    rows.collect()
}

async fn read_config(
    source: Source,
    settings: Settings,
    answers: watch::Receiver<Arc<Answers>>,
    publish: Publish,
) {
    if let Err(error) = crate::config::run(source, settings, answers, publish).await {
        tracing::error!(%error, "configuration cannot be read any more");
    }
}

/// Gives tasks, and then connections, this long to end.
async fn drain(tasks: TaskTracker, workers: Arc<Workers>, limit: Duration) -> anyhow::Result<()> {
    tasks.close();
    let _ = tokio::time::timeout(limit, tasks.wait()).await;
    if let Some(workers) = Arc::into_inner(workers) {
        tokio::task::spawn_blocking(move || workers.stop(limit)).await?;
    }
    Ok(())
}

pub(super) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the configuration comes from, and where the agent says which pods it serves.
struct Origin {
    source: Source,
    announcer: Announcer,
    /// What writes to the API server.
    annotations: Option<BoxFuture>,
}

impl Origin {
    async fn new(
        options: &NodeOptions,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> anyhow::Result<Self> {
        let node: Arc<str> = options.node_name.as_str().into();
        if let Some(dir) = &options.config_dir {
            let announcer = Announcer::Folder(dir.clone(), node);
            return Ok(Self { source: Source::Folder(dir.clone()), announcer, annotations: None });
        }
        let client = kubernetes_client(options.kubeconfig.as_deref()).await?;
        let cluster =
            Cluster { client: client.clone(), cache: options.state_dir.clone(), observe: None };
        let (announcements, wanted) = watch::channel(None);
        Ok(Self {
            source: Source::Cluster(Box::new(cluster)),
            announcer: Announcer::Cluster(announcements),
            annotations: Some(Box::pin(annotate(client, node, wanted, snapshots))),
        })
    }
}

/// A listener of a service of the agent's own.
pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Readiness and metrics, for Kubernetes and Prometheus.
async fn probes(
    address: SocketAddr,
    registry: Registry,
    missing: watch::Receiver<Arc<[String]>>,
    serving: Arc<AtomicBool>,
) -> anyhow::Result<BoxFuture> {
    let listener = listen(address).await?;
    let missing = move || {
        let mut missing = missing.borrow().to_vec();
        if missing.is_empty() && !serving.load(Ordering::Relaxed) {
            missing.push("enrolment of this node's pods".to_owned());
        }
        missing
    };
    let probes = Arc::new(Probes { missing: Box::new(missing), registry });
    Ok(Box::pin(serve_probes(listener, probes)))
}

/// Hears of pods from the container runtime, once it can be said which belong in the mesh.
async fn follow_runtime(
    socket: PathBuf,
    hooks: Hooks,
    mut in_force: watch::Receiver<Arc<Snapshot>>,
) {
    let configured = in_force.wait_for(|snapshot| snapshot.generation > 0).await.is_ok();
    if configured && !socket.as_os_str().is_empty() {
        capture::serve_runtime(&socket, &hooks).await;
    }
}

fn capture(options: &NodeOptions) -> anyhow::Result<Capture> {
    Capture::start(&CaptureOptions {
        cgroup: options.pods_cgroup.clone(),
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
pub(super) async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn until(stop: CancellationToken, task: BoxFuture) {
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
    let ttl = Duration::from_secs(options.certificate_ttl);
    let settings = identity::Settings { ttl, ..identity::Settings::default() };
    let domains: [Arc<str>; 1] = [options.trust_domain.as_str().into()];
    if let (Some(address), Some(root), Some(token)) =
        (&options.ca_address, &options.ca_root, &options.ca_token)
    {
        let client = AuthorityClient::new(address, root.clone(), token.clone(), domains.clone())?;
        let trust = client.trust().unwrap_or_else(|error| {
            // On a new cluster the authority may come up after the agents.
            tracing::warn!(%error, "no trusted roots yet");
            Trust::nobody(domains)
        });
        let identities = Identities::new(Issuer::Authority(client), trust, settings);
        return Ok(match &options.key_dir {
            Some(dir) => identities.with_keys(
                KeyDir::open(dir)
                    .with_context(|| format!("cannot keep keys in {}", dir.display()))?,
            ),
            None => identities,
        });
    }
    let ca = match (&options.ca_cert, &options.ca_key) {
        (Some(cert), Some(key)) => LocalCa::load(&read(cert)?, &read(key)?)
            .with_context(|| format!("cannot use {} as root certificate", cert.display()))?,
        _ => {
            tracing::warn!("no root certificate given, making one: other nodes will not trust it");
            LocalCa::generate(&options.trust_domain)?
        }
    };
    let trust = Trust::new([ca.certificate().clone()], domains)?;
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
        shared.capture.keep_unreached(|address| snapshot.leaves_alone(address));
        // Nobody listens any more: the agent stops.
        let _ = in_force.send(snapshot);
    }
}
