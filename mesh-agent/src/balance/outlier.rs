//! When an endpoint is ejected, for how long, and when that is looked at. Pure.
//!
//! Source: Istio `outlierDetection` (istio-surface 2.3); Envoy's `DetectorImpl`. Not here: who is
//! ejected now (`ejection`).

use std::time::Duration;

use tokio::time::Instant;

use crate::model::OutlierDetection;

/// Envoy's `max_ejection_time`, where the base is not longer.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EjectionReason {
    /// `consecutive5xxErrors`.
    Consecutive5xx,
    /// `consecutiveGatewayErrors`.
    ConsecutiveGateway,
    /// `consecutiveLocalOriginFailures`.
    ConsecutiveLocal,
}

impl EjectionReason {
    /// Envoy's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway_failure",
            Self::ConsecutiveLocal => "consecutive_local_origin_failure",
        }
    }
}

/// What the end of a request says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is well.
    Fine,
    /// It answered with an error that counts.
    Error {
        /// 502, 503 or 504.
        gateway: bool,
    },
    /// It did not answer, and that is counted apart.
    Local,
}

/// What an answer counts as: with `error_codes`, just these are errors.
pub(super) fn answered(status: u16, policy: &OutlierDetection) -> Outcome {
    let is_error = match &*policy.error_codes {
        [] => (500..600).contains(&status),
        codes => codes.contains(&status),
    };
    match is_error {
        true => Outcome::Error { gateway: (502..=504).contains(&status) },
        false => Outcome::Fine,
    }
}

/// What no answer counts as: as 503 or 504, which are gateway errors both, whatever `error_codes`
/// says, or apart.
pub(super) fn unanswered(policy: &OutlierDetection) -> Outcome {
    match policy.split {
        true => Outcome::Local,
        false => Outcome::Error { gateway: true },
    }
}

/// Errors in a row: any, and of gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streak {
    pub(super) errors: u32,
    pub(super) gateway: u32,
}

impl Streak {
    /// With one more error.
    pub(super) fn error(self, gateway: bool) -> Self {
        Self {
            errors: self.errors.saturating_add(1),
            gateway: if gateway { self.gateway.saturating_add(1) } else { 0 },
        }
    }

    /// Whether that is enough. Gateway errors are looked at first, as Envoy does.
    pub(super) fn verdict(self, policy: &OutlierDetection) -> Option<EjectionReason> {
        if reached(self.gateway, policy.consecutive_gateway) {
            Some(EjectionReason::ConsecutiveGateway)
        } else if reached(self.errors, policy.consecutive_5xx) {
            Some(EjectionReason::Consecutive5xx)
        } else {
            None
        }
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        let errors = u32::try_from(bits >> 32).unwrap_or(u32::MAX);
        Self { errors, gateway: u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX) }
    }

    /// 0 for no error.
    pub(super) fn bits(self) -> u64 {
        u64::from(self.errors) << 32 | u64::from(self.gateway)
    }
}

/// Whether a count has come to a threshold; 0 is none.
pub(super) fn reached(count: u32, threshold: u32) -> bool {
    threshold != 0 && count >= threshold
}

/// How many of `hosts` may be ejected at one moment: rounded down, but one at least.
pub(super) fn most_ejected(hosts: usize, percent: u32) -> usize {
    let share = hosts as u128 * u128::from(percent.min(100)) / 100;
    usize::try_from(share).unwrap_or(usize::MAX).max(1)
}

/// Whether so few are healthy that all are used again (`minHealthPercent`).
pub(super) fn is_panic(hosts: usize, ejected: usize, min_health_percent: u32) -> bool {
    let healthy = hosts.saturating_sub(ejected) as u128;
    healthy * 100 < hosts as u128 * u128::from(min_health_percent)
}

/// How long an ejection lasts at least: the base times `times`, never above 300 s or the base.
pub(super) fn ejection_time(base: Duration, times: u32) -> Duration {
    base.saturating_mul(times).min(base.max(MAX_EJECTION))
}

/// The multiplier of an ejection after one with `times`, of which `ticks` healthy ones have passed
/// since its end. It grows no further once the time is at its cap, or it would take as long to
/// fall.
pub(super) fn next_times(times: u32, ticks: u64, base: Duration) -> u32 {
    let left = decayed(times, ticks);
    let cap = base.max(MAX_EJECTION).saturating_add(base);
    if base.saturating_mul(left) < cap { left.saturating_add(1) } else { left.max(1) }
}

/// A multiplier falls by one at each tick that finds its endpoint healthy.
pub(super) fn decayed(times: u32, ticks: u64) -> u32 {
    times.saturating_sub(u32::try_from(ticks).unwrap_or(u32::MAX))
}

/// The moments at which ejected endpoints are looked at: each `interval` after `started`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    pub(super) started: Instant,
    pub(super) interval: Duration,
}

impl Ticks {
    /// The first tick at or after `at`.
    pub(super) fn from(self, at: Instant) -> Instant {
        let interval = self.interval.as_nanos().max(1);
        let passed = at.saturating_duration_since(self.started).as_nanos();
        let number = passed.div_ceil(interval).max(1);
        let wait = number.saturating_mul(interval).saturating_sub(passed);
        later(at, duration(wait))
    }

