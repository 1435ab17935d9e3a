//! When a certificate is renewed. Pure: time and chance are parameters.
//!
//! Invariant: a renewal is due before the certificate expires, and a failed one is tried again,
//! less and less often, without ever touching the certificate in use.

use std::time::{Duration, SystemTime};

/// A renewal is due at half of the lifetime, give or take this share of the lifetime, so that a
/// node's certificates (and a cluster's, started at once) do not come up together.
const JITTER_PERCENT: u32 = 5;
/// An authority that hands out certificates of no life at all is not asked more often than this.
const SOONEST: Duration = Duration::from_secs(1);
/// Wait after the first failed renewal; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait between two attempts: an authority that is back is noticed within this time.
const LAST_RETRY: Duration = Duration::from_secs(300);

/// The renewal of one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    due: SystemTime,
    failures: u32,
}

impl Renewal {
    /// For a certificate that was obtained at `issued`. `draw` is uniform over `u32`.
    ///
    /// `issued` and not the certificate's start: that lies in the past to allow for skewed clocks,
    /// which would eat up half of a short life.
    pub fn new(issued: SystemTime, not_after: SystemTime, draw: u32) -> Self {
        let lifetime = not_after.duration_since(issued).unwrap_or(Duration::ZERO);
        let earliest = lifetime * (50 - JITTER_PERCENT) / 100;
        let spread = lifetime * (2 * JITTER_PERCENT) / 100;
        let wait = (earliest + scale(spread, draw)).max(SOONEST);
        Self { due: issued + wait, failures: 0 }
    }

    /// When to try next.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// Attempts that failed since the certificate was issued.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Makes it due now: the certificate is of no more use.
    pub fn hasten(&mut self, now: SystemTime) {
        self.due = now;
    }

    /// Notes a failed attempt: the next one comes after 1 s, 2 s, 4 s, … 5 min, the last half of
    /// each wait drawn by chance.
    pub fn failed(&mut self, now: SystemTime, draw: u32) {
        let wait = FIRST_RETRY
            .checked_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .unwrap_or(LAST_RETRY)
            .min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.due = now + wait / 2 + scale(wait / 2, draw);
    }
}

/// The share `draw / 2^32` of a duration.
fn scale(whole: Duration, draw: u32) -> Duration {
    whole.mul_f64(f64::from(draw) / (f64::from(u32::MAX) + 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn due_around_half_life() {
        let issued = SystemTime::UNIX_EPOCH + DAY;
        let due = |draw| Renewal::new(issued, issued + DAY, draw).due().duration_since(issued);
        assert_eq!(due(0).unwrap(), DAY * 45 / 100);
        assert_eq!(due(1 << 31).unwrap(), DAY / 2);
        assert!(due(u32::MAX).unwrap() > DAY * 54 / 100);
        assert!(due(u32::MAX).unwrap() < DAY * 55 / 100);
    }

    #[test]
    fn a_certificate_without_life_is_not_asked_for_in_a_loop() {
        let now = SystemTime::UNIX_EPOCH + DAY;
        assert_eq!(Renewal::new(now, now - DAY, u32::MAX).due(), now + SOONEST);
    }

    #[test]
    fn failures_back_off_to_five_minutes() {
        let now = SystemTime::UNIX_EPOCH + DAY;
        let mut renewal = Renewal::new(now, now + DAY, 0);
        let waits: Vec<u64> = (0..40)
            .map(|_| {
                renewal.failed(now, 0);
                renewal.due().duration_since(now).unwrap().as_millis() as u64
            })
            .collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000]);
        assert!(waits[9..].iter().all(|wait| *wait == 150_000), "{waits:?}");
        assert_eq!(renewal.failures(), 40);
    }

    proptest! {
        #[test]
        fn always_between_issue_and_expiry(life in 2_u64..10_000_000, draw: u32) {
            let issued = SystemTime::UNIX_EPOCH + DAY;
            let not_after = issued + Duration::from_secs(life);
            let due = Renewal::new(issued, not_after, draw).due();
            prop_assert!(issued < due && due < not_after);
        }
    }
}
