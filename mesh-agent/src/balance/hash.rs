//! Hashes of keys, and the choice of a version by key. Pure.
//!
//! Invariant: the same bytes have the same hash in every process, on every node, architecture and
//! version of the agent: a key would otherwise change its endpoint with an upgrade. So nothing here
//! depends on the standard library's hashers or on the platform's `ln`.
//! Source: XXH64 (xxHash specification 0.8, seed 0), which Envoy hashes its keys with; weighted
//! rendezvous hashing (Schindelhauer and Schomaker 2005, logarithmic method).

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;

/// A key's hash: XXH64 with seed 0.
pub fn hash_of(key: &[u8]) -> u64 {
    seeded_hash(key, 0)
}

/// XXH64.
pub(super) fn seeded_hash(key: &[u8], seed: u64) -> u64 {
    let (stripes, rest) = key.as_chunks::<32>();
    let mut hash = match stripes {
        [] => seed.wrapping_add(P5),
        _ => long(stripes, seed),
    };
    hash = hash.wrapping_add(key.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
        hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(P5);
        hash = hash.rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn long(stripes: &[[u8; 32]], seed: u64) -> u64 {
    let mut lanes = [
        seed.wrapping_add(P1).wrapping_add(P2),
        seed.wrapping_add(P2),
        seed,
        seed.wrapping_sub(P1),
    ];
    for stripe in stripes {
        for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }
    let mut hash = 0_u64;
    for (lane, by) in lanes.iter().zip([1, 7, 12, 18]) {
        hash = hash.wrapping_add(lane.rotate_left(by));
    }
    for lane in lanes {
        hash = (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4);
    }
    hash
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

/// A hash of two hashes; SplitMix64's finalizer on both, so that neither cancels the other.
pub(super) fn mix(one: u64, other: u64) -> u64 {
    finalize(one ^ finalize(other.wrapping_add(P1)))
}

fn finalize(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Chooses a version by key: the index of one of `versions`, each given as the hash of its stable
/// name and its weight. `None`: all weights are 0.
///
/// Weighted rendezvous hashing. A key and a version together give a number u in (0, 1), so e = -ln
/// u is exponentially distributed; the version with the least e / weight wins. Of exponentials the
/// one with rate w is the least with probability w over the sum of all: each version gets its share
/// of the keys. Whether i or j is ahead depends on the ratio of their weights alone, so a key goes
/// from i to j only if j's weight has risen relative to i's. From 90/10 to 80/20 the second
/// version's share grows from 10 to 20 %: just those 10 % of the keys go from the first to the
/// second, none the other way, and all others stay.
pub fn choose_version(hash: u64, versions: impl Iterator<Item = (u64, u32)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, (id, weight)) in versions.enumerate() {
        if weight == 0 {
            continue;
        }
        let cost = minus_ln(unit(mix(hash, id))) / f64::from(weight);
        if best.is_none_or(|(_, least)| cost < least) {
            best = Some((at, cost));
        }
    }
    best.map(|(at, _)| at)
}

/// 64 random bits as a number in (0, 1), never an end.
pub(super) fn unit(bits: u64) -> f64 {
    // 52 bits: with the half it is 53, which the mantissa holds.
    ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// -ln(x) for x in (0, 1), from operations that IEEE 754 defines to the last bit. Good to about
/// 1e-15.
fn minus_ln(x: f64) -> f64 {
    let bits = x.to_bits();
    // Normal: not below 2^-53. x = mantissa * 2^exponent with the mantissa in [1, 2).
    let mut exponent = i32::try_from(bits >> 52 & 0x7ff).unwrap_or(0) - 1_023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1_023 << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh s, by its series; s is at most 0.172, so the 12th term is below 1e-18.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for term in (0..12_i32).rev() {
        sum = sum * square + 1.0 / f64::from(2 * term + 1);
    }
    -(f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Draws;
    use super::*;

    #[test]
    fn xxh64_is_the_references() {
        for (key, seed, expected) in [
            (&b""[..], 0, 0xef46_db37_51d8_e999),
            (b"", 2_654_435_761, 0xac75_fda2_929b_17ef),
            (b"a", 0, 0xd24e_c4f1_a98c_6e5b),
            (b"abc", 0, 0x44bc_2cf5_ad77_0999),
            (b"Nobody inspects the spammish repetition", 0, 0xfbce_a83c_8a37_8bf1),
        ] {
            assert_eq!(seeded_hash(key, seed), expected, "{key:?}");
        }
    }

    #[test]
    fn the_logarithm_is_one() {
        let draws = Draws::seeded(5);
        for _ in 0..10_000 {
            let x = unit(draws.next());
            assert!((minus_ln(x) + x.ln()).abs() < 1e-14 * (1.0 + x.ln().abs()), "{x}");
        }
        for x in [unit(0), unit(u64::MAX), 0.5, std::f64::consts::FRAC_1_SQRT_2] {
            assert!(x > 0.0 && x < 1.0 && (minus_ln(x) + x.ln()).abs() < 1e-13, "{x}");
        }
    }

    /// Which version each of `keys` keys has.
    fn chosen(weights: &[u32], keys: u64) -> Vec<usize> {
        let ids: Vec<u64> = (0..weights.len()).map(|at| hash_of(&[b'v', at as u8])).collect();
        let versions = || ids.iter().copied().zip(weights.iter().copied());
        (0..keys)
            .map(|key| choose_version(hash_of(&key.to_be_bytes()), versions()).unwrap())
            .collect()
    }

    #[test]
    fn just_the_keys_that_must_move_do() {
        let (before, after) = (chosen(&[90, 10], 100_000), chosen(&[80, 20], 100_000));
        let second = |found: &[usize]| found.iter().filter(|at| **at == 1).count();
        // Five standard deviations of a binomial(100000, 0.2) are 633.
        assert!(second(&before).abs_diff(10_000) < 633, "{}", second(&before));
        assert!(second(&after).abs_diff(20_000) < 633, "{}", second(&after));
        assert!(before.iter().zip(&after).all(|(old, new)| old <= new), "one went back");
    }

    #[test]
    fn a_choice_is_for_ever() {
        // Written down: a change of these numbers moves users between versions.
        assert_eq!(chosen(&[1, 1], 16), [1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0]);
    }

    #[test]
    fn no_weight_no_choice() {
        assert_eq!(choose_version(1, [(1, 0), (2, 0)].into_iter()), None);
        assert_eq!(choose_version(1, std::iter::empty()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Shares are as the weights, and a weight of 0 gets nothing.
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(0_u32..100, 2..6)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let total: u32 = weights.iter().sum();
            let found = chosen(&weights, 5_000);
            for (at, weight) in weights.iter().enumerate() {
                let share = f64::from(*weight) / f64::from(total);
                let count = found.iter().filter(|found| **found == at).count() as f64;
                // Six standard deviations.
                let room = 6.0 * (5_000.0 * share * (1.0 - share)).sqrt();
                prop_assert!((count - 5_000.0 * share).abs() <= room, "{at}: {count} of {share}");
            }
        }

        /// A key goes from i to j only where j's weight has risen relative to i's.
        #[test]
        fn keys_follow_risen_weights(
            weights in proptest::collection::vec((0_u32..50, 0_u32..50), 2..5)
        ) {
            let (old, new): (Vec<u32>, Vec<u32>) = weights.into_iter().unzip();
            prop_assume!(old.iter().any(|w| *w > 0) && new.iter().any(|w| *w > 0));
            for (i, j) in chosen(&old, 500).into_iter().zip(chosen(&new, 500)) {
                let rose = u64::from(new[j]) * u64::from(old[i]) > u64::from(old[j]) * u64::from(new[i]);
                prop_assert!(i == j || rose, "from {i} to {j}: {old:?} {new:?}");
            }
        }
    }
}
