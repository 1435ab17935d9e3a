//! The record of one connection, and the list of those that are open.
//!
//! Invariant: a connection is in its worker's table from the moment the record exists until it is
//! dropped; bytes are added to the counters exactly once, whoever reports them first.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use rustc_hash::FxHashMap;
use tracing::Level;

use super::flags::{ResponseFlag, ResponseFlags};
use super::labels::{CommonLabels, Parties, Reporter, TcpLabels};
use super::metrics::{Metrics, Telemetry};
use crate::model::{Service, SpiffeId, Workload, WorkloadName};

/// What a connection carries, as far as the agent looks into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Bytes: counted by the `istio_tcp_*` metrics.
    Tcp,
    /// Requests, which have their own metrics; the connection only appears in the list.
    Http,
}

/// What is known when a connection is accepted.
#[derive(Clone, Debug)]
pub struct ConnectionStart {
    /// Which side this is.
    pub reporter: Reporter,
    /// The client's pod, if it is one of the mesh.
    pub source: Option<Arc<Workload>>,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The address that the client dialled.
    pub destination_address: SocketAddr,
    /// The service behind that address, if any.
    pub service: Option<Arc<Service>>,
    /// What is carried.
    pub layer: Layer,
    /// Whether its bytes go past the agent, which knows their number at the end only.
    pub direct: bool,
}

/// One open connection as people see it.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// Which side this is.
    pub reporter: Reporter,
    /// The client's pod.
    pub source: Option<WorkloadName>,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The address that the client dialled.
    pub destination_address: SocketAddr,
    /// The pod that the bytes go to; none for HTTP, where each request has its own.
    pub destination: Option<WorkloadName>,
    /// Host name of the service.
    pub service: Option<Arc<str>>,
    /// Since when.
    pub since: SystemTime,
    /// Bytes sent to the client.
    pub sent: u64,
    /// Bytes received from the client.
    pub received: u64,
    /// What is carried.
    pub layer: Layer,
    /// Whether its bytes go past the agent.
    pub direct: bool,
    /// The identity that the other side has proven by TLS.
    pub peer: Option<SpiffeId>,
}

/// An open connection; dropped when it is closed.
#[derive(Debug)]
pub struct ConnectionRecord {
    telemetry: Telemetry,
    id: u64,
    open: Arc<Open>,
    flags: ResponseFlags,
    /// Whether its end is another agent's to tell.
    over: bool,
}

/// The open connections of one worker.
#[derive(Debug, Default)]
pub(super) struct Table {
    next: AtomicU64,
    open: Mutex<FxHashMap<u64, Arc<Open>>>,
}

#[derive(Debug)]
struct Open {
    start: ConnectionStart,
    since: SystemTime,
    sent: Moved,
    received: Moved,
    far: Mutex<Far>,
}

/// What is known once there is a connection to the other side.
#[derive(Debug, Default)]
struct Far {
    destination: Option<Arc<Workload>>,
    peer: Option<SpiffeId>,
    counters: Option<(Counter, Counter)>,
}

/// Bytes moved, and how many of them the counters have.
#[derive(Debug, Default)]
struct Moved {
    total: AtomicU64,
    reported: AtomicU64,
}

// === impl ConnectionRecord ===

impl ConnectionRecord {
    pub(super) fn new(telemetry: Telemetry, start: ConnectionStart) -> Self {
        let open = Arc::new(Open {
            start,
            since: SystemTime::now(),
            sent: Moved::default(),
            received: Moved::default(),
            far: Mutex::default(),
        });
        let table = &telemetry.0.table;
        let id = table.next.fetch_add(1, Ordering::Relaxed);
        table.lock().insert(id, Arc::clone(&open));
        Self { telemetry, id, open, flags: ResponseFlags::default(), over: false }
    }

    /// The other side is reached: its pod, and the identity that it has proven (none: plaintext).
    /// Counts the connection as opened. Call it once.
    pub fn established(&mut self, destination: Option<Arc<Workload>>, peer: Option<SpiffeId>) {
        let mut far = self.open.far();
        far.destination = destination;
        far.peer = peer;
        if self.open.start.layer == Layer::Tcp && far.counters.is_none() {
            let labels = self.open.labels(&far, ResponseFlags::default());
            let metrics = &self.telemetry.0.metrics;
            metrics.tcp_opened.get_or_create_owned(&labels).inc();
            far.counters = Some((
                metrics.tcp_sent.get_or_create_owned(&labels),
                metrics.tcp_received.get_or_create_owned(&labels),
            ));
        }
    }

