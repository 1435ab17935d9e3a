//! The metric families, shared by all threads, and each worker's way into them.
//!
//! Invariant: looking up a series costs strings once; afterwards a worker finds its counters by
//! pointer. Nothing here is reset: a series lives as long as the process.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;

use super::connection::{ConnectionRecord, ConnectionStart, ConnectionView, Table};
use super::labels::{LimitLabels, RequestLabels, TcpLabels};
use super::request::{RequestRecord, RequestStart, SeriesKey};

/// Envoy's default histogram bounds in milliseconds; Istio's dashboards are made for them.
const DURATION_BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Series that a worker remembers. When full it forgets them all and looks them up again: a change
/// of configuration gives pods new pointers, so old entries are never asked for.
const CACHED_SERIES: usize = 4_096;

type Durations = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// All metrics of the data path. Send and Sync; made once.
#[derive(Debug)]
pub struct Metrics {
    pub(super) requests: Family<RequestLabels, Counter>,
    pub(super) durations: Durations,
    pub(super) rate_limited: Family<LimitLabels, Counter>,
    pub(super) tcp_sent: Family<TcpLabels, Counter>,
    pub(super) tcp_received: Family<TcpLabels, Counter>,
    pub(super) tcp_opened: Family<TcpLabels, Counter>,
    pub(super) tcp_closed: Family<TcpLabels, Counter>,
    tables: Mutex<Vec<Arc<Table>>>,
}

/// One worker's telemetry; clones share the worker's caches.
#[derive(Clone, Debug)]
pub struct Telemetry(pub(super) Rc<Worker>);

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) metrics: Arc<Metrics>,
    pub(super) table: Arc<Table>,
    series: RefCell<FxHashMap<SeriesKey, Series>>,
}

/// The counters of one set of labels.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) requests: Counter,
    pub(super) durations: Histogram,
}

// === impl Metrics ===

impl Metrics {
    /// Registers all families under Istio's names.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let durations: Durations = Family::new_with_constructor(durations);
        let metrics = Self {
            requests: Family::default(),
            durations,
            rate_limited: Family::default(),
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tables: Mutex::default(),
        };
        // The library appends `_total` to counters.
        registry.register("istio_requests", "HTTP and gRPC requests", metrics.requests.clone());
        registry.register(
            "istio_request_duration_milliseconds",
            "Time from the request's head to the end of its response",
            metrics.durations.clone(),
        );
        registry.register(
            "malha_rate_limited_requests",
            "Requests that a RateLimit refused",
            metrics.rate_limited.clone(),
        );
        for (name, help, family) in [
            ("istio_tcp_sent_bytes", "Bytes sent to clients", &metrics.tcp_sent),
            ("istio_tcp_received_bytes", "Bytes received from clients", &metrics.tcp_received),
            ("istio_tcp_connections_opened", "TCP connections opened", &metrics.tcp_opened),
            ("istio_tcp_connections_closed", "TCP connections closed", &metrics.tcp_closed),
        ] {
            registry.register(name, help, family.clone());
        }
        Arc::new(metrics)
    }

    /// The telemetry of one more worker. Call it on the worker's thread: the value stays there.
    pub fn worker(self: &Arc<Self>) -> Telemetry {
        let table = Arc::new(Table::default());
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&table));
        Telemetry(Rc::new(Worker { metrics: Arc::clone(self), table, series: RefCell::default() }))
    }

    /// Adds what open connections have moved since the last call to the counters. Call it before
    /// the metrics are written out, or a long-lived connection only shows when it ends.
    pub fn flush(&self) {
        for table in self.tables.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            table.flush();
        }
    }

    /// All open connections of all workers, oldest first. For `meshctl connections`; may be called
    /// from any thread.
    pub fn connections(&self) -> Vec<ConnectionView> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = tables.iter().flat_map(|table| table.views()).collect();
        found.sort_by_key(|view| view.since);
        found
    }
}

fn durations() -> Histogram {
    Histogram::new(DURATION_BOUNDS)
}

// === impl Telemetry ===

impl Telemetry {
    /// Opens the record of a request.
    pub fn request(&self, start: RequestStart<'_>) -> RequestRecord {
        RequestRecord::new(self.clone(), start)
    }

    /// Opens the record of a connection and lists it as open.
    pub fn connection(&self, start: ConnectionStart) -> ConnectionRecord {
        ConnectionRecord::new(self.clone(), start)
    }

    /// The counters of a key, by pointer if the worker has seen it before.
    pub(super) fn series(&self, key: SeriesKey) -> Series {
        let mut series = self.0.series.borrow_mut();
        if let Some(found) = series.get(&key) {
            return found.clone();
        }
        let labels = key.labels();
        let metrics = &self.0.metrics;
        let made = Series {
            requests: metrics.requests.get_or_create_owned(&labels),
            durations: metrics.durations.get_or_create_owned(&labels),
        };
        if series.len() >= CACHED_SERIES {
            series.clear();
        }
        series.insert(key, made.clone());
        made
    }
}
