//! The retry policy that every route has unless it says otherwise. Pure.
//!
//! Source: Istio's default, 2 retries (istio-surface 1.1.2 and 2.2); of its conditions the engine
//! honours `connect-failure`: then nothing of the request was sent, so it may go elsewhere whole.

use std::time::Duration;

use crate::balance::share;

/// Retries after the first attempt.
pub(super) const RETRIES: u32 = 2;
/// Envoy's base interval.
const BASE: Duration = Duration::from_millis(25);
/// Envoy's cap: ten times the base.
const CAP: Duration = Duration::from_millis(250);

/// How long to wait before retry number `retry` (from 1): anywhere in [0, (2^retry - 1) x base),
/// never above the cap.
pub(super) fn back_off(retry: u32, draw: u64) -> Duration {
    let factor = 1_u32.checked_shl(retry).map_or(u32::MAX, |power| power - 1);
    let most = BASE.saturating_mul(factor).min(CAP);
    Duration::from_nanos(share(draw, u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap() {
        let most = |retry| back_off(retry, u64::MAX).as_millis();
        assert_eq!([most(1), most(2), most(3), most(4)], [24, 74, 174, 249]);
        assert_eq!(most(40), 249);
        assert_eq!(back_off(2, 0), Duration::ZERO);
    }
}
