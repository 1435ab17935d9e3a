//! What the admin interface shows: rows from the parts of the agent.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::older;
use super::options::NodeOptions;
use crate::admin::AdminState;
use crate::api;
use crate::balance::{Ejection, Live};
use crate::capture;
use crate::config::Diagnostic;
use crate::proxy::Shared;
use crate::telemetry::{ConnectionView, Layer, Reporter};

/// Collects what the admin interface asks for.
pub(super) fn admin_state(
    options: &NodeOptions,
    shared: &Arc<Shared>,
    diagnostics: watch::Receiver<Arc<Vec<Diagnostic>>>,
) -> AdminState {
    let (rows, kernel) = (shared.clone(), shared.clone());
    let (live, balancing) = (shared.live.clone(), shared.live.clone());
    let cgroup = options.pods_cgroup.clone();
    let pin_dir = options.pin_dir.display().to_string();
    AdminState {
        node: options.node_name.as_str().into(),
        started: SystemTime::now(),
        snapshot: Box::new(move || live.load().snapshot.clone()),
        identities: shared.identities.clone(),
        diagnostics: Box::new(move || diagnostics.borrow().iter().map(finding).collect()),
        connections: Box::new(move || {
            let known = rows.metrics.connections();
            let mut all: Vec<api::Connection> = known.iter().map(connection).collect();
            all.extend(older_rows(&rows, &cgroup, &known));
            all
        }),
        ejections: Box::new(move || ejections(&balancing.load())),
        capture: Box::new(move || captured(&kernel, &pin_dir)),
    }
}

fn ejections(live: &Live) -> Vec<api::Ejection> {
    let row = |ejection: Ejection| {
        let client = live.snapshot.workloads_by_uid.get(&ejection.source);
        let pod = live.snapshot.workloads_by_ip.get(&ejection.address.ip());
        api::Ejection {
            client: client.map_or_else(|| ejection.source.to_string(), |pod| pod.name.to_string()),
            service: ejection.service.to_string(),
            port: u32::from(ejection.port),
            subset: ejection.subset.as_deref().unwrap_or_default().to_owned(),
            address: ejection.address.to_string(),
            workload: pod.map(|pod| pod.name.to_string()).unwrap_or_default(),
            remaining: u64::try_from(ejection.remaining.as_millis()).unwrap_or(u64::MAX),
            times: ejection.times,
        }
    };
    live.ejections().into_iter().map(row).collect()
}

fn finding(diagnostic: &Diagnostic) -> api::Diagnostic {
    api::Diagnostic {
        severity: diagnostic.severity.to_string(),
        object: diagnostic.object.as_ref().map(ToString::to_string).unwrap_or_default(),
        field: diagnostic.field.clone(),
        message: diagnostic.message.clone(),
        place: diagnostic.place.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn connection(view: &ConnectionView) -> api::Connection {
    let outbound = view.reporter == Reporter::Source;
    let workload = if outbound { view.source.as_ref() } else { view.destination.as_ref() };
    let state = match (&view.peer, view.layer) {
        _ if view.direct => DIRECT,
        (Some(_), _) => "tunnel",
        (None, Layer::Http) => "per request",
        (None, Layer::Tcp) => "plaintext",
    };
    api::Connection {
        direction: if outbound { "outbound" } else { "inbound" }.to_owned(),
        workload: workload.map(ToString::to_string).unwrap_or_default(),
        source: view.source_address.to_string(),
        destination: view.destination_address.to_string(),
        peer: view.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
        protocol: if view.layer == Layer::Http { "http" } else { "tcp" }.to_owned(),
        state: state.to_owned(),
        opened: seconds(view.since),
        sent: view.received,
        received: view.sent,
    }
}

/// State of a connection between two pods of the node that goes past the agent.
const DIRECT: &str = "direct";

/// Connections that no worker has a record of: they are older than the enrolment of their pod, or
/// direct and older than this agent.
fn older_rows(
    shared: &Shared,
    cgroup: &std::path::Path,
    known: &[ConnectionView],
) -> Vec<api::Connection> {
    let direct: HashSet<(SocketAddr, SocketAddr)> =
        shared.capture.direct_connections().into_iter().collect();
    let recorded: HashSet<SocketAddr> =
        known.iter().filter(|view| view.direct).map(|view| view.source_address).collect();
    let pods = shared.pods.load();
    let running = capture::local_pods(cgroup).unwrap_or_default();
    let own = older::own_sockets();
    let known = running.iter().filter_map(|one| Some((pods.captured_by_uid(&one.uid)?, one.pid)));
    known
        .flat_map(|(pod, pid)| older::of_pod(pid, &own).into_iter().map(move |older| (pod, older)))
        .filter_map(|(pod, older)| {
            let (source, destination) = match older.inbound {
                true => (older.remote, older.local),
                false => (older.local, older.remote),
            };
            let is_direct = direct.contains(&(source, destination));
            if is_direct && (older.inbound || recorded.contains(&source)) {
                return None;
            }
            let state = if is_direct { DIRECT } else { "not in mesh (older than enrolment)" };
            Some(api::Connection {
                direction: if older.inbound { "inbound" } else { "outbound" }.to_owned(),
                workload: pod.name.to_string(),
                source: source.to_string(),
                destination: destination.to_string(),
                protocol: "tcp".to_owned(),
                state: state.to_owned(),
                ..api::Connection::default()
            })
        })
        .collect()
}

fn captured(shared: &Shared, pin_dir: &str) -> api::Capture {
    let mut counters: std::collections::BTreeMap<String, u64> = shared
        .capture
        .counters()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    for (index, worker) in shared.workers.get().into_iter().flatten().enumerate() {
        let accepted = worker.accepted.load(std::sync::atomic::Ordering::Relaxed);
        let open = worker.load.load(std::sync::atomic::Ordering::Relaxed);
        counters.insert(format!("worker_{index}_accepted"), accepted as u64);
        counters.insert(format!("worker_{index}_open"), open as u64);
    }
    let pods = shared.pods.load();
    let refused: usize = pods.by_uid.values().map(|pod| pod.quota.refused()).sum();
    counters.insert("refused_by_quota".to_owned(), refused as u64);
    let (held, most) = (shared.budget.held(), shared.budget.most());
    for (name, value) in [
        ("sockets", held.sockets),
        ("sockets_limit", most.sockets),
        ("streams", held.streams),
        ("streams_limit", most.streams),
        ("requests", held.requests),
        ("requests_limit", most.requests),
        ("buffer_memory_set_aside", held.memory),
        ("buffer_memory_limit", most.memory),
    ] {
        counters.insert(name.to_owned(), value as u64);
    }
    api::Capture {
        state: "attached".to_owned(),
        pin_dir: pin_dir.to_owned(),
        pods: pods
            .captured()
            .map(|pod| api::CapturedPod {
                uid: pod.uid.to_string(),
                netns_cookie: pod.net.cookie(),
            })
            .collect(),
        counters,
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
