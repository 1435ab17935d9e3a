//! What callers have used of the rate limits: a token bucket for each limit and caller's pod, in the
//! form of the generic cell rate algorithm (ITU-T I.371, annex A): one number, the time at which the
//! next request is due.
//!
//! Invariants: over any time t no more than `burst` + t / interval requests are let in, whatever the
//! workers do at once; one that is not let in counts for nothing. What was used outlives changes of
//! configuration that do not touch the limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use crate::model::{Rate, RateLimit, Snapshot, Workload};

/// Of all limits. A request under a limit takes the read lock; a caller's first the other.
#[derive(Debug, Default)]
pub(super) struct Rates(RwLock<FxHashMap<usize, Used>>);

/// Of one limit, by its address.
#[derive(Debug)]
struct Used {
    /// Keeps the address from being another limit's.
    _limit: Arc<RateLimit>,
    /// By the UID of the caller's pod.
    callers: FxHashMap<Arc<str>, Bucket>,
}

/// Of one limit by one caller.
#[derive(Debug)]
struct Bucket {
    since: Instant,
    /// When the next request is due, in nanoseconds after `since`.
    due: AtomicU64,
}

/// When the next request is due after one at `now`, in nanoseconds; `None`: this one comes too early.
fn next(rate: &Rate, due: u64, now: u64) -> Option<u64> {
    let interval = rate.interval?.get();
    let early = interval.saturating_mul(u64::from(rate.burst.saturating_sub(1)));
    (due.saturating_sub(now) <= early).then(|| due.max(now).saturating_add(interval))
}

// === impl Rates ===

impl Rates {
    /// Counts a request; `false`: it is one too many.
    pub(super) fn take(&self, caller: &Workload, limit: &Arc<RateLimit>, now: Instant) -> bool {
        let address = Arc::as_ptr(limit).addr();
        {
            let used = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let bucket = used.get(&address).and_then(|used| used.callers.get(&caller.uid));
            if let Some(bucket) = bucket {
                return bucket.take(&limit.rate, now);
            }
        }
        let mut used = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Used { _limit: Arc::clone(limit), callers: FxHashMap::default() };
        let callers = &mut used.entry(address).or_insert_with(new).callers;
        let bucket = callers.entry(Arc::clone(&caller.uid)).or_insert_with(|| Bucket::new(now));
        bucket.take(&limit.rate, now)
    }

    /// Forgets limits and pods that are gone.
    pub(super) fn retain(&self, snapshot: &Snapshot) {
        let limits = snapshot.rate_limits.values().flatten();
        let there: FxHashSet<usize> = limits.map(|limit| Arc::as_ptr(limit).addr()).collect();
        let mut used = self.0.write().unwrap_or_else(PoisonError::into_inner);
        used.retain(|address, used| {
            used.callers.retain(|uid, _| snapshot.workloads_by_uid.contains_key(uid));
            there.contains(address)
        });
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { since: now, due: AtomicU64::new(0) }
    }

    fn take(&self, rate: &Rate, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.since).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let next = |due| next(rate, due, now);
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::fixture::{object, pod, snapshot};
    use crate::balance::{Live, LiveHandle};
    use crate::model::{Callers, ServiceKey};

    fn limit(name: &str, requests: u32, burst: u32) -> Arc<RateLimit> {
        Arc::new(RateLimit {
            object: object("RateLimit", "web"),
            name: name.into(),
            callers: Callers::default(),
            matches: Vec::new(),
            rate: Rate::new(requests, Duration::from_secs(1), Some(burst)),
        })
    }

    fn world(pods: &[&str], limits: &[&Arc<RateLimit>]) -> Arc<Snapshot> {
        let pods: Vec<_> = pods.iter().map(|name| pod(name, &[], "")).collect();
        let mut snapshot = Arc::unwrap_or_clone(snapshot(&pods, vec![], vec![], vec![]));
        let web = ServiceKey { namespace: "shop".into(), name: "web".into() };
        let limits = limits.iter().map(|limit| Arc::clone(limit)).collect();
        snapshot.rate_limits.insert(web, limits);
        Arc::new(snapshot)
    }

    /// How many of 100 requests at one moment are let in.
    fn at_once(live: &Live, caller: &str, limit: &Arc<RateLimit>, now: Instant) -> usize {
        let caller = pod(caller, &[], "");
        (0..100).filter(|_| live.lets_in(&caller, limit, now)).count()
    }

    #[test]
    fn each_pod_has_its_own_and_each_limit() {
        let (one, two) = (limit("one", 10, 5), limit("two", 10, 7));
        let live = Live::new(world(&["a", "b"], &[&one, &two]));
        let now = Instant::now();
        assert_eq!(at_once(&live, "a", &one, now), 5);
        assert_eq!(at_once(&live, "a", &one, now), 0);
        assert_eq!(at_once(&live, "b", &one, now), 5);
        assert_eq!(at_once(&live, "a", &two, now), 7);
        assert_eq!(at_once(&live, "a", &one, now + Duration::from_millis(250)), 2);
    }

