//! Who sends the next request, and when.
//!
//! A run ends after a number of requests, at an instant, or when it is stopped. With a rate, a
//! request is due at a fixed instant, and its latency counts from there: a slow answer does not hide
//! those that queue behind it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by all workers of a run.
#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    next: AtomicU64,
    limit: Option<u64>,
    length: Option<Duration>,
    rate: Option<f64>,
    stopped: AtomicBool,
}

impl Schedule {
    pub(super) fn new(
        start: Instant,
        limit: Option<u64>,
        length: Option<Duration>,
        rate: Option<f64>,
    ) -> Self {
        let stopped = AtomicBool::new(false);
        Self { start, next: AtomicU64::new(0), limit, length, rate, stopped }
    }

    /// When the run began.
    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// Whether requests are due at fixed instants.
    pub(super) fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// No request is due from now on.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The next request: its number, the first being 0, and the instant at which it is due; `None`
    /// when the run is over.
    pub(super) fn take(&self, now: Instant) -> Option<(u64, Instant)> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.limit.is_some_and(|limit| number >= limit) {
            return None;
        }
        let due = match self.rate {
            // Far in the future is as good as never for a run that a person waits for.
            Some(rate) => self.start + Duration::try_from_secs_f64(number as f64 / rate).ok()?,
            None => now,
        };
        let over = self.length.is_some_and(|length| due.max(now) >= self.start + length);
        (!over).then_some((number, due))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_gives_exactly_that_many() {
        let start = Instant::now();
        let schedule = Schedule::new(start, Some(3), None, None);
        let taken: Vec<_> = std::iter::from_fn(|| schedule.take(start)).collect();
        assert_eq!(taken, [(0, start), (1, start), (2, start)]);
        assert_eq!(schedule.take(start), None);
    }

    #[test]
    fn a_stopped_run_ends() {
        let start = Instant::now();
        let schedule = Schedule::new(start, None, None, None);
        assert!(schedule.take(start).is_some());
        schedule.stop();
        assert_eq!(schedule.take(start), None);
    }

    #[test]
    fn a_rate_spaces_requests_evenly_whoever_takes_them_late() {
        let start = Instant::now();
        let schedule = Schedule::new(start, Some(3), None, Some(100.0));
        let late = start + Duration::from_secs(1);
        let due = std::iter::from_fn(|| schedule.take(late));
        let due: Vec<_> = due.map(|(_, instant)| instant).collect();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(due, [at(0), at(10), at(20)]);
    }

    #[test]
    fn a_length_ends_the_run() {
        let start = Instant::now();
        let schedule = Schedule::new(start, None, Some(Duration::from_secs(1)), None);
        assert!(schedule.take(start + Duration::from_millis(999)).is_some());
        assert!(schedule.take(start + Duration::from_secs(1)).is_none());
    }
}
