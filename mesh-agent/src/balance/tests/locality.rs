//! Localities through `Live`: who comes first, who takes over, fixed shares, and what stays as it is
//! within one locality.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::balance::hash_of;
use crate::balance::locality::Preference;
use crate::model::{
    Distribute, Endpoint, HOSTNAME, Locality, LocalityPattern, LocalitySetting, OutlierDetection,
    PriorityLabel, REGION, RegionFailover, TrafficDistribution, ZONE,
};

const C: &str = "10.0.0.3:8080";
const D: &str = "10.0.0.4:8080";
const E: &str = "10.0.0.5:8080";

/// Requests of one measurement; five standard deviations of a share of 1/2 are 250.
const MANY: usize = 10_000;
const ROOM: usize = 250;

struct World {
    client: Arc<Workload>,
    live: Live,
    policy: TrafficPolicy,
    draws: Draws,
}

fn place(text: &str) -> Option<Arc<Locality>> {
    Some(Arc::new(Locality::parse(text))).filter(|place| !place.is_empty())
}

fn placed((address, locality): (&str, &str)) -> Endpoint {
    Endpoint { locality: place(locality), ..endpoint(address, "v1") }
}

fn client_in(locality: &str) -> Arc<Workload> {
    let client = pod("client", &["10.0.1.9"], "v1");
    Arc::new(Workload { locality: place(locality), ..Workload::clone(&client) })
}

fn detection() -> Option<Arc<OutlierDetection>> {
    let policy = OutlierDetection {
        consecutive_5xx: 1,
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    };
    Some(Arc::new(policy))
}

/// By turns, with ejections after one error.
fn watched(setting: Option<LocalitySetting>) -> TrafficPolicy {
    TrafficPolicy {
        outlier: detection(),
        locality: setting.map(Arc::new),
        ..by(LoadBalancer::RoundRobin)
    }
}

fn distribute(entries: &[(&str, &[(&str, u32)])]) -> LocalitySetting {
    let to = |(at, share): &(&str, u32)| (LocalityPattern::parse(at), *share);
    let entry = |(from, shares): &(&str, &[(&str, u32)])| Distribute {
        from: LocalityPattern::parse(from),
        to: shares.iter().map(to).collect(),
    };
    LocalitySetting { distribute: entries.iter().map(entry).collect(), ..Default::default() }
}

fn labels(found: &[(&str, Option<&str>)]) -> Vec<PriorityLabel> {
    let label = |(key, value): &(&str, Option<&str>)| PriorityLabel {
        key: (*key).into(),
        value: value.map(Arc::from),
    };
    found.iter().map(label).collect()
}

impl World {
    fn new(client: &str, endpoints: &[(&str, &str)], policy: TrafficPolicy) -> Self {
        Self::with(client_in(client), endpoints.iter().copied().map(placed).collect(), policy)
    }

    fn with(client: Arc<Workload>, endpoints: Vec<Endpoint>, policy: TrafficPolicy) -> Self {
        let live = Live::new(Self::snapshot(&client, endpoints));
        Self { client, live, policy, draws: Draws::seeded(7) }
    }

