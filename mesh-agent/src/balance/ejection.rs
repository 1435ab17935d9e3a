//! Who is ejected now, for how long, and how often it has happened.
//!
//! Invariant: nothing here runs by itself. An ejected endpoint comes back when somebody asks after
//! its time; what lies between is computed from the clock ([`super::outlier`]). A book is only
//! opened when a streak is long enough, or while somebody is out.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::host::Host;
use super::outlier::{EjectionReason, Ticks, decayed, ejection_time, later, next_times};
use super::view::Family;
use crate::model::{OutlierDetection, ServiceKey};

/// One ejected endpoint, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// UID of the client's pod: others may see the endpoint as healthy.
    pub source: Arc<str>,
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// The subset, if routes name one.
    pub subset: Option<Arc<str>>,
    /// The endpoint.
    pub address: SocketAddr,
    /// Why.
    pub reason: EjectionReason,
    /// Time until it is used again.
    pub remaining: Duration,
    /// How many times in a row it has been ejected, by which its time is multiplied.
    pub times: u32,
}

/// How many ejections there were in one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjectionCount {
    /// The service.
    pub service: ServiceKey,
    /// Why.
    pub reason: EjectionReason,
    /// Since the process began, of all clients.
    pub total: u64,
    /// How many endpoints are out now, counted once for each client.
    pub active: u64,
}

/// Ejections since the process began. At most one entry per service and reason; only ejections,
/// which are rare, take the lock.
#[derive(Debug, Default)]
pub(super) struct EjectionCounters(Mutex<FxHashMap<(ServiceKey, EjectionReason), u64>>);

/// One upstream's ejections, past ones as long as they lengthen the next.
#[derive(Debug, Default)]
pub(super) struct Book {
    records: FxHashMap<SocketAddr, Record>,
}

#[derive(Debug)]
struct Record {
    host: Arc<Host>,
    reason: EjectionReason,
    times: u32,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Ejected at this moment.
    Out(Instant),
    /// Taken back at this tick.
    Back(Instant),
}

/// By what a book is kept: the policy of whoever opens it, and its ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) policy: &'a OutlierDetection,
    pub(super) started: Instant,
    pub(super) now: Instant,
}

// === impl Rules ===

impl Rules<'_> {
    fn ticks(&self) -> Ticks {
        Ticks { started: self.started, interval: self.policy.interval }
    }

    /// The tick at which an endpoint comes back.
    fn back(&self, ejected: Instant, times: u32) -> Instant {
        self.ticks().from(later(ejected, ejection_time(self.policy.base_ejection, times)))
    }
}

// === impl Book ===

impl Book {
    /// Takes back those whose time is over, and forgets what no longer matters. Returns whether
    /// anybody came back.
    pub(super) fn settle(&mut self, rules: &Rules<'_>) -> bool {
        let mut came_back = false;
        for record in self.records.values_mut() {
            if let State::Out(at) = record.state {
                let back = rules.back(at, record.times);
                if back <= rules.now {
                    record.host.set_ejected(false);
                    record.state = State::Back(back);
                    came_back = true;
                }
            }
        }
        self.records.retain(|_, record| match record.state {
            State::Out(_) => true,
            State::Back(at) => decayed(record.times, rules.ticks().between(at, rules.now)) > 0,
        });
        came_back
    }

    /// Ejects a host; returns for the how manyeth time in a row, and how long.
    pub(super) fn eject(
        &mut self,
        host: &Arc<Host>,
        reason: EjectionReason,
        rules: &Rules<'_>,
    ) -> (u32, Duration) {
        let base = rules.policy.base_ejection;
        let before = self.records.get(&host.address).map_or((0, 0), |record| match record.state {
            State::Back(at) => (record.times, rules.ticks().between(at, rules.now)),
            State::Out(_) => (record.times, 0),
        });
        let times = next_times(before.0, before.1, base);
        host.set_ejected(true);
        let state = State::Out(rules.now);
        let record = Record { host: Arc::clone(host), reason, times, state };
        self.records.insert(host.address, record);
        (times, rules.back(rules.now, times).duration_since(rules.now))
    }

    /// How many of a family are out.
    pub(super) fn ejected(&self, family: Family) -> usize {
        let is_out = |record: &&Record| {
            matches!(record.state, State::Out(_)) && Family::of(record.host.address) == family
        };
        self.records.values().filter(is_out).count()
    }

    /// When the next one comes back.
    pub(super) fn next(&self, rules: &Rules<'_>) -> Option<Instant> {
        let backs = self.records.values().filter_map(|record| match record.state {
            State::Out(at) => Some(rules.back(at, record.times)),
            State::Back(_) => None,
        });
        backs.min()
    }

    /// Forgets those that are endpoints no more. Returns whether one of them was out.
    pub(super) fn keep(&mut self, is_endpoint: impl Fn(SocketAddr) -> bool) -> bool {
        let mut left = false;
        self.records.retain(|address, record| {
            let keep = is_endpoint(*address);
            left |= !keep && matches!(record.state, State::Out(_));
            keep
        });
        left
    }

    /// Those who are out: address, reason, time left, times in a row.
    pub(super) fn list<'a>(
        &'a self,
        rules: &'a Rules<'_>,
    ) -> impl Iterator<Item = (SocketAddr, EjectionReason, Duration, u32)> + 'a {
        self.records.iter().filter_map(|(address, record)| match record.state {
            State::Out(at) => {
                let back = rules.back(at, record.times);
                let remaining = back.saturating_duration_since(rules.now);
                (!remaining.is_zero()).then_some((*address, record.reason, remaining, record.times))
            }
            State::Back(_) => None,
        })
    }
}

// === impl EjectionCounters ===

impl EjectionCounters {
    pub(super) fn add(&self, service: &ServiceKey, reason: EjectionReason) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((service.clone(), reason)).or_default() += 1;
    }

    pub(super) fn all(&self) -> Vec<EjectionCount> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = counts
            .iter()
            .map(|((service, reason), total)| EjectionCount {
                service: service.clone(),
                reason: *reason,
                total: *total,
                active: 0,
            })
            .collect();
        found.sort_by(|a, b| (&a.service, a.reason.as_str()).cmp(&(&b.service, b.reason.as_str())));
        found
    }
}
