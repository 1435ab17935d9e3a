//! How load goes over groups of endpoints of which some are ejected. Pure.
//!
//! Source: Envoy's priority levels, over-provisioning factor, panic threshold and effective locality
//! weights (`LoadBalancerBase::recalculatePerPriorityState`), and its retry priority
//! `previous_priorities`.

use super::draws::share;
use super::outlier::is_panic;

/// Of a group this much more than its share of healthy endpoints is taken to be enough: 1.4, in
/// per cent (Envoy's `overprovisioning_factor`).
const OVERPROVISIONING: usize = 140;

/// A group's size, and how many of it are ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) hosts: usize,
    pub(super) ejected: usize,
}

/// What each group gets; relative, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loads {
    loads: Box<[u64]>,
    /// Whether all of a group are used, ejected or not.
    panic: Box<[bool]>,
}

impl Health {
    /// How much of its load a group can take, in per cent.
    fn available(self) -> u64 {
        let healthy = self.hosts.saturating_sub(self.ejected);
        let percent = healthy.saturating_mul(OVERPROVISIONING) / self.hosts.max(1);
        percent.min(100) as u64
    }

    fn is_panic(self, min_health_percent: u32) -> bool {
        is_panic(self.hosts, self.ejected, min_health_percent)
    }
}

impl Loads {
    /// One group after the other: each takes of what is left as much as it can; where all together
    /// cannot take everything, in proportion. In panic, which is only looked for then, a group's
    /// ejected endpoints are used too; if all are, they share by size.
    pub(super) fn by_priority(groups: &[Health], min_health_percent: u32) -> Self {
        let available: Vec<u64> = groups.iter().map(|group| group.available()).collect();
        let is_enough = available.iter().sum::<u64>() >= 100;
        let panic: Box<[bool]> =
            groups.iter().map(|group| !is_enough && group.is_panic(min_health_percent)).collect();
        let all_panic = !groups.is_empty() && panic.iter().all(|panic| *panic);
        let loads = match all_panic {
            true => groups.iter().map(|group| group.hosts as u64).collect(),
            false => in_order(&available),
        };
        Self { loads, panic }
    }

    /// Each group its weight, less what it cannot take.
    pub(super) fn by_weight(weights: &[u64], groups: &[Health], min_health_percent: u32) -> Self {
        let sum = |of: fn(&Health) -> usize| -> usize { groups.iter().map(of).sum() };
        let whole = Health { hosts: sum(|one| one.hosts), ejected: sum(|one| one.ejected) };
        let panic = whole.available() < 100 && whole.is_panic(min_health_percent);
        let loads = weights.iter().zip(groups).map(|(weight, group)| match panic {
            // Where all are used, localities count no more.
            true => group.hosts as u64,
            false => weight * group.available() / 100,
        });
        Self { loads: loads.collect(), panic: groups.iter().map(|_| panic).collect() }
    }

    /// Whether all of a group are used, ejected or not.
    pub(super) fn is_panic(&self, group: usize) -> bool {
        self.panic.get(group).copied().unwrap_or(false)
    }

    /// The group at a point, of 64 random or hashed bits. `None`: nobody can take anything.
    pub(super) fn at(&self, point: u64) -> Option<usize> {
        chosen(&self.loads, point)
    }
}

/// The group at a point once some have been tried (`left`): they get nothing while there is another
/// that can take something; `None`: there is none. Envoy leaves priorities alone, and not localities
/// that have shares (`weights`) of one.
pub(super) fn beside(
    weights: Option<&[u64]>,
    groups: &[Health],
    left: impl Fn(usize) -> bool,
    point: u64,
) -> Option<usize> {
    let available = |(at, group): (usize, &Health)| if left(at) { 0 } else { group.available() };
    let available: Vec<u64> = groups.iter().enumerate().map(available).collect();
    if available.iter().all(|percent| *percent == 0) {
        return None;
    }
    match weights {
        None => chosen(&in_order(&available), point),
        Some(weights) => {
            let loads = weights.iter().zip(&available).map(|(weight, percent)| weight * percent);
            chosen(&loads.collect::<Vec<_>>(), point)
        }
    }
}

