//! Latencies in a fixed amount of memory: exact up to 64 microseconds, then within 1/64.
//!
//! Pure. Each power of two is cut into 64 equal buckets, as HdrHistogram does.

use std::time::Duration;

/// Buckets in each power of two.
const SUB: u64 = 64;
const SUB_BITS: u32 = SUB.trailing_zeros();

/// Enough for every `u64` of microseconds.
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get_mut(index(micros)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(micros);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The latency in microseconds that `per_mille` of a thousand recorded ones do not exceed
    /// (upper end of its bucket); 0 if nothing was recorded.
    pub(crate) fn quantile(&self, per_mille: u64) -> u64 {
        let wanted = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper(bucket as u64).min(self.max);
            }
        }
        0
    }

    /// Largest recorded latency in microseconds.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }
}

fn index(micros: u64) -> usize {
    let exponent = micros.checked_ilog2().unwrap_or(0).saturating_sub(SUB_BITS);
    // The high bits, SUB..2*SUB for all but the first power.
    let within = micros >> exponent;
    let index = u64::from(exponent) * SUB + within;
    // Under BUCKETS, which is a small number.
    index as usize
}

/// Largest value that falls into a bucket.
fn upper(bucket: u64) -> u64 {
    if bucket < 2 * SUB {
        return bucket;
    }
    let exponent = bucket / SUB - 1;
    let within = bucket % SUB + SUB;
    (((u128::from(within) + 1) << exponent) - 1).min(u64::MAX.into()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_that_ends_at_or_just_above_it() {
        let mut values: Vec<u64> = (0..300).collect();
        values.extend((7..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]));
        values.push(u64::MAX);
        for value in values {
            let end = upper(index(value) as u64);
            assert!(end >= value, "{value} ends at {end}");
            assert!(end - value <= value / 64, "{value} ends at {end}");
            assert!(index(value) < BUCKETS);
        }
    }

    #[test]
    fn quantiles_of_a_thousand() {
        let mut left = Histogram::new();
        let mut right = Histogram::new();
        (1..=500).for_each(|micros| left.record(Duration::from_micros(micros)));
        (501..=1000).for_each(|micros| right.record(Duration::from_micros(micros)));
        left.merge(&right);
        let near = |per_mille, exact: u64| {
            let got = left.quantile(per_mille);
            assert!(got >= exact && got - exact <= exact / 64, "{got} for {exact}");
        };
        near(500, 500);
        near(990, 990);
        near(999, 999);
        assert_eq!(left.max(), 1000);
    }

    #[test]
    fn nothing_recorded_is_zero() {
        assert_eq!(Histogram::new().quantile(500), 0);
    }
}