    fn snapshot(client: &Arc<Workload>, endpoints: Vec<Endpoint>) -> Arc<crate::model::Snapshot> {
        let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), endpoints);
        snapshot(std::slice::from_ref(client), vec![web], vec![], vec![])
    }

    fn change(&mut self, endpoints: &[(&str, &str)]) {
        let endpoints = endpoints.iter().copied().map(placed).collect();
        self.live = self.live.next(Self::snapshot(&self.client, endpoints));
    }

    fn pick(&self, tried: &[&str], leave: &[&str], hash: Option<u64>) -> Option<Picked> {
        let addresses = |all: &[&str]| -> Vec<SocketAddr> {
            all.iter().map(|address| address.parse().unwrap()).collect()
        };
        let web = self.live.snapshot.services.values().next().unwrap();
        let ask = Ask { policy: &self.policy, ..ask(&self.client, web) };
        let (tried, leave) = (addresses(tried), addresses(leave));
        let choice = Choice { tried: &tried, leave: &leave, hash, draw: self.draws.next() };
        self.live.upstream(ask).pick(&choice)
    }

    /// How many of many requests each of these gets; nobody else gets any.
    fn shares<const N: usize>(&self, addresses: [&str; N]) -> [usize; N] {
        let mut counts = BTreeMap::new();
        for _ in 0..MANY {
            let picked = self.pick(&[], &[], None).unwrap().endpoint.address.to_string();
            *counts.entry(picked).or_insert(0) += 1;
        }
        let shares = addresses.map(|address| counts.remove(address).unwrap_or(0));
        assert!(counts.is_empty(), "and {counts:?}");
        shares
    }

    /// One request to it fails.
    fn eject(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let picked = (0..1_000).filter_map(|_| self.pick(&[], &[], None));
        picked
            .into_iter()
            .find(|one| one.endpoint.address == address)
            .unwrap()
            .active
            .answered(500);
    }

    fn by_key(&self, key: u32) -> String {
        let hash = Some(hash_of(&key.to_be_bytes()));
        self.pick(&[], &[], hash).unwrap().endpoint.address.to_string()
    }
}

fn near(found: usize, expected: usize) -> bool {
    found.abs_diff(expected) < ROOM
}

#[tokio::test(start_paused = true)]
async fn the_nearest_take_all_while_they_are_well() {
    let endpoints =
        [(A, "eu/a/r1"), (B, "eu/a/r2"), (C, "eu/b/r1"), (D, "us/a/r1"), (E, "us/a/r1")];
    let mut world = World::new("eu/a/r1", &endpoints, watched(None));
    for (left, expected) in [
        (5, [MANY, 0, 0, 0, 0]),
        (4, [0, MANY, 0, 0, 0]),
        (3, [0, 0, MANY, 0, 0]),
        (2, [0, 0, 0, MANY / 2, MANY / 2]),
    ] {
        world.change(&endpoints[5 - left..]);
        assert_eq!(world.shares([A, B, C, D, E]), expected, "{left} left");
    }
}

#[tokio::test(start_paused = true)]
async fn localities_do_not_count_without_ejections_or_a_place_or_where_they_are_switched_off() {
    let endpoints = [(A, "eu/a"), (B, "eu/b")];
    let off = LocalitySetting { enabled: false, ..Default::default() };
    let without = TrafficPolicy { outlier: None, ..watched(Some(LocalitySetting::default())) };
    for (client, policy) in
        [("", watched(None)), ("eu/a", watched(Some(off.clone()))), ("eu/a", without)]
    {
        let world = World::new(client, &endpoints, policy);
        assert_eq!(world.shares([A, B]), [MANY / 2; 2], "{client}");
    }
    // The mesh's own setting, which a rule's replaces.
    let mut world = World::new("eu/a", &endpoints, watched(None));
    let mut made = crate::model::Snapshot::clone(&world.live.snapshot);
    made.locality = Arc::new(off);
    world.live = world.live.next(Arc::new(made));
    assert_eq!(world.shares([A, B]), [MANY / 2; 2]);
    world.policy = watched(Some(LocalitySetting::default()));
    world.live = world.live.next(world.live.snapshot.clone());
    assert_eq!(world.shares([A, B]), [MANY, 0]);
}