/// Per cents for each group, 100 in all; the first gets them where nobody can take anything.
fn in_order(available: &[u64]) -> Box<[u64]> {
    let total = available.iter().sum::<u64>().min(100);
    let mut left = 100;
    let mut loads: Box<[u64]> = available
        .iter()
        .map(|percent| {
            let load = (percent * 100).checked_div(total).unwrap_or(0).min(left);
            left -= load;
            load
        })
        .collect();
    // What rounding has left over.
    let first = available.iter().position(|percent| *percent > 0).unwrap_or(0);
    if let Some(load) = loads.get_mut(first) {
        *load += left;
    }
    loads
}

fn chosen(loads: &[u64], point: u64) -> Option<usize> {
    let total: u64 = loads.iter().sum();
    let mut at = share(point, total);
    loads.iter().position(|load| {
        let is_here = at < *load;
        at = at.saturating_sub(*load);
        is_here
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn health(groups: &[(usize, usize)]) -> Vec<Health> {
        groups.iter().map(|(hosts, ejected)| Health { hosts: *hosts, ejected: *ejected }).collect()
    }

    fn loads(groups: &[(usize, usize)], min_health_percent: u32) -> Vec<u64> {
        Loads::by_priority(&health(groups), min_health_percent).loads.into_vec()
    }

    #[test]
    fn a_lower_priority_is_used_below_72_percent() {
        for (groups, expected) in [
            (&[(4, 0), (4, 0)][..], &[100, 0][..]),
            // 75 % healthy, times 1.4.
            (&[(4, 1), (4, 0)], &[100, 0]),
            (&[(4, 2), (4, 0)], &[70, 30]),
            (&[(4, 3), (4, 0)], &[35, 65]),
            (&[(4, 4), (4, 0)], &[0, 100]),
            (&[(4, 4), (4, 2), (1, 0)], &[0, 70, 30]),
            (&[(4, 4), (4, 4), (1, 0)], &[0, 0, 100]),
            // Envoy's documentation: 25 % and 25 % are 35 and 35 of 70.
            (&[(4, 3), (4, 3)], &[50, 50]),
            (&[(100, 99), (100, 80)], &[4, 96]),
            // Nobody at all: where it goes, there is nobody.
            (&[(4, 4), (4, 4)], &[100, 0]),
        ] {
            assert_eq!(loads(groups, 0), expected, "{groups:?}");
        }
    }

    #[test]
    fn panic_is_each_groups_own_and_only_if_all_together_are_too_few() {
        let panics = |groups: &[(usize, usize)]| {
            let loads = Loads::by_priority(&health(groups), 50);
            (0..groups.len()).map(|at| loads.is_panic(at)).collect::<Vec<_>>()
        };
        assert_eq!(panics(&[(4, 3), (4, 0)]), [false, false], "the second has room");
        assert_eq!(panics(&[(4, 3), (4, 2)]), [false, false], "35 and 70 are enough");
        assert_eq!(panics(&[(8, 7), (4, 2)]), [true, false], "17 and 70 are not");
        assert_eq!(panics(&[(4, 4), (4, 4)]), [true, true]);
        assert_eq!(loads(&[(4, 4), (12, 12)], 50), [4, 12], "by size");
    }

    #[test]
    fn weights_shrink_with_health() {
        let of = |groups: &[(usize, usize)], min_health_percent| {
            Loads::by_weight(&[80, 20], &health(groups), min_health_percent).loads.into_vec()
        };
        assert_eq!(of(&[(4, 0), (4, 0)], 0), [80, 20]);
        assert_eq!(of(&[(4, 1), (4, 0)], 0), [80, 20], "within the factor");
        assert_eq!(of(&[(4, 2), (4, 0)], 0), [56, 20]);
        assert_eq!(of(&[(4, 4), (4, 0)], 0), [0, 20], "the rest takes all");
        assert_eq!(of(&[(4, 4), (2, 2)], 50), [4, 2], "in panic by size");
        let none = Loads::by_weight(&[80, 20], &health(&[(4, 4), (4, 4)]), 0);
        assert_eq!(none.at(7), None);
        assert_eq!(Loads::by_weight(&[], &[], 0).at(7), None);
    }

    #[test]
    fn what_was_tried_is_left_while_there_is_another() {
        let groups = health(&[(2, 0), (2, 0), (2, 0)]);
        assert_eq!(beside(None, &groups, |at| at == 0, 7), Some(1));
        assert_eq!(beside(None, &groups, |at| at < 2, 7), Some(2));
        assert_eq!(beside(None, &groups, |_| true, 7), None);
        assert_eq!(beside(Some(&[80, 15, 5]), &groups, |at| at == 0, 7), Some(1));
        assert_eq!(beside(Some(&[80, 15, 5]), &groups, |at| at == 0, u64::MAX), Some(2));
        let ejected = health(&[(2, 0), (2, 2), (2, 0)]);
        assert_eq!(beside(None, &ejected, |at| at == 0, 7), Some(2));
        assert_eq!(beside(None, &health(&[(2, 0), (2, 2)]), |at| at == 0, 7), None);
    }

    fn groups() -> impl Strategy<Value = Vec<Health>> {
        let one = (1_usize..50, 0_usize..=50);
        let one = one.prop_map(|(hosts, out)| Health { hosts, ejected: out.min(hosts) });
        proptest::collection::vec(one, 1..6)
    }

    proptest! {
        /// 100 % are given away, to no group more than it can take while others can take the rest,
        /// and to none behind one that is not used up.
        #[test]
        fn loads_are_whole_and_in_order(groups in groups()) {
            let loads = Loads::by_priority(&groups, 0).loads;
            prop_assert_eq!(loads.iter().sum::<u64>(), 100);
            let can: Vec<u64> = groups.iter().map(|group| group.available()).collect();
            if can.iter().sum::<u64>() >= 100 {
                let mut left = 100;
                for (load, can) in loads.iter().zip(&can) {
                    prop_assert_eq!(*load, left.min(*can));
                    left -= load;
                }
            } else if can.iter().any(|can| *can > 0) {
                prop_assert!(loads.iter().zip(&can).all(|(load, can)| *can > 0 || *load == 0));
            }
        }

        /// A group that recovers takes load from those behind it only.
        #[test]
        fn recovery_moves_load_forward(groups in groups(), at in any::<prop::sample::Index>()) {
            let at = at.index(groups.len());
            let mut better = groups.clone();
            better[at].ejected = 0;
            let (old, new) = (in_priority(&groups), in_priority(&better));
            let enough = groups.iter().map(|group| group.available()).sum::<u64>() >= 100;
            prop_assert!(new[at] >= old[at]);
            prop_assert!(!enough || new[..at] == old[..at]);
            prop_assert!(new[at + 1..].iter().zip(&old[at + 1..]).all(|(new, old)| new <= old));
        }

        /// A point's group is the one that the loads say; all points together make the loads.
        #[test]
        fn points_cover_the_loads(weights in proptest::collection::vec(0_u64..50, 1..6)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let total: u64 = weights.iter().sum();
            let mut found = vec![0_u64; weights.len()];
            for step in 0..total {
                let point = u64::MAX / total * step + 1_000;
                found[chosen(&weights, point).unwrap()] += 1;
            }
            prop_assert!(found.iter().zip(&weights).all(|(found, weight)| found.abs_diff(*weight) <= 1));
        }
    }

    fn in_priority(groups: &[Health]) -> Vec<u64> {
        Loads::by_priority(groups, 0).loads.into_vec()
    }
}