    /// How many ticks there are after `after` and not after `until`.
    pub(super) fn between(self, after: Instant, until: Instant) -> u64 {
        let number = |at: Instant| {
            let passed = at.saturating_duration_since(self.started).as_nanos();
            passed / self.interval.as_nanos().max(1)
        };
        u64::try_from(number(until).saturating_sub(number(after))).unwrap_or(u64::MAX)
    }
}

/// `at + wait`, or as late as the clock goes in thirty years where that is too much.
pub(super) fn later(at: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);
    at.checked_add(wait.min(FAR)).unwrap_or(at)
}

fn duration(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos % SECOND).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_answers_count_as() {
        let policy = OutlierDetection::default();
        let error = |gateway| Outcome::Error { gateway };
        for (status, expected) in [
            (200, Outcome::Fine),
            (499, Outcome::Fine),
            (500, error(false)),
            (502, error(true)),
            (504, error(true)),
            (505, error(false)),
            (600, Outcome::Fine),
        ] {
            assert_eq!(answered(status, &policy), expected, "{status}");
        }
        let named = OutlierDetection { error_codes: [429, 503].into(), ..policy.clone() };
        assert_eq!(answered(429, &named), error(false));
        assert_eq!(answered(503, &named), error(true));
        assert_eq!(answered(500, &named), Outcome::Fine);
        assert_eq!(unanswered(&named), error(true));
        assert_eq!(unanswered(&OutlierDetection { split: true, ..policy }), Outcome::Local);
    }

    #[test]
    fn streaks_reach_their_thresholds() {
        let policy =
            OutlierDetection { consecutive_5xx: 3, consecutive_gateway: 2, ..Default::default() };
        let streak = Streak::default().error(true).error(false);
        assert_eq!((streak.errors, streak.gateway, streak.verdict(&policy)), (2, 0, None));
        assert_eq!(streak.error(true).verdict(&policy), Some(EjectionReason::Consecutive5xx));
        let gateway = Streak::default().error(true).error(true);
        assert_eq!(gateway.verdict(&policy), Some(EjectionReason::ConsecutiveGateway));
        let never = OutlierDetection { consecutive_5xx: 0, ..Default::default() };
        assert_eq!(gateway.verdict(&never), None);
        let full = Streak { errors: u32::MAX, gateway: u32::MAX };
        assert_eq!(full.error(true), full);
        assert_eq!(Streak::from_bits(gateway.error(false).bits()), gateway.error(false));
    }

    #[test]
    fn how_many_may_go() {
        for (hosts, percent, most) in
            [(3, 10, 1), (19, 10, 1), (20, 10, 2), (3, 100, 3), (3, 200, 3), (2, 0, 1)]
        {
            assert_eq!(most_ejected(hosts, percent), most, "{hosts} {percent}");
        }
    }

    #[test]
    fn panic_is_below_the_percentage() {
        for (hosts, ejected, percent, expected) in [
            (2, 1, 50, false),
            (2, 1, 51, true),
            (2, 2, 0, false),
            (2, 2, 1, true),
            (0, 0, 50, false),
        ] {
            assert_eq!(is_panic(hosts, ejected, percent), expected, "{hosts} {ejected} {percent}");
        }
    }

    #[test]
    fn ejections_grow_longer_to_a_cap_and_shorter_with_health() {
        let base = Duration::from_secs(30);
        let mut times = 0;
        let mut lengths = Vec::new();
        for _ in 0..14 {
            times = next_times(times, 0, base);
            lengths.push(ejection_time(base, times).as_secs());
        }
        assert_eq!(lengths, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300, 300]);
        assert_eq!(times, 11, "Envoy's cap: below (300 + 30) / 30, and one more");
        assert_eq!(next_times(3, 2, base), 2);
        assert_eq!(next_times(3, 9, base), 1);
        let long = Duration::from_secs(1_000);
        assert_eq!(ejection_time(long, 5), long);
    }

    #[test]
    fn ticks_are_counted_from_the_start() {
        let started = Instant::now();
        let ticks = Ticks { started, interval: Duration::from_secs(10) };
        let at = |seconds| started + Duration::from_secs(seconds);
        for (after, tick) in [(0, 10), (1, 10), (10, 10), (11, 20), (35, 40)] {
            assert_eq!(ticks.from(at(after)), at(tick), "{after}");
        }
        for (after, until, count) in [(10, 10, 0), (10, 19, 0), (10, 20, 1), (0, 35, 3), (35, 0, 0)]
        {
            assert_eq!(ticks.between(at(after), at(until)), count, "{after} to {until}");
        }
        let endless = Ticks { started, interval: Duration::MAX };
        assert!(endless.from(at(1)) > at(1_000_000));
        assert_eq!(endless.between(at(1), at(1_000_000)), 0);
    }

    proptest! {
        /// A tick is a multiple of the interval, the first that is not before.
        #[test]
        fn a_tick_is_the_next(interval in 1_u64..100_000, at in 0_u64..10_000_000) {
            let started = Instant::now();
            let ticks = Ticks { started, interval: Duration::from_millis(interval) };
            let at = started + Duration::from_millis(at);
            let tick = ticks.from(at);
            let passed = tick.duration_since(started).as_nanos();
            prop_assert_eq!(passed % ticks.interval.as_nanos(), 0);
            prop_assert!(tick >= at && tick > started);
            prop_assert!(tick == started + ticks.interval || tick.duration_since(at) < ticks.interval);
        }
    }
}
