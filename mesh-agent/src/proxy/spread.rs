//! Which worker serves an accepted connection. Pure.
//!
//! A source's connections go to its home worker, which holds its tunnels and pools; only when that
//! one is clearly busier than the others does the least loaded one take over, so that a hot pod
//! uses every core without every worker keeping connections for every pod. A tunnel from another
//! node goes to the least loaded worker at once: it carries many connections, and shares nothing.

/// Connections that the home worker may be ahead before the mean counts: below it, sharing pools
/// is worth more than evenness.
const SLACK: usize = 4;

/// Picks the worker: `loads` are open connections by worker, `home` the source's own one.
pub(super) fn choose(loads: impl ExactSizeIterator<Item = usize> + Clone, home: usize) -> usize {
    let count = loads.len().max(1);
    let home = home % count;
    let total: usize = loads.clone().sum();
    let own = loads.clone().nth(home).unwrap_or(0);
    // own > 1.5 * mean, in integers.
    if own < SLACK || own * 2 * count <= total * 3 {
        return home;
    }
    least(loads, home)
}

/// The worker with the fewest open connections, `home` among equals.
pub(super) fn least(loads: impl Iterator<Item = usize>, home: usize) -> usize {
    loads.enumerate().min_by_key(|(index, load)| (*load, *index != home)).map_or(0, |(i, _)| i)
}

/// The home worker of a workload: stable for its UID.
pub fn home(uid: &str, workers: usize) -> usize {
    use std::hash::{BuildHasher, BuildHasherDefault};
    let hash = BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(uid);
    usize::try_from(hash >> 32).unwrap_or(0) % workers.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_source_stays_at_home() {
        assert_eq!(choose([3, 0, 0, 0].into_iter(), 0), 0);
        assert_eq!(choose([10, 9, 8, 9].into_iter(), 0), 0);
    }

    #[test]
    fn few_tunnels_use_as_many_workers() {
        let mut loads = vec![0_usize; 4];
        let workers = [2, 2, 2, 2].map(|home| {
            let worker = least(loads.iter().copied(), home);
            loads[worker] += 1;
            worker
        });
        assert_eq!(workers[0], 2, "at home first");
        assert_eq!(loads, [1, 1, 1, 1]);
    }

    #[test]
    fn a_hot_source_uses_every_worker() {
        let mut loads = vec![0_usize; 4];
        for _ in 0..400 {
            let worker = choose(loads.iter().copied(), 1);
            loads[worker] += 1;
        }
        assert!(loads.iter().all(|load| (50..=160).contains(load)), "{loads:?}");
    }
}
