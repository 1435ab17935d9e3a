//! When a certificate is renewed. Pure: `now` and the random draw come in.

use std::time::{Duration, SystemTime};

/// Share of the life, around its half, over which renewals of many certificates are spread.
const JITTER: f64 = 0.1;

/// First wait after a failed renewal; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait after a failed renewal.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When a certificate with this validity is renewed: half life, plus or minus a tenth of the life
/// by `draw` in 0..1.
pub(super) fn renew_at(not_before: SystemTime, not_after: SystemTime, draw: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let share = 0.5 + (draw - 0.5) * 2.0 * JITTER;
    not_before + life.mul_f64(share.clamp(0.1, 0.9))
}

/// How long to wait after the `failures`-th failed renewal in a row (from 1).
pub(super) fn retry_after(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_MIN.saturating_mul(factor).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_around_half_life() {
        let start = SystemTime::UNIX_EPOCH;
        let end = start + Duration::from_secs(1000);
        let at = |draw| renew_at(start, end, draw).duration_since(start).unwrap().as_secs();
        assert_eq!((at(0.0), at(0.5), at(1.0)), (400, 500, 600));
    }

    #[test]
    fn failures_back_off_to_a_minute() {
        assert_eq!(retry_after(1), Duration::from_secs(1));
        assert_eq!(retry_after(3), Duration::from_secs(4));
        assert_eq!(retry_after(40), Duration::from_secs(60));
    }
}