#[tokio::test(start_paused = true)]
async fn others_take_what_is_too_much_for_the_healthy() {
    let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b"), (D, "us/a")];
    let world = World::new("eu/a", &endpoints, watched(None));
    world.eject(A);
    // Half of the zone is healthy, times 1.4.
    let [a, b, c, d] = world.shares([A, B, C, D]);
    assert!(a == 0 && d == 0 && near(b, MANY * 7 / 10) && near(c, MANY * 3 / 10), "{b} {c}");
    world.eject(B);
    assert_eq!(world.shares([A, B, C, D]), [0, 0, MANY, 0]);
    world.eject(C);
    assert_eq!(world.shares([A, B, C, D]), [0, 0, 0, MANY]);
    world.eject(D);
    assert!(world.pick(&[], &[], None).is_none(), "nobody is left, and there is no panic");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(world.shares([A, B, C, D]), [MANY / 2, MANY / 2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn in_panic_a_locality_uses_all_it_has() {
    let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b")];
    let mut policy = watched(None);
    let panics = OutlierDetection {
        min_health_percent: 60,
        ..OutlierDetection::clone(policy.outlier.as_ref().unwrap())
    };
    policy.outlier = Some(Arc::new(panics));
    let world = World::new("eu/a", &endpoints, policy);
    world.eject(A);
    let [a, b, c] = world.shares([A, B, C]);
    assert!(a == 0 && near(b, MANY * 7 / 10) && near(c, MANY * 3 / 10), "{b} {c}: C has room");
    world.eject(C);
    // Both have too few, and not enough together: all are used, by size.
    let [a, b, c] = world.shares([A, B, C]);
    assert!(near(a, MANY / 3) && near(b, MANY / 3) && near(c, MANY / 3), "{a} {b} {c}");
}

#[tokio::test(start_paused = true)]
async fn a_region_may_have_another_to_turn_to() {
    let failover = vec![RegionFailover { from: "eu".into(), to: "us".into() }];
    let setting = LocalitySetting { failover, ..Default::default() };
    let endpoints = [(A, "ap/a"), (B, "us/a"), (C, "eu/b")];
    let mut world = World::new("eu/a", &endpoints, watched(Some(setting)));
    assert_eq!(world.shares([A, B, C]), [0, 0, MANY]);
    world.change(&endpoints[..2]);
    assert_eq!(world.shares([A, B]), [0, MANY]);
    world.change(&endpoints[..1]);
    assert_eq!(world.shares([A]), [MANY]);
}

#[tokio::test(start_paused = true)]
async fn fixed_shares_hold_without_ejections_and_turns_are_exact_within_each() {
    let setting = distribute(&[
        ("us/*", &[("us", 100)]),
        ("eu/a", &[("eu/a", 80), ("eu/b/*", 20)]),
        ("*", &[("us/*", 100)]),
    ]);
    let endpoints = [(A, "eu/a/r1"), (B, "eu/a/r1"), (C, "eu/b/r1"), (D, "eu/b/r2"), (E, "us/a")];
    let policy = TrafficPolicy { outlier: None, ..watched(Some(setting.clone())) };
    let world = World::new("eu/a/r9", &endpoints, policy.clone());
    let [a, b, c, d, e] = world.shares([A, B, C, D, E]);
    // Five standard deviations of a share of 0.8 are 200.
    assert!((a + b).abs_diff(MANY * 8 / 10) < 200 && e == 0, "{a} {b} {c} {d}");
    assert!(a.abs_diff(b) <= 1 && c.abs_diff(d) < 200, "{a} {b} {c} {d}");
    // The first that is for the client; an unknown place is any place.
    assert_eq!(World::new("ap/a", &endpoints, policy.clone()).shares([E]), [MANY]);
    assert_eq!(World::new("", &endpoints, policy).shares([E]), [MANY]);
    // Nobody is where everything should go.
    let nowhere = watched(Some(distribute(&[("eu", &[("mars", 100)])])));
    assert!(World::new("eu/a", &endpoints, nowhere).pick(&[], &[], None).is_none());
    // Not for this client: as if there were none.
    let not_here = watched(Some(distribute(&[("us", &[("us", 100)])])));
    let world = World::new("eu/a", &endpoints, not_here);
    assert_eq!(world.shares([A, B, C, D, E]), [MANY / 5; 5]);
}

#[tokio::test(start_paused = true)]
async fn fixed_shares_shrink_with_health() {
    let setting = distribute(&[("eu", &[("eu/a", 80), ("eu/b", 20)])]);
    let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b"), (D, "eu/b")];
    let world = World::new("eu/a", &endpoints, watched(Some(setting)));
    world.eject(A);
    // 80 times 0.7, to 20.
    let [a, b, c, d] = world.shares([A, B, C, D]);
    assert!(a == 0 && near(b, MANY * 56 / 76) && near(c + d, MANY * 20 / 76), "{b} {c} {d}");
    world.eject(B);
    assert_eq!(world.shares([A, B, C, D]), [0, 0, MANY / 2, MANY / 2]);
}

#[tokio::test(start_paused = true)]
async fn labels_make_an_order_of_their_own() {
    let order = labels(&[("version", None), (ZONE, None), (HOSTNAME, Some("n2"))]);
    let setting = LocalitySetting { failover_priority: order, ..Default::default() };
    let at = |address: &str, version: &str, locality: &str, node: &str| {
        let mut found = endpoint(address, version);
        let pod = found.workload.as_ref().unwrap();
        found.workload = Some(Arc::new(Workload {
            node: node.into(),
            locality: place(locality),
            ..Workload::clone(pod)
        }));
        found
    };
    let all = vec![
        at(A, "v1", "eu/a", "n2"),
        at(B, "v1", "eu/a", "n1"),
        at(C, "v1", "eu/b", "n2"),
        at(D, "v2", "eu/a", "n2"),
    ];
    for (from, expected) in [(0, [MANY, 0, 0, 0]), (1, [0, MANY, 0, 0]), (2, [0, 0, MANY, 0])] {
        let left = all[from..].to_vec();
        let world = World::with(client_in("eu/a"), left, watched(Some(setting.clone())));
        assert_eq!(world.shares([A, B, C, D]), expected);
    }
    let without = TrafficPolicy { outlier: None, ..watched(Some(setting)) };
    let world = World::with(client_in("eu/a"), all, without);
    assert_eq!(world.shares([A, B, C, D]), [MANY / 4; 4], "as in Istio, an order needs ejections");
}

#[test]
fn a_service_may_ask_for_near_endpoints_without_ejections() {
    let at = |address: &str, locality: &str, node: &str| {
        let mut found = placed((address, locality));
        let pod = found.workload.as_ref().unwrap();
        found.workload = Some(Arc::new(Workload { node: node.into(), ..Workload::clone(pod) }));
        found
    };
    let all = [at(A, "eu/a", "n1"), at(B, "eu/a", "n2"), at(C, "eu/b", "n3")];
    let shares = |distribution, policy: TrafficPolicy| {
        let mut world = World::with(client_in("eu/a"), all.to_vec(), policy);
        let mut web = Service::clone(world.live.snapshot.services.values().next().unwrap());
        web.distribution = Some(distribution);
        let client = std::slice::from_ref(&world.client);
        world.live = Live::new(snapshot(client, vec![web], vec![], vec![]));
        world.shares([A, B, C])
    };
    let plain = || by(LoadBalancer::RoundRobin);
    assert_eq!(shares(TrafficDistribution::PreferSameZone, plain()), [MANY / 2, MANY / 2, 0]);
    assert_eq!(shares(TrafficDistribution::PreferSameNode, plain()), [MANY, 0, 0]);
    // A rule goes before.
    let off = LocalitySetting { enabled: false, ..Default::default() };
    let [a, b, c] = shares(TrafficDistribution::PreferSameNode, watched(Some(off)));
    assert!(a.max(b).max(c) - a.min(b).min(c) <= 1, "{a} {b} {c}");
}

#[tokio::test(start_paused = true)]
async fn a_key_keeps_its_locality_and_its_endpoint() {
    let setting = distribute(&[("eu", &[("eu/a", 80), ("eu/b", 20)])]);
    for by in [LoadBalancer::RingHash { minimum: 1_024 }, LoadBalancer::Maglev { size: 65_537 }] {
        let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b"), (D, "eu/b")];
        let policy = TrafficPolicy { load_balancer: by, ..watched(Some(setting.clone())) };
        let mut world = World::new("eu/a", &endpoints, policy);
        let keys = || 0..10_000_u32;
        let first: Vec<String> = keys().map(|key| world.by_key(key)).collect();
        let count = |address: &str| first.iter().filter(|found| *found == address).count();
        let (zone_a, zone_b) = (count(A) + count(B), count(C) + count(D));
        assert!(zone_a.abs_diff(MANY * 8 / 10) < 200, "{by:?}: {zone_a} {zone_b}");
        assert!([A, B, C, D].iter().all(|address| count(address) > 500), "{by:?}");
        world.change(&endpoints);
        assert!(keys().all(|key| world.by_key(key) == first[key as usize]), "{by:?}");

        // Nearest first: all keys at home, and back there once the ejection is over.
        let policy = TrafficPolicy { load_balancer: by, ..watched(None) };
        let world = World::new("eu/a", &endpoints, policy);
        let home: Vec<String> = keys().map(|key| world.by_key(key)).collect();
        assert!(home.iter().all(|address| address == A || address == B));
        world.eject(A);
        let away: Vec<String> = keys().map(|key| world.by_key(key)).collect();
        assert!(keys().all(|key| world.by_key(key) == away[key as usize]), "the same again");
        let moved = |of: &str, to: &[&str]| {
            let pairs = home.iter().zip(&away).filter(|(home, _)| *home == of);
            pairs.filter(|(_, away)| to.contains(&away.as_str())).count()
        };
        // Three in ten leave the zone, whoever they were at; the rest of B's stay.
        assert_eq!(moved(A, &[A]) + moved(B, &[A]), 0);
        assert!(near(moved(A, &[C, D]) + moved(B, &[C, D]), MANY * 3 / 10), "{by:?}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(keys().all(|key| world.by_key(key) == home[key as usize]), "{by:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_attempt_stays_near_unless_it_is_to_leave() {
    let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b"), (D, "us/a")];
    let world = World::new("eu/a", &endpoints, watched(None));
    let to = |tried: &[&str], leave: &[&str]| {
        let mut seen: Vec<String> = (0..200)
            .filter_map(|_| world.pick(tried, leave, None))
            .map(|picked| picked.endpoint.address.to_string())
            .collect();
        seen.sort();
        seen.dedup();
        seen.join(" ")
    };
    assert_eq!(to(&[A], &[]), B);
    assert_eq!(to(&[A, B], &[]), format!("{A} {B}"), "rather again than farther away");
    assert_eq!(to(&[A], &[A]), C);
    assert_eq!(to(&[A, C], &[A, C]), D);
    assert_eq!(to(&[A, C, D], &[A, C, D]), B, "everywhere once: the usual choice");
    world.pick(&[], &[A], None).unwrap().active.answered(500);
    assert_eq!(to(&[A], &[A]), D, "not to where nobody is well");
}

#[tokio::test(start_paused = true)]
async fn new_endpoints_of_a_locality_warm_up_among_their_own() {
    let warmup = crate::model::Warmup {
        duration: Duration::from_secs(100),
        minimum_percent: 10.0,
        aggression: 1.0,
    };
    let policy = TrafficPolicy { warmup: Some(warmup), ..watched(None) };
    let mut world = World::new("eu/a", &[(A, "eu/a"), (C, "eu/b")], policy);
    assert_eq!(world.shares([A, C]), [MANY, 0]);
    world.change(&[(A, "eu/a"), (B, "eu/a"), (C, "eu/b")]);
    let [a, b, c] = world.shares([A, B, C]);
    assert!(near(b, MANY / 11) && a + b == MANY && c == 0, "{a} {b}");
    tokio::time::advance(Duration::from_secs(100)).await;
    assert_eq!(world.shares([A, B, C]), [MANY / 2, MANY / 2, 0]);
}

#[test]
fn threads_share_turns_within_a_locality() {
    let endpoints = [(A, "eu/a"), (B, "eu/a"), (C, "eu/b")];
    let world = World::new("eu/a", &endpoints, watched(None));
    let web = world.live.snapshot.services.values().next().unwrap();
    let count = std::thread::scope(|scope| {
        let one = || {
            let ask = Ask { policy: &world.policy, ..ask(&world.client, web) };
            (0..500).filter(|_| at(&world.live, &ask) == A.parse().unwrap()).count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(count, 1_000);
}

proptest! {
    /// Each endpoint is in one group; of two groups the first agrees with the client in more of the
    /// leading labels.
    #[test]
    fn groups_are_in_order_of_the_first_difference(
        own in proptest::collection::vec(0_u8..2, 3),
        others in proptest::collection::vec(proptest::collection::vec(0_u8..2, 3), 1..20),
    ) {
        let keys = [REGION, ZONE, "app"];
        let labelled = |values: &[u8]| {
            let labels = keys.iter().zip(values);
            labels.map(|(key, value)| (Arc::from(*key), value.to_string().into())).collect()
        };
        let client = Workload { labels: labelled(&own), ..Workload::clone(&client_in("")) };
        let endpoints: Vec<Endpoint> = others
            .iter()
            .map(|values| Endpoint { labels: Some(Arc::new(labelled(values))), ..endpoint(A, "") })
            .collect();
        let policy = watched(Some(LocalitySetting {
            failover_priority: labels(&keys.map(|key| (key, None))),
            ..Default::default()
        }));
        let (web, mesh) = (web(&[]), LocalitySetting::default());
        let preference = Preference::of(&client, &web, &policy, &mesh).unwrap();
        let agreement = |at: usize| own.iter().zip(&others[at]).take_while(|(a, b)| a == b).count();
        match preference.groups(endpoints.iter()) {
            None => prop_assert!((0..others.len()).all(|at| agreement(at) == agreement(0))),
            Some(groups) => {
                let mut all = groups.members.concat();
                let of_group: Vec<usize> = groups.members.iter().map(|of| agreement(of[0])).collect();
                prop_assert!(of_group.is_sorted_by(|a, b| a > b), "{:?}", of_group);
                for (members, agreed) in groups.members.iter().zip(&of_group) {
                    prop_assert!(members.iter().all(|at| agreement(*at) == *agreed));
                }
                all.sort_unstable();
                prop_assert_eq!(all, (0..others.len()).collect::<Vec<_>>());
            }
        }
    }

    /// Weights are as the shares say, however many endpoints and localities an entry covers.
    #[test]
    fn weights_add_up_to_the_shares(
        share in 1_u32..100, sizes in proptest::collection::vec((0_u8..3, 1_usize..6), 1..8),
    ) {
        let setting = distribute(&[("*", &[("eu/*", share), ("us", 100 - share)])]);
        let mut endpoints = vec![placed((A, "us/a"))];
        for (zone, count) in sizes {
            let zone = format!("eu/z{zone}");
            endpoints.extend((0..count).map(|_| placed((B, &zone))));
        }
        let (web, policy) = (web(&[]), watched(Some(setting)));
        let (client, mesh) = (client_in("eu/a"), LocalitySetting::default());
        let preference = Preference::of(&client, &web, &policy, &mesh).unwrap();
        let groups = preference.groups(endpoints.iter()).unwrap();
        let weights = groups.weights.unwrap();
        let total: u64 = weights.iter().sum();
        let is_us = |members: &Vec<usize>| members.contains(&0);
        let us = groups.members.iter().zip(&weights).find(|(of, _)| is_us(of)).unwrap().1;
        let expected = f64::from(100 - share) / 100.0;
        prop_assert!((*us as f64 / total as f64 - expected).abs() < 1e-4);
        let per_endpoint = groups.members.iter().zip(&weights).filter(|(of, _)| !is_us(of));
        let mut each = per_endpoint.map(|(of, weight)| *weight as f64 / of.len() as f64);
        let first = each.next().unwrap();
        prop_assert!(each.all(|one| (one - first).abs() < 2.0));
    }
}
