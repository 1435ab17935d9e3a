//! The decision among candidates: no clock, no state of its own. Pure.
//!
//! Source: Istio `LoadBalancerSettings.simple`; Envoy's least request with two choices.

use super::draws::{Draws, share};
use super::hash::unit;
use crate::model::LoadBalancer;

/// How often a candidate is drawn anew for its low weight; the last is taken. Where all weigh the
/// default minimum of a tenth, that is one choice in thirty, and as even as the others.
const REDRAWS: u32 = 32;

/// Chooses one of `len` candidates; `None` if there is none.
///
/// `load` tells a candidate's active requests, `turn` is taken once for round robin only, `draw` is
/// 64 random bits. `Passthrough` has no candidates (the caller dials what its client dialled); if
/// it is asked for all the same, it is a random choice.
pub fn choose(
    policy: LoadBalancer,
    len: usize,
    load: impl Fn(usize) -> u32,
    turn: impl FnOnce() -> usize,
    draw: u64,
) -> Option<usize> {
    match (policy, len) {
        (_, 0) => None,
        (LoadBalancer::RoundRobin, _) => Some(turn() % len),
        (_, 1) => Some(0),
        (LoadBalancer::LeastRequest, _) => Some(least_of_two(len, load, draw)),
        (
            LoadBalancer::Random
            | LoadBalancer::Passthrough
            | LoadBalancer::RingHash { .. }
            | LoadBalancer::Maglev { .. },
            _,
        ) => Some(index(draw, len)),
    }
}

/// Draws two different candidates and takes the less busy one, the first drawn if they are equal.
fn least_of_two(len: usize, load: impl Fn(usize) -> u32, draw: u64) -> usize {
    let first = index(draw, len);
    // Independent of the first: the high bits decided that one.
    let other = index(draw.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(32), len - 1);
    let second = if other >= first { other + 1 } else { other };
    if load(second) < load(first) { second } else { first }
}

/// Chooses one of `len` candidates of which some weigh less, as they warm up: of idle ones each
/// gets its share by weight, in [0, 1]. Balancers that do not weigh choose as in [`choose`].
///
/// A candidate is drawn and taken with the probability of its weight, else another is drawn.
pub(super) fn choose_weighted(
    policy: LoadBalancer,
    len: usize,
    load: impl Fn(usize) -> u32,
    turn: impl Fn() -> usize,
    draw: u64,
    weight: impl Fn(usize) -> f64,
) -> Option<usize> {
    if len == 0 {
        return None;
    }
    let draws = Draws::seeded(draw);
    let accepted = |drawn: &dyn Fn() -> usize| {
        let mut at = drawn();
        for _ in 1..REDRAWS {
            if unit(draws.next()) < weight(at) {
                break;
            }
            at = drawn();
        }
        at
    };
    let random = || index(draws.next(), len);
    match policy {
        LoadBalancer::RoundRobin => Some(accepted(&|| turn() % len)),
        LoadBalancer::LeastRequest => {
            let (first, second) = (accepted(&random), accepted(&random));
            // Even with one more it would be no busier for its weight than the first is now. With
            // equal weights: less busy.
            let after = (f64::from(load(second)) + 1.0) * weight(first);
            let wins = second != first && after <= f64::from(load(first)) * weight(second);
            Some(if wins { second } else { first })
        }
        LoadBalancer::Random
        | LoadBalancer::Passthrough
        | LoadBalancer::RingHash { .. }
        | LoadBalancer::Maglev { .. } => choose(policy, len, load, turn, draw),
    }
}