    #[test]
    fn no_requests_are_none() {
        let none = limit("none", 0, 5);
        let live = Live::new(world(&["a"], &[&none]));
        assert_eq!(at_once(&live, "a", &none, Instant::now()), 0);
    }

    #[test]
    fn what_was_used_stays_used_while_limit_and_pod_are_there() {
        let (kept, gone, now) = (limit("kept", 10, 5), limit("gone", 10, 5), Instant::now());
        let live: LiveHandle = Live::handle(world(&["a", "b"], &[&kept, &gone]));
        for (caller, limit) in [("a", &kept), ("b", &kept), ("a", &gone)] {
            assert_eq!(at_once(&live.load(), caller, limit, now), 5);
        }
        live.store(Arc::new(live.load().next(world(&["a"], &[&kept]))));
        live.store(Arc::new(live.load().next(world(&["a", "b"], &[&kept, &gone]))));
        assert_eq!(at_once(&live.load(), "a", &kept, now), 0);
        assert_eq!(at_once(&live.load(), "b", &kept, now), 5, "another pod by now");
        assert_eq!(at_once(&live.load(), "a", &gone, now), 5, "another limit by now");
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let (kept, gone, now) = (limit("kept", 10, 5), limit("gone", 10, 5), Instant::now());
        let rates = Rates::default();
        for (caller, limit) in [("a", &kept), ("b", &kept), ("a", &gone)] {
            assert!(rates.take(&pod(caller, &[], ""), limit, now));
        }
        rates.retain(&world(&["a"], &[&kept]));
        let used = rates.0.read().unwrap();
        let callers: Vec<_> = used.values().flat_map(|used| used.callers.keys()).collect();
        assert_eq!((used.len(), callers), (1, vec![&Arc::from("uid-a")]));
    }

    #[test]
    fn threads_together_never_exceed_it() {
        let limit = limit("one", 1, 1_000);
        let live = Live::new(world(&["a"], &[&limit]));
        let now = Instant::now();
        let counts: usize = std::thread::scope(|scope| {
            let one = || (0..20).map(|_| at_once(&live, "a", &limit, now)).sum::<usize>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(counts, 1_000);
    }

    /// The moments, in nanoseconds, at which requests are let in.
    fn let_in(rate: &Rate, times: &[u64]) -> Vec<u64> {
        let mut due = 0;
        let mut take = |now: u64| {
            let next = next(rate, due, now);
            due = next.unwrap_or(due);
            next.is_some()
        };
        times.iter().copied().filter(|now| take(*now)).collect()
    }

    proptest! {
        /// Within any stretch of time: no more than the burst and what the rate gives.
        #[test]
        fn never_more_than_burst_and_rate(
            requests in 1_u32..2_000,
            burst in 1_u32..50,
            steps in prop::collection::vec(0_u64..5_000_000, 1..300),
        ) {
            let rate = Rate::new(requests, Duration::from_secs(1), Some(burst));
            let times: Vec<u64> = steps.iter().scan(0, |at, step| {
                *at += step;
                Some(*at)
            }).collect();
            let found = let_in(&rate, &times);
            for (first, from) in found.iter().enumerate() {
                for (count, to) in (1_u64..).zip(&found[first..]) {
                    let by_rate = (to - from) * u64::from(requests) / 1_000_000_000;
                    prop_assert!(count <= u64::from(burst) + by_rate, "{count} in {}", to - from);
                }
            }
        }

        /// A caller at the rate or below it is never refused, whatever the burst.
        #[test]
        fn who_keeps_the_rate_is_let_in(
            requests in 1_u32..2_000,
            burst in 1_u32..50,
            pauses in prop::collection::vec(0_u64..10_000_000, 1..200),
        ) {
            let rate = Rate::new(requests, Duration::from_secs(1), Some(burst));
            let interval = rate.interval.unwrap().get();
            let times: Vec<u64> = pauses.iter().scan(0, |at, pause| {
                *at += interval + pause;
                Some(*at)
            }).collect();
            prop_assert_eq!(let_in(&rate, &times), times);
        }

        /// After a pause the burst is whole again, and not more than that.
        #[test]
        fn a_pause_gives_the_burst_back(
            requests in 1_u32..2_000, burst in 1_u32..50, used in 0_usize..100, more in 0_u64..1 << 40
        ) {
            let rate = Rate::new(requests, Duration::from_secs(1), Some(burst));
            let whole = u64::from(burst) * rate.interval.unwrap().get() + more;
            let times = [vec![0; used], vec![whole; 100]].concat();
            let after = let_in(&rate, &times).iter().filter(|at| **at == whole).count();
            prop_assert_eq!(after, burst as usize);
        }

        /// Nothing overflows, and a clock that lags lets nobody in who would not be.
        #[test]
        fn no_time_is_too_odd(
            interval in 1_u64.., burst in 1_u32.., due: u64, now: u64, lag: u64
        ) {
            let rate = Rate { interval: std::num::NonZeroU64::new(interval), burst };
            let late = next(&rate, due, now);
            prop_assert!(late.is_none_or(|next| next >= due));
            if next(&rate, due, now.saturating_sub(lag)).is_some() {
                prop_assert!(late.is_some());
            }
        }
    }
}
