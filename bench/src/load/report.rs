//! What a run saw, added up over its workers and written as JSON.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;

use super::histogram::Histogram;

/// Distinct values counted in one table; further ones are added to `(others)`.
const MAX_VALUES: usize = 10_000;

/// Values listed of one table, most frequent first.
const TOP: usize = 10;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    /// The name has no address.
    Resolve,
    /// No TCP connection.
    Connect,
    /// No HTTP or WebSocket on the connection.
    Handshake,
    /// The connection or stream ended before an answer's head.
    Request,
    /// The answer's body broke off.
    Body,
    /// No whole answer in time.
    Timeout,
    /// Not what was sent came back.
    Mismatch,
}

/// A failure and its text.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    pub(super) text: String,
}

/// How often each value was seen.
#[derive(Debug, Default)]
pub(super) struct Tally(HashMap<String, u64>);

/// What one worker saw, or all of them.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) succeeded: u64,
    pub(super) connections: u64,
    pub(super) bytes: u64,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) grpc_statuses: BTreeMap<String, u64>,
    pub(super) bodies: Tally,
    pub(super) headers: Tally,
    pub(super) latencies: Histogram,
    errors: BTreeMap<&'static str, u64>,
    examples: BTreeMap<&'static str, String>,
}

/// One row of a table of values.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    value: String,
    count: u64,
}

/// The JSON of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    requests: u64,
    succeeded: u64,
    failed: u64,
    errors: BTreeMap<&'static str, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    error_examples: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    statuses: BTreeMap<u16, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    grpc_statuses: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bodies: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<Row>,
    connections: u64,
    bytes: u64,
    latency_us: Quantiles,
    seconds: f64,
    per_second: f64,
    cpu_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl ErrorKind {
    fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Request => "request",
            Self::Body => "body",
            Self::Timeout => "timeout",
            Self::Mismatch => "mismatch",
        }
    }

    /// A failure of this kind with the whole chain of causes in its text.
    pub(super) fn because(self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Failure { kind: self, text }
    }
}

impl Tally {
    pub(super) fn add(&mut self, value: &str, count: u64) {
        if let Some(seen) = self.0.get_mut(value) {
            *seen += count;
        } else if self.0.len() < MAX_VALUES {
            self.0.insert(value.to_owned(), count);
        } else {
            *self.0.entry("(others)".to_owned()).or_default() += count;
        }
    }

    fn merge(&mut self, other: Self) {
        for (value, count) in other.0 {
            self.add(&value, count);
        }
    }

    fn top(self) -> Vec<Row> {
        let mut rows: Vec<_> =
            self.0.into_iter().map(|(value, count)| Row { value, count }).collect();
        rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
        rows.truncate(TOP);
        rows
    }
}

impl Counts {
    pub(super) fn new() -> Self {
        Self {
            requests: 0,
            succeeded: 0,
            connections: 0,
            bytes: 0,
            statuses: BTreeMap::new(),
            grpc_statuses: BTreeMap::new(),
            bodies: Tally::default(),
            headers: Tally::default(),
            latencies: Histogram::new(),
            errors: BTreeMap::new(),
            examples: BTreeMap::new(),
        }
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        let name = failure.kind.name();
        *self.errors.entry(name).or_default() += 1;
        self.examples.entry(name).or_insert(failure.text);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.succeeded += other.succeeded;
        self.connections += other.connections;
        self.bytes += other.bytes;
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        for (status, count) in other.grpc_statuses {
            *self.grpc_statuses.entry(status).or_default() += count;
        }
        self.bodies.merge(other.bodies);
        self.headers.merge(other.headers);
        self.latencies.merge(&other.latencies);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        for (kind, text) in other.examples {
            self.examples.entry(kind).or_insert(text);
        }
    }

    /// Closes the books after `elapsed`.
    pub(super) fn report(self, elapsed: Duration) -> Report {
        let seconds = elapsed.as_secs_f64();
        let quantile = |per_mille| self.latencies.quantile(per_mille);
        Report {
            requests: self.requests,
            succeeded: self.succeeded,
            failed: self.errors.values().sum(),
            latency_us: Quantiles {
                p50: quantile(500),
                p90: quantile(900),
                p99: quantile(990),
                p999: quantile(999),
                max: self.latencies.max(),
            },
            errors: self.errors,
            error_examples: self.examples,
            statuses: self.statuses,
            grpc_statuses: self.grpc_statuses,
            bodies: self.bodies.top(),
            headers: self.headers.top(),
            connections: self.connections,
            bytes: self.bytes,
            seconds,
            per_second: self.requests as f64 / seconds.max(f64::EPSILON),
            cpu_seconds: cpu_seconds(),
        }
    }
}

/// Processor time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    match getrusage(UsageWho::RUSAGE_SELF) {
        Ok(usage) => seconds(usage.user_time()) + seconds(usage.system_time()),
        Err(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let mut total = Counts::new();
        for status in [200, 503] {
            let mut worker = Counts::new();
            worker.requests = 2;
            worker.statuses.insert(status, 1);
            worker.bodies.add("A", 1);
            worker.fail(Failure { kind: ErrorKind::Timeout, text: format!("after {status}") });
            total.merge(worker);
        }
        let report = total.report(Duration::from_secs(2));
        assert_eq!((report.requests, report.failed), (4, 2));
        assert_eq!(report.statuses, BTreeMap::from([(200, 1), (503, 1)]));
        assert_eq!(report.error_examples["timeout"], "after 200");
        assert_eq!(report.bodies, [Row { value: "A".to_owned(), count: 2 }]);
    }

    #[test]
    fn a_table_lists_the_most_frequent_first() {
        let mut tally = Tally::default();
        for number in 0..20 {
            tally.add(&format!("v{number:02}"), number);
        }
        let rows = tally.top();
        assert_eq!(rows.len(), TOP);
        assert_eq!((rows[0].value.as_str(), rows[0].count), ("v19", 19));
    }

    #[test]
    fn a_table_stops_growing() {
        let mut tally = Tally::default();
        for number in 0..=MAX_VALUES + 5 {
            tally.add(&number.to_string(), 1);
        }
        assert_eq!(tally.0.len(), MAX_VALUES + 1);
        assert_eq!(tally.0["(others)"], 6);
    }
}
