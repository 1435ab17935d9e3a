//! Where keys go: a ring of points, or a Maglev table. Pure.
//!
//! Invariant: a table is made of the endpoints' addresses alone, so every node and every version of
//! the agent sends a key to the same endpoint; and when one endpoint goes, hardly any keys move but
//! its own. Sources: Envoy's `RingHashLoadBalancer` (points are XXH64 of `<address>_<n>`); Maglev (Eisenbud and others 2016, section 3.4).

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::hash::{hash_of, seeded_hash};
use crate::model::LoadBalancer;

/// Points on a ring, at most.
const MAX_POINTS: usize = LoadBalancer::MAX_RING as usize;

/// The table of one balancer over one list of endpoints.
#[derive(Debug)]
pub(super) struct Table {
    /// What it was made for.
    pub(super) by: LoadBalancer,
    slots: Slots,
}

#[derive(Debug)]
enum Slots {
    /// Points in order, each with its endpoint's index.
    Ring(Vec<(u64, u32)>),
    /// Endpoints' indexes by key modulo size.
    Maglev(Vec<u32>),
}

impl Table {
    /// The table of these addresses; empty for a balancer that does not hash.
    pub(super) fn build(by: LoadBalancer, addresses: &[SocketAddr]) -> Self {
        let slots = match by {
            LoadBalancer::RingHash { minimum } => Slots::Ring(ring(minimum as usize, addresses)),
            LoadBalancer::Maglev { size } => Slots::Maglev(maglev(size, addresses)),
            LoadBalancer::LeastRequest
            | LoadBalancer::RoundRobin
            | LoadBalancer::Random
            | LoadBalancer::Passthrough => Slots::Maglev(Vec::new()),
        };
        Self { by, slots }
    }

    /// Indexes of endpoints in the order in which this key tries them, each slot once: so that a
    /// key whose endpoint is away always has the same second choice.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let (len, start) = match &self.slots {
            Slots::Ring(points) => (points.len(), points.partition_point(|(at, _)| *at < hash)),
            Slots::Maglev(slots) => {
                let at = hash.checked_rem(slots.len() as u64).unwrap_or(0);
                (slots.len(), usize::try_from(at).unwrap_or(0))
            }
        };
        (start..len).chain(0..start.min(len)).filter_map(move |at| match &self.slots {
            Slots::Ring(points) => points.get(at).map(|(_, index)| *index as usize),
            Slots::Maglev(slots) => slots.get(at).map(|index| *index as usize),
        })
    }
}

/// Each endpoint has the same number of points, which make `minimum` in all.
fn ring(minimum: usize, addresses: &[SocketAddr]) -> Vec<(u64, u32)> {
    let each = points_each(minimum, addresses.len());
    let mut points = Vec::with_capacity(each * addresses.len());
    let mut name = String::new();
    for (index, address) in (0..).zip(addresses) {
        name.clear();
        let _ = write!(name, "{address}_");
        let stem = name.len();
        for number in 0..each {
            name.truncate(stem);
            let _ = write!(name, "{number}");
            points.push((hash_of(name.as_bytes()), index));
        }
    }
    points.sort_unstable();
    points
}

/// A power of two, so that a few endpoints more or less change nobody's points, and keys only move
/// from who goes and to who comes (Envoy gives the others more or fewer points each time). As few as
/// make `minimum` in all, or fewer where that is more than [`MAX_POINTS`]; never none.
fn points_each(minimum: usize, endpoints: usize) -> usize {
    let endpoints = endpoints.max(1);
    let each = minimum.min(MAX_POINTS).div_ceil(endpoints).next_power_of_two();
    each.min(MAX_POINTS / endpoints).max(1)
}

/// One endpoint's order of preference over slots.
struct Preference {
    next: u64,
    skip: u64,
}

