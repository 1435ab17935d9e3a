//! How much of its share an endpoint gets that has just come. Pure.
//!
//! Source: Istio `loadBalancer.warmup`; Envoy's slow start mode.

use tokio::time::Instant;

use crate::model::Warmup;

/// The weight, in [0, 1], of an endpoint that has been there since `since` (`None`: from the
/// beginning): max(minimum, (age / duration)^(1 / aggression)) while it warms up, then 1.
pub(super) fn weight(warmup: &Warmup, since: Option<Instant>, now: Instant) -> f64 {
    let Some(since) = since else { return 1.0 };
    let age = now.saturating_duration_since(since);
    if age >= warmup.duration {
        return 1.0;
    }
    let grown = age.div_duration_f64(warmup.duration).powf(1.0 / warmup.aggression.max(1.0));
    grown.max(warmup.minimum_percent / 100.0).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn warmup(seconds: u64, minimum_percent: f64, aggression: f64) -> Warmup {
        Warmup { duration: Duration::from_secs(seconds), minimum_percent, aggression }
    }

    #[test]
    fn weights_grow_from_the_minimum_to_all() {
        let start = Instant::now();
        let at = |warmup: &Warmup, seconds| {
            let found = weight(warmup, Some(start), start + Duration::from_secs(seconds));
            (found * 1_000.0).round() / 1_000.0
        };
        let linear = warmup(100, 10.0, 1.0);
        assert_eq!(
            [0, 5, 10, 50, 99, 100, 900].map(|s| at(&linear, s)),
            [0.1, 0.1, 0.1, 0.5, 0.99, 1.0, 1.0]
        );
        let eager = warmup(100, 10.0, 2.0);
        assert_eq!([0, 1, 25, 81].map(|s| at(&eager, s)), [0.1, 0.1, 0.5, 0.9]);
        assert_eq!(weight(&linear, None, start), 1.0);
        assert_eq!(at(&warmup(0, 0.0, 1.0), 0), 1.0, "no window, no warm-up");
    }

    proptest! {
        #[test]
        fn weights_never_shrink(
            seconds in 1_u64..1_000, minimum in 0.0..100.0_f64, aggression in 1.0..10.0_f64,
            ages in (0_u64..2_000_000, 0_u64..2_000_000),
        ) {
            let warmup = warmup(seconds, minimum, aggression);
            let start = Instant::now();
            let at = |age| weight(&warmup, Some(start), start + Duration::from_millis(age));
            let (young, old) = (at(ages.0.min(ages.1)), at(ages.0.max(ages.1)));
            prop_assert!(young <= old && old <= 1.0 && young >= minimum / 100.0 - 1e-9);
        }
    }
}
