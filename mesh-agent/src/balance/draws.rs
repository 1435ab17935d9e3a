//! Random draws for decisions that need no secrecy: splits, two choices, back-off, request ids.
//!
//! Not a source of secrets. Invariant: one seed gives one sequence, so a test repeats exactly.
//! Source: SplitMix64 (Steele, Lea, Flood 2014; public-domain reference by Vigna).

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::model::WeightedDestination;

/// A sequence of draws, one per worker.
#[derive(Debug)]
pub struct Draws(Cell<u64>);

impl Draws {
    /// The sequence of this seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Cell::new(seed))
    }

    /// A sequence that no other process or worker has: seeded by the standard library's hash keys,
    /// which come from the operating system.
    pub fn unpredictable() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    /// The next 64 random bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Turns 64 random bits into a number below `bound` (0 for a bound of 0), evenly: the bias of the
/// multiplication is below `bound / 2^64` (Lemire 2019).
pub fn share(draw: u64, bound: u64) -> u64 {
    u64::try_from((u128::from(draw) * u128::from(bound)) >> 64).unwrap_or(0)
}

/// Chooses a destination by weight; `total`: the sum of the weights. `None` only if there is none.
pub fn by_weight(
    destinations: &[WeightedDestination],
    total: u32,
    draw: u64,
) -> Option<&WeightedDestination> {
    let mut at = share(draw, u64::from(total));
    for destination in destinations {
        let weight = u64::from(destination.weight);
        if at < weight {
            return Some(destination);
        }
        at -= weight;
    }
    // A single destination takes everything even with weight 0.
    destinations.first()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_matches_the_reference() {
        // First outputs of the reference implementation for seed 1234567.
        let draws = Draws::seeded(1_234_567);
        assert_eq!(draws.next(), 6_457_827_717_110_365_317);
        assert_eq!(draws.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn shares_cover_their_range_evenly() {
        let draws = Draws::seeded(7);
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            counts[usize::try_from(share(draws.next(), 10)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(share(u64::MAX, 0), 0);
        assert_eq!(share(u64::MAX, 3), 2);
    }
}