/// Endpoints take turns; each takes the first free slot of its own order. `size` is a prime
/// (`config` sees to it), so that an order comes by every slot; were it none, an endpoint without a
/// free slot in its order takes the first of all.
fn maglev(size: u32, addresses: &[SocketAddr]) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = u64::from(size);
    if addresses.is_empty() || size == 0 {
        return Vec::new();
    }
    let mut orders: Vec<Preference> = addresses
        .iter()
        .map(|address| {
            let name = address.to_string();
            let skip = seeded_hash(name.as_bytes(), 1) % size.saturating_sub(1).max(1) + 1;
            Preference { next: hash_of(name.as_bytes()) % size, skip }
        })
        .collect();
    let mut slots = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let (mut free, mut first_free) = (slots.len(), 0);
    loop {
        for (index, order) in (0..FREE).zip(&mut orders) {
            if free == 0 {
                return slots;
            }
            let slot = order.take(size, &slots, FREE).unwrap_or_else(|| {
                let rest = slots.iter().skip(first_free);
                first_free += rest.take_while(|slot| **slot != FREE).count();
                first_free
            });
            if let Some(slot) = slots.get_mut(slot) {
                *slot = index;
            }
            free -= 1;
        }
    }
}

impl Preference {
    fn take(&mut self, size: u64, slots: &[u32], free: u32) -> Option<usize> {
        for _ in 0..size {
            let slot = usize::try_from(self.next).unwrap_or(0);
            self.next = (self.next + self.skip) % size;
            if slots.get(slot) == Some(&free) {
                return Some(slot);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RING: LoadBalancer = LoadBalancer::RingHash { minimum: 1_024 };
    const MAGLEV: LoadBalancer = LoadBalancer::Maglev { size: 65_537 };

    fn addresses(count: u32) -> Vec<SocketAddr> {
        (0..count).map(|at| SocketAddr::from(((0x0a00_0001 + at).to_be_bytes(), 8_080))).collect()
    }

    fn owner(table: &Table, key: u64) -> usize {
        table.walk(hash_of(&key.to_be_bytes())).next().unwrap()
    }

    /// How many of 10,000 keys each endpoint has.
    fn spread(by: LoadBalancer, count: u32) -> Vec<u32> {
        let table = Table::build(by, &addresses(count));
        let mut found = vec![0; count as usize];
        (0..10_000).for_each(|key| found[owner(&table, key)] += 1);
        found
    }

    #[test]
    fn a_ring_has_at_least_the_points_that_are_asked_for() {
        let size = |minimum, count| match Table::build(
            LoadBalancer::RingHash { minimum },
            &addresses(count),
        )
        .slots
        {
            Slots::Ring(points) => points.len(),
            Slots::Maglev(_) => 0,
        };
        // The same for each, whether there are two or three.
        assert_eq!((size(1_024, 2), size(1_024, 3)), (1_024, 1_536));
        assert_eq!(size(1_024, 5_000), 5_000);
        assert_eq!(size(0, 2), 2);
        assert_eq!(size(1_024, 0), 0);
    }

    #[test]
    fn a_ring_has_a_largest_size() {
        for (minimum, endpoints, each) in [
            (usize::MAX, 3, 21_845),
            (8 << 20, 5_000, 13),
            (1_024, 5, 256),
            (1, 9 << 20, 1),
            (0, 0, 1),
        ] {
            assert_eq!(points_each(minimum, endpoints), each, "{minimum} {endpoints}");
        }
    }

    #[test]
    fn tables_take_a_mebibyte_at_most() {
        let octets = |by| match Table::build(by, &addresses(3)).slots {
            Slots::Ring(points) => std::mem::size_of_val(&*points),
            Slots::Maglev(slots) => std::mem::size_of_val(&*slots),
        };
        let most = 1 << 20;
        assert!((most - 32..=most).contains(&octets(LoadBalancer::RingHash { minimum: 8 << 20 })));
        let largest = LoadBalancer::Maglev { size: LoadBalancer::MAX_MAGLEV };
        assert!((most - 32..=most).contains(&octets(largest)));
    }

    #[test]
    fn a_point_is_the_hash_of_address_and_number() {
        let table = Table::build(LoadBalancer::RingHash { minimum: 4 }, &addresses(2));
        for (name, index) in
            [("10.0.0.1:8080_0", 0), ("10.0.0.1:8080_1", 0), ("10.0.0.2:8080_1", 1)]
        {
            assert_eq!(table.walk(hash_of(name.as_bytes())).next(), Some(index), "{name}");
        }
        let past_the_last = table.walk(u64::MAX).next();
        assert_eq!(past_the_last, table.walk(0).next());
    }

    #[test]
    fn keys_spread() {
        let maglev = spread(MAGLEV, 10);
        assert!(maglev.iter().all(|count| (850..1_150).contains(count)), "{maglev:?}");
        // A ring of 1,024 points is less even.
        let ring = spread(RING, 10);
        assert!(ring.iter().all(|count| (600..1_400).contains(count)), "{ring:?}");
    }

    #[test]
    fn maglev_slots_are_shared_evenly() {
        for (count, size) in [(3, 65_537), (100, 65_537), (7, 11), (20, 11)] {
            let slots = maglev(size, &addresses(count));
            let mut found = vec![0_u32; count as usize];
            slots.iter().for_each(|index| found[*index as usize] += 1);
            let (least, most) = (found.iter().min().unwrap(), found.iter().max().unwrap());
            assert!(most - least <= 1, "{count} {size}: {least} to {most}");
        }
    }

    #[test]
    fn a_size_that_is_no_prime_still_fills_the_table() {
        for size in [1, 2, 12, 1_000] {
            let slots = maglev(size, &addresses(3));
            assert!(slots.iter().all(|index| *index < 3), "{size}: {slots:?}");
        }
    }

    #[test]
    fn nobody_to_go_to() {
        for by in [RING, MAGLEV, LoadBalancer::Random] {
            assert_eq!(Table::build(by, &[]).walk(7).next(), None);
        }
    }

    #[test]
    fn large_tables_are_whole() {
        let many = addresses(5_000);
        for by in [RING, MAGLEV] {
            let mut seen: Vec<usize> = Table::build(by, &many).walk(1).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 5_000, "{by:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// With one endpoint less, only its keys move; on a ring to the second in their walk.
        #[test]
        fn a_ring_moves_the_leavers_keys_only(count in 2_u32..30, leaver in any::<prop::sample::Index>()) {
            let all = addresses(count);
            let leaver = leaver.index(all.len());
            // As many points for each endpoint as before: the ring then differs in the leaver's.
            let minimum = 100 * count;
            let before = Table::build(LoadBalancer::RingHash { minimum }, &all);
            let mut fewer = all.clone();
            fewer.remove(leaver);
            let minimum = 100 * (count - 1);
            let after = Table::build(LoadBalancer::RingHash { minimum }, &fewer);
            for key in 0..1_000_u64 {
                let hash = hash_of(&key.to_be_bytes());
                let old = before.walk(hash).find(|at| *at != leaver).unwrap();
                prop_assert_eq!(all[old], fewer[owner(&after, key)]);
            }
        }

        /// With one of n endpoints less, about 1/n of a Maglev table changes: the leaver's slots,
        /// and few beside.
        #[test]
        fn maglev_moves_little_else(count in 3_u32..30, leaver in any::<prop::sample::Index>()) {
            let all = addresses(count);
            let leaver = leaver.index(all.len());
            let mut fewer = all.clone();
            fewer.remove(leaver);
            let (before, after) = (maglev(65_537, &all), maglev(65_537, &fewer));
            let moved = before.iter().zip(&after).filter(|(old, new)| {
                **old as usize != leaver && all[**old as usize] != fewer[**new as usize]
            });
            let others = moved.count();
            // The paper's figure 8 has some hundreds of 65,537 for few failures.
            prop_assert!(others < 65_537 / 25, "{others}");
        }
    }
}
