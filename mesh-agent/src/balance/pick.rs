//! The decision among candidates: pure, no clock, no state of its own.
//!
//! Source: Istio `LoadBalancerSettings.simple`; Envoy's least request with two choices.

use super::draws::share;
use crate::model::LoadBalancer;

/// Chooses one of `len` candidates; `None` if there is none.
///
/// `load` tells a candidate's active requests, `turn` is taken once for round robin only, `draw` is
/// 64 random bits. `Passthrough` has no candidates (the caller dials what its client dialled); if it
/// is asked for all the same, it is a random choice.
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
        (LoadBalancer::Random | LoadBalancer::Passthrough, _) => Some(index(draw, len)),
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

fn index(draw: u64, len: usize) -> usize {
    usize::try_from(share(draw, len as u64)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Draws;
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
}
