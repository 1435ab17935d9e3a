//! What one upstream may have at one moment: requests, retries, connections, requests that wait.
//!
//! Invariant: a permit gives back what it took, on the counter it took it from, so a count that
//! nobody holds is 0. The limits themselves come with each question: a change of configuration
//! holds from the next one on and takes nothing back. Source: Istio `connectionPool` and
//! `retryBudget` (istio-surface 1.2.1 and 2.4); Envoy's `ResourceManagerImpl`, whose circuit
//! breakers these are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::{ConnectionPool, RetryBudget, TrafficPolicy};

/// One upstream's counts.
#[derive(Debug, Default)]
pub(super) struct Limits {
    requests: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    pending: AtomicU32,
}

#[derive(Clone, Copy, Debug)]
enum Count {
    Requests,
    Retries,
    Connections,
    Pending,
}

/// One taken from a count, until dropped.
#[derive(Debug)]
struct Taken {
    limits: Arc<Limits>,
    from: Count,
}

/// A request or retry that is let in, until dropped. Counted only where there is a limit.
#[derive(Debug)]
pub struct InFlight(#[expect(dead_code, reason = "held for its drop")] Option<Taken>);

/// A connection that counts, until dropped.
#[derive(Debug)]
pub struct OpenPermit(#[expect(dead_code, reason = "held for its drop")] Taken);

/// A request that waits for a connection, until dropped.
#[derive(Debug)]
pub struct PendingPermit(#[expect(dead_code, reason = "held for its drop")] Taken);

/// An upstream's connections, of all workers, under the limits that held when it was asked for.
#[derive(Clone, Debug)]
pub struct Connections {
    limits: Arc<Limits>,
    max_connections: u32,
    max_pending: u32,
}

// === impl Limits ===

impl Limits {
    fn count(&self, of: Count) -> &AtomicU32 {
        match of {
            Count::Requests => &self.requests,
            Count::Retries => &self.retries,
            Count::Connections => &self.connections,
            Count::Pending => &self.pending,
        }
    }

    /// Takes one, unless `most` are taken.
    fn take(self: &Arc<Self>, from: Count, most: u32) -> Option<Taken> {
        let below = |now: u32| if now < most { now.checked_add(1) } else { None };
        self.count(from).fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(Taken { limits: Arc::clone(self), from })
    }

    /// A request under `http2MaxRequests`; `None`: overflow. Also counted where there is no limit
    /// but a retry budget, which is a share of it.
    pub(super) fn admit(self: &Arc<Self>, policy: &TrafficPolicy) -> Option<InFlight> {
        let most = policy.pool.max_requests;
        if most == u32::MAX && policy.retry_budget.is_none() {
            return Some(InFlight(None));
        }
        self.take(Count::Requests, most).map(|taken| InFlight(Some(taken)))
    }

    /// A retry under the budget, else under `maxRetries`; `None`: not now.
    pub(super) fn retry(self: &Arc<Self>, policy: &TrafficPolicy) -> Option<InFlight> {
        let most = match &policy.retry_budget {
            Some(budget) => allowance(budget, self.requests.load(Ordering::Relaxed)),
            None if policy.pool.max_retries == u32::MAX => return Some(InFlight(None)),
            None => policy.pool.max_retries,
        };
        self.take(Count::Retries, most).map(|taken| InFlight(Some(taken)))
    }

    /// `None` where connections have no limit.
    pub(super) fn connections(self: &Arc<Self>, pool: &ConnectionPool) -> Option<Connections> {
        let &ConnectionPool { max_connections, max_pending, .. } = pool;
        (max_connections != u32::MAX || max_pending != u32::MAX).then(|| Connections {
            limits: Arc::clone(self),
            max_connections,
            max_pending,
        })
    }
}

/// How many retries a budget allows beside this many active requests (those that wait for a
/// connection are among them): Envoy rounds down.
fn allowance(budget: &RetryBudget, active: u32) -> u32 {
    let share = f64::from(active) * budget.percent / 100.0;
    // `as` saturates.
    budget.min_concurrency.max(share as u32)
}

// === impl Taken ===

impl Drop for Taken {
    fn drop(&mut self) {
        self.limits.count(self.from).fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Connections ===

impl Connections {
    /// Tells upstreams apart while one of their connections is held.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.limits).addr()
    }

    /// One more connection under `maxConnections`; `None`: no more.
    pub fn open(&self) -> Option<OpenPermit> {
        self.limits.take(Count::Connections, self.max_connections).map(OpenPermit)
    }

    /// One more connection, counted, above the limit if need be: a worker that has none would
    /// starve (Envoy grants each worker one, too).
    pub fn open_above(&self) -> OpenPermit {
        self.limits.connections.fetch_add(1, Ordering::Relaxed);
        OpenPermit(Taken { limits: Arc::clone(&self.limits), from: Count::Connections })
    }

    /// One more request that waits for a connection, under `http1MaxPendingRequests`; `None`:
    /// overflow.
    pub fn wait(&self) -> Option<PendingPermit> {
        self.limits.take(Count::Pending, self.max_pending).map(PendingPermit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(max_requests: u32, max_retries: u32, budget: Option<RetryBudget>) -> TrafficPolicy {
        let pool = ConnectionPool { max_requests, max_retries, ..ConnectionPool::default() };
        TrafficPolicy { pool, retry_budget: budget, ..TrafficPolicy::default() }
    }

    #[test]
    fn permits_come_back() {
        let limits = Arc::new(Limits::default());
        let policy = policy(2, 1, None);
        let held = [limits.admit(&policy).unwrap(), limits.admit(&policy).unwrap()];
        assert!(limits.admit(&policy).is_none());
        let retry = limits.retry(&policy).unwrap();
        assert!(limits.retry(&policy).is_none());
        drop((held, retry));
        assert!(limits.admit(&policy).is_some() && limits.retry(&policy).is_some());
    }

    #[test]
    fn a_lower_limit_takes_nothing_back() {
        let limits = Arc::new(Limits::default());
        let held: Vec<_> = (0..3).filter_map(|_| limits.admit(&policy(3, 0, None))).collect();
        assert_eq!(held.len(), 3);
        assert!(limits.admit(&policy(1, 0, None)).is_none());
        drop(held);
        assert!(limits.admit(&policy(1, 0, None)).is_some());
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let limits = Arc::new(Limits::default());
        let policy = TrafficPolicy::default();
        let _held = (limits.admit(&policy).unwrap(), limits.retry(&policy).unwrap());
        assert!(limits.connections(&policy.pool).is_none());
        assert_eq!(limits.requests.load(Ordering::Relaxed), 0);
        assert_eq!(limits.retries.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn connections_and_those_who_wait() {
        let limits = Arc::new(Limits::default());
        let pool = ConnectionPool { max_connections: 1, ..ConnectionPool::default() };
        let connections = limits.connections(&pool).unwrap();
        let waits: Vec<_> = (0..100).filter_map(|_| connections.wait()).collect();
        assert_eq!(waits.len(), 100, "maxPending is not set");
        let first = connections.open().unwrap();
        let (other, above) = (connections.clone(), connections.open_above());
        assert!(other.open().is_none());
        drop(first);
        assert!(other.open().is_none(), "the one above the limit counts");
        drop(above);
        let _only = other.open().unwrap();
        let pool = ConnectionPool { max_pending: 1, ..ConnectionPool::default() };
        drop(waits);
        let connections = limits.connections(&pool).unwrap();
        let _waits = connections.wait().unwrap();
        assert!(connections.wait().is_none());
    }

    #[test]
    fn threads_never_exceed_a_limit() {
        let limits = Arc::new(Limits::default());
        let policy = policy(5, 0, None);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held = limits.admit(&policy);
                        assert!(limits.requests.load(Ordering::Relaxed) <= 5);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(limits.requests.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_largest_count_does_not_wrap() {
        let limits = Arc::new(Limits::default());
        limits.connections.store(u32::MAX, Ordering::Relaxed);
        assert!(limits.take(Count::Connections, u32::MAX).is_none());
    }

    proptest! {
        /// Retries never exceed the larger of the minimum and the share of active requests.
        #[test]
        fn retries_stay_in_the_budget(
            active in 0_u32..300, percent in 0.0..100.0_f64, least in 0_u32..10
        ) {
            let limits = Arc::new(Limits::default());
            let budget = RetryBudget { percent, min_concurrency: least };
            let policy = policy(u32::MAX, 0, Some(budget));
            let requests: Vec<_> = (0..active).filter_map(|_| limits.admit(&policy)).collect();
            prop_assert_eq!(requests.len(), active as usize);
            let retries: Vec<_> = (0..400).map_while(|_| limits.retry(&policy)).collect();
            let share = (f64::from(active) * percent / 100.0).floor();
            prop_assert_eq!(retries.len(), (share as usize).max(least as usize));
        }
    }
}