    /// Counts bytes sent to the client.
    pub fn sent(&self, bytes: u64) {
        self.open.sent.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes received from the client.
    pub fn received(&self, bytes: u64) {
        self.open.received.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds a flag: why the connection failed.
    pub fn flag(&mut self, flag: ResponseFlag) {
        self.flags.insert(flag);
    }

    /// Takes it from the list without a word: the connection goes on, and another agent tells of
    /// its end.
    pub fn hand_over(mut self) {
        self.over = true;
    }

    fn close(&self, metrics: &Metrics) {
        let far = self.open.far();
        if self.open.start.layer == Layer::Tcp {
            let labels = self.open.labels(&far, self.flags);
            if far.counters.is_none() {
                // Never got through: it still was a connection, with a reason.
                metrics.tcp_opened.get_or_create_owned(&labels).inc();
            }
            metrics.tcp_closed.get_or_create_owned(&labels).inc();
        }
        if tracing::enabled!(target: "access", Level::DEBUG) {
            log(&self.open, &far, self.flags);
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.open.flush();
        self.telemetry.0.table.lock().remove(&self.id);
        if self.over {
            return;
        }
        self.close(&self.telemetry.0.metrics);
    }
}

fn log(open: &Open, far: &Far, flags: ResponseFlags) {
    let name = |pod: &Option<Arc<Workload>>| {
        pod.as_ref().map_or_else(|| "-".to_owned(), |pod| pod.name.to_string())
    };
    tracing::event!(
        target: "access",
        Level::DEBUG,
        source = name(&open.start.source),
        source_address = %open.start.source_address,
        destination = name(&far.destination),
        destination_address = %open.start.destination_address,
        service = open.start.service.as_ref().map(|service| &*service.hostname),
        bytes_sent = open.sent.total.load(Ordering::Relaxed),
        bytes_received = open.received.total.load(Ordering::Relaxed),
        duration = open.since.elapsed().unwrap_or_default().as_millis(),
        response_flags = %flags,
        "connection complete"
    );
}

// === impl Table ===

impl Table {
    fn lock(&self) -> MutexGuard<'_, FxHashMap<u64, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flush(&self) {
        self.lock().values().for_each(|open| open.flush());
    }

    pub(super) fn views(&self) -> Vec<ConnectionView> {
        self.lock().values().map(|open| open.view()).collect()
    }
}

// === impl Open ===

impl Open {
    fn far(&self) -> MutexGuard<'_, Far> {
        self.far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self) {
        if let Some((sent, received)) = &self.far().counters {
            self.sent.report(sent);
            self.received.report(received);
        }
    }

    fn labels(&self, far: &Far, flags: ResponseFlags) -> TcpLabels {
        TcpLabels {
            common: CommonLabels::new(&Parties {
                reporter: self.start.reporter,
                source: self.start.source.as_deref(),
                destination: far.destination.as_deref(),
                service: self.start.service.as_deref(),
                protocol: "tcp",
                mutual_tls: far.peer.is_some(),
            }),
            response_flags: flags,
        }
    }

    fn view(&self) -> ConnectionView {
        let far = self.far();
        ConnectionView {
            reporter: self.start.reporter,
            source: self.start.source.as_ref().map(|pod| pod.name.clone()),
            source_address: self.start.source_address,
            destination_address: self.start.destination_address,
            destination: far.destination.as_ref().map(|pod| pod.name.clone()),
            service: self.start.service.as_ref().map(|service| Arc::clone(&service.hostname)),
            since: self.since,
            sent: self.sent.total.load(Ordering::Relaxed),
            received: self.received.total.load(Ordering::Relaxed),
            layer: self.start.layer,
            direct: self.start.direct,
            peer: far.peer.clone(),
        }
    }
}

// === impl Moved ===

impl Moved {
    fn report(&self, counter: &Counter) {
        let total = self.total.load(Ordering::Relaxed);
        let before = self.reported.fetch_max(total, Ordering::Relaxed);
        counter.inc_by(total.saturating_sub(before));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::telemetry::request::tests::pod;

    fn start(layer: Layer) -> ConnectionStart {
        ConnectionStart {
            reporter: Reporter::Source,
            source: Some(pod("client")),
            source_address: ([10, 0, 0, 9], 40_000).into(),
            destination_address: ([10, 96, 0, 1], 5_432).into(),
            service: None,
            layer,
            direct: false,
        }
    }

    fn value(registry: &Registry, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    #[test]
    fn bytes_show_while_the_connection_is_open_and_are_counted_once() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut record = metrics.worker().connection(start(Layer::Tcp));
        let peer = pod("db").identity.clone();
        record.established(Some(pod("db")), Some(peer.clone()));
        record.sent(10);
        record.received(3);
        metrics.flush();
        metrics.flush();
        assert_eq!(value(&registry, "istio_tcp_sent_bytes_total"), 10);
        record.sent(5);
        let views = std::thread::scope(|s| s.spawn(|| metrics.connections()).join().unwrap());
        assert_eq!((views[0].sent, views[0].received), (15, 3));
        assert_eq!(views[0].peer, Some(peer));
        drop(record);
        assert_eq!(value(&registry, "istio_tcp_sent_bytes_total"), 15);
        assert_eq!(value(&registry, "istio_tcp_received_bytes_total"), 3);
        assert_eq!(value(&registry, "istio_tcp_connections_opened_total"), 1);
        assert_eq!(value(&registry, "istio_tcp_connections_closed_total"), 1);
        assert!(metrics.connections().is_empty());
    }

    #[test]
    fn http_connections_are_listed_but_not_counted_as_tcp() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let record = metrics.worker().connection(start(Layer::Http));
        assert_eq!(metrics.connections().len(), 1);
        drop(record);
        assert_eq!(value(&registry, "istio_tcp_connections_opened_total"), 0);
    }

    #[test]
    fn a_connection_that_failed_has_its_reason() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut record = metrics.worker().connection(start(Layer::Tcp));
        record.flag(ResponseFlag::UpstreamConnectFailure);
        drop(record);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let closed = |line: &&str| line.starts_with("istio_tcp_connections_closed_total");
        assert!(text.lines().find(closed).unwrap().contains(r#"response_flags="UF""#));
        assert_eq!(value(&registry, "istio_tcp_connections_opened_total"), 1);
    }
}