fn index(draw: u64, len: usize) -> usize {
    usize::try_from(share(draw, len as u64)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(policy: LoadBalancer, loads: &[u32], times: u32) -> Vec<u32> {
        let draws = Draws::seeded(42);
        let mut counts = vec![0; loads.len()];
        for turn in 0..times as usize {
            let chosen = choose(policy, loads.len(), |i| loads[i], || turn, draws.next()).unwrap();
            counts[chosen] += 1;
        }
        counts
    }

    #[test]
    fn nobody_to_choose() {
        for policy in [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random] {
            assert_eq!(choose(policy, 0, |_| 0, || 0, 1), None);
        }
    }

    #[test]
    fn round_robin_is_exact() {
        assert_eq!(counts(LoadBalancer::RoundRobin, &[9, 0, 5], 300), [100, 100, 100]);
    }

    #[test]
    fn random_and_idle_least_request_are_even() {
        for policy in [LoadBalancer::Random, LoadBalancer::LeastRequest] {
            let counts = counts(policy, &[0; 4], 40_000);
            // Five standard deviations of a binomial(40000, 1/4) are 433.
            assert!(counts.iter().all(|count| count.abs_diff(10_000) < 433), "{counts:?}");
        }
    }

    #[test]
    fn two_choices_never_take_the_only_busy_one() {
        assert_eq!(counts(LoadBalancer::LeastRequest, &[0, 7, 0, 0], 1_000)[1], 0);
        assert_eq!(counts(LoadBalancer::LeastRequest, &[3, 7], 1_000), [1_000, 0]);
    }

    #[test]
    fn the_busiest_loses_to_everyone_and_the_idlest_wins_twice_its_share() {
        let counts = counts(LoadBalancer::LeastRequest, &[0, 1, 2, 3], 60_000);
        // Pairs of four: the idlest is in half of them and always wins, the busiest never.
        assert!(counts[0].abs_diff(30_000) < 700 && counts[1].abs_diff(20_000) < 700, "{counts:?}");
        assert_eq!(counts[3], 0);
    }

    fn weighted(policy: LoadBalancer, loads: &[u32], weights: &[f64]) -> Vec<u32> {
        let draws = Draws::seeded(42);
        let turns = std::cell::Cell::new(0);
        let turn = || turns.replace(turns.get() + 1);
        let mut counts = vec![0; loads.len()];
        for _ in 0..60_000 {
            let (load, weight) = (|at: usize| loads[at], |at: usize| weights[at]);
            let len = loads.len();
            counts[choose_weighted(policy, len, load, turn, draws.next(), weight).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn idle_candidates_get_their_share_by_weight() {
        for policy in [LoadBalancer::RoundRobin, LoadBalancer::LeastRequest] {
            let counts = weighted(policy, &[0; 3], &[1.0, 0.5, 0.1]);
            // Of 1.6: five standard deviations of a binomial(60000, 0.625) are 593.
            for (count, expected) in counts.iter().zip([37_500_u32, 18_750, 3_750]) {
                assert!(count.abs_diff(expected) < 593, "{policy:?} {counts:?}");
            }
        }
    }

    #[test]
    fn a_warming_candidate_that_is_busy_for_its_weight_waits() {
        let counts = weighted(LoadBalancer::LeastRequest, &[4, 4], &[1.0, 0.1]);
        assert!(counts[1] < 1_000, "{counts:?}");
        let counts = weighted(LoadBalancer::LeastRequest, &[30, 0], &[1.0, 0.1]);
        assert!(counts[1] > 6_000, "{counts:?}");
        // Equal weights: the less busy of two different draws.
        let counts = weighted(LoadBalancer::LeastRequest, &[5, 4], &[0.5, 0.5]);
        assert!(counts[0].abs_diff(15_000) < 600, "{counts:?}");
    }

    #[test]
    fn no_weight_at_all_is_a_choice_all_the_same() {
        let counts = weighted(LoadBalancer::RoundRobin, &[0; 2], &[0.0; 2]);
        assert_eq!(counts.iter().sum::<u32>(), 60_000);
        let nobody = choose_weighted(LoadBalancer::RoundRobin, 0, |_| 0, || 0, 1, |_| 1.0);
        assert_eq!(nobody, None);
    }
}
