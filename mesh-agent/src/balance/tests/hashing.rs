//! Keys through `Live`: they stay, and only those of an endpoint that is away move.

use super::*;
use crate::balance::hash_of;
use crate::model::Endpoint;

const RING: LoadBalancer = LoadBalancer::RingHash { minimum: 1_024 };
const MAGLEV: LoadBalancer = LoadBalancer::Maglev { size: 65_537 };

fn many(count: u8) -> Vec<Endpoint> {
    (1..=count).map(|last| endpoint(&format!("10.0.0.{last}:8080"), "v1")).collect()
}

struct World {
    client: Arc<Workload>,
    live: Live,
}

impl World {
    fn new(endpoints: Vec<Endpoint>) -> Self {
        let client = pod("client", &["10.0.1.9"], "");
        let snapshot = Self::snapshot(&client, endpoints);
        Self { client, live: Live::new(snapshot) }
    }

    fn snapshot(client: &Arc<Workload>, endpoints: Vec<Endpoint>) -> Arc<crate::model::Snapshot> {
        let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), endpoints);
        snapshot(std::slice::from_ref(client), vec![web], vec![], vec![])
    }

    fn change(&mut self, endpoints: Vec<Endpoint>) {
        self.live = self.live.next(Self::snapshot(&self.client, endpoints));
    }

    fn go(&self, policy: &TrafficPolicy, key: u32, tried: &[SocketAddr]) -> SocketAddr {
        let web = self.live.snapshot.services.values().next().unwrap();
        let ask = Ask { policy, ..ask(&self.client, web) };
        let hash = Some(hash_of(&key.to_be_bytes()));
        let choice = Choice {
            tried,
            leave: &[],
            hash,
            draw: u64::from(key).wrapping_mul(0x9e37_79b9) << 32,
        };
        self.live.upstream(ask).pick(&choice).unwrap().endpoint.address
    }
}

#[test]
fn a_key_stays_whatever_else_happens() {
    for by in [RING, MAGLEV].map(by) {
        let mut world = World::new(many(10));
        let first: Vec<_> = (0..500).map(|key| world.go(&by, key, &[])).collect();
        world.change(many(10));
        assert!((0..500).all(|key| world.go(&by, key, &[]) == first[key as usize]));
        // Another process, another client.
        let other = World::new(many(10));
        assert!((0..500).all(|key| other.go(&by, key, &[]) == first[key as usize]));
    }
}

#[test]
fn keys_of_one_that_left_move_and_come_back() {
    for by in [RING, MAGLEV].map(by) {
        let mut world = World::new(many(10));
        let first: Vec<_> = (0..2_000).map(|key| world.go(&by, key, &[])).collect();
        world.change(many(9));
        let gone: SocketAddr = "10.0.0.10:8080".parse().unwrap();
        let moved = (0..2_000_u32)
            .filter(|key| first[*key as usize] != gone)
            .filter(|key| world.go(&by, *key, &[]) != first[*key as usize])
            .count();
        // A ring of 1,024 has 103 points for each of ten and 114 for each of nine: some keys move
        // to the points that are added.
        assert!(moved < 300, "{:?}: {moved}", by.load_balancer);
        world.change(many(10));
        assert!((0..2_000).all(|key| world.go(&by, key, &[]) == first[key as usize]));
    }
}

#[test]
fn the_second_choice_of_a_key_is_always_the_same() {
    for by in [RING, MAGLEV].map(by) {
        let world = World::new(many(10));
        let mut seconds = std::collections::BTreeSet::new();
        for key in 0..200 {
            let first = world.go(&by, key, &[]);
            let second = world.go(&by, key, &[first]);
            assert_ne!(first, second);
            assert_eq!(second, world.go(&by, key, &[first]));
            seconds.insert(second);
        }
        assert!(seconds.len() > 5, "second choices are spread: {seconds:?}");
    }
}

#[test]
fn where_nearly_all_were_tried_the_last_is_found() {
    for by in [RING, MAGLEV].map(by) {
        let world = World::new(many(200));
        let last: SocketAddr = "10.0.0.77:8080".parse().unwrap();
        let tried: Vec<SocketAddr> =
            many(200).iter().map(|e| e.address).filter(|address| *address != last).collect();
        assert!((0..50).all(|key| world.go(&by, key, &tried) == last));
        let all: Vec<SocketAddr> = many(200).iter().map(|e| e.address).collect();
        assert_eq!(
            world.go(&by, 1, &all),
            world.go(&by, 1, &[]),
            "all were tried: the first again"
        );
    }
}

#[test]
fn a_request_without_key_goes_anywhere() {
    let (world, by) = (World::new(many(4)), by(RING));
    let web = world.live.snapshot.services.values().next().unwrap();
    let draws = Draws::seeded(4);
    let mut seen: Vec<SocketAddr> = (0..100)
        .map(|_| pick(&world.live, &Ask { policy: &by, ..ask(&world.client, web) }, draws.next()))
        .map(|picked| picked.unwrap().endpoint.address)
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_change_of_balancer_makes_its_own_table() {
    let world = World::new(many(10));
    let (ring, maglev) = (by(RING), by(MAGLEV));
    let differs =
        (0..100).filter(|key| world.go(&ring, *key, &[]) != world.go(&maglev, *key, &[])).count();
    assert!(differs > 50, "{differs}");
}
