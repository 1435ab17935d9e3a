//! Outlier detection through `Live`, in paused time.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::balance::EjectionReason;
use crate::balance::outlier::{decayed, ejection_time, next_times};
use crate::model::{DestinationRule, OutlierDetection, Snapshot};

const C: &str = "10.0.0.3:8080";
const D: &str = "10.0.0.4:8080";

/// A client and `web` with a DestinationRule.
struct World {
    client: Arc<Workload>,
    live: Live,
}

fn detection() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: 3,
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    }
}

fn rules(outlier: Option<OutlierDetection>, balancer: LoadBalancer) -> DestinationRule {
    let mut dr = rule("web.shop.svc.cluster.local", &[], balancer);
    dr.policy.outlier = outlier.map(Arc::new);
    dr
}

impl World {
    fn new(outlier: OutlierDetection, endpoints: &[&str]) -> Self {
        let client = pod("client", &["10.0.1.9"], "");
        let rule = rules(Some(outlier), LoadBalancer::RoundRobin);
        let live = Live::new(Self::snapshot(&client, rule, endpoints));
        Self { client, live }
    }

    fn snapshot(
        client: &Arc<Workload>,
        rule: DestinationRule,
        endpoints: &[&str],
    ) -> Arc<Snapshot> {
        let endpoints: Vec<_> = endpoints.iter().map(|at| (*at, "v1")).collect();
        snapshot(std::slice::from_ref(client), vec![web(&endpoints)], vec![], vec![rule])
    }

    fn change(&mut self, rule: DestinationRule, endpoints: &[&str]) {
        self.live = self.live.next(Self::snapshot(&self.client, rule, endpoints));
    }

    fn pick(&self, tried: &[SocketAddr]) -> Option<Picked> {
        let web = self.live.snapshot.services.values().next().unwrap();
        let policy = &self.live.snapshot.destination_rules["shop"][0].policy;
        let ask = Ask { policy, ..ask(&self.client, web) };
        self.live.upstream(ask).pick(&Choice { tried, leave: &[], hash: None, draw: 7 })
    }

    /// A guard at this endpoint, be it ejected or not.
    fn at(&self, address: &str) -> Picked {
        let address: SocketAddr = address.parse().unwrap();
        (0..20)
            .filter_map(|_| self.pick(&[]))
            .find(|picked| picked.endpoint.address == address)
            .unwrap()
    }

    fn answers(&self, address: &str, statuses: &[u16]) {
        for status in statuses {
            self.at(address).active.answered(*status);
        }
    }

    /// Who is chosen.
    fn used(&self) -> String {
        let mut seen: Vec<String> = (0..20)
            .filter_map(|_| self.pick(&[]))
            .map(|picked| picked.endpoint.address.to_string())
            .collect();
        seen.sort();
        seen.dedup();
        seen.join(" ")
    }

    /// Who is out: the last byte of the address, seconds that remain, times in a row.
    fn out(&self) -> Vec<(u8, u64, u32)> {
        self.live
            .ejections()
            .iter()
            .map(|found| match found.address.ip() {
                std::net::IpAddr::V4(ip) => {
                    (ip.octets()[3], found.remaining.as_secs(), found.times)
                }
                std::net::IpAddr::V6(_) => (0, 0, 0),
            })
            .collect()
    }
}

async fn wait(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn three_errors_in_a_row_eject_until_the_tick_after_thirty_seconds() {
    let world = World::new(detection(), &[A, B]);
    wait(0).await;
    world.answers(A, &[500, 503, 200, 500, 404, 500, 500]);
    assert_eq!(world.used(), format!("{A} {B}"), "the row was interrupted");
    wait(4).await;
    world.answers(A, &[500]);
    assert_eq!(world.used(), B);
    // Ticks are at 10, 20, 30, 40: at 34 its time is over, at 40 it is seen.
    assert_eq!(world.out(), [(1, 36, 1)]);
    wait(35).await;
    assert_eq!((world.used(), world.out()), (B.to_owned(), vec![(1, 1, 1)]));
    wait(1).await;
    assert_eq!((world.used(), world.out()), (format!("{A} {B}"), vec![]));
    world.answers(A, &[500, 500]);
    assert_eq!(world.used(), format!("{A} {B}"), "it starts from none");
}

#[tokio::test(start_paused = true)]
async fn ejections_in_a_row_last_longer_and_health_shortens_them() {
    let world = World::new(detection(), &[A, B]);
    for (before, remaining, times) in [
        (0, 30, 1),
        // Back at 30: ejected at once.
        (30, 60, 2),
        // Back at 90. Ticks at 100, 110 find it healthy: 2 - 2 + 1.
        (80, 30, 1),
        // Back at 140.
        (30, 60, 2),
    ] {
        wait(before).await;
        world.answers(A, &[500; 3]);
        assert_eq!(world.out(), [(1, remaining, times)]);
    }
    wait(1_000).await;
    world.answers(A, &[500; 3]);
    assert_eq!(world.out(), [(1, 30, 1)]);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_percentage_and_one_at_least() {
    let few = OutlierDetection { max_ejection_percent: 10, ..detection() };
    let world = World::new(few.clone(), &[A, B]);
    world.answers(A, &[500; 3]);
    world.answers(B, &[500; 9]);
    assert_eq!(world.used(), B);
    let half = OutlierDetection { max_ejection_percent: 50, ..few };
    let world = World::new(half, &[A, B, C, D]);
    for address in [A, B, C] {
        world.answers(address, &[500; 3]);
    }
    assert_eq!(world.used(), format!("{C} {D}"));
    assert_eq!(world.live.ejection_counts()[0].total, 2, "the third was none");
}

#[tokio::test(start_paused = true)]
async fn with_all_out_there_is_none_or_all_are_used() {
    let world = World::new(detection(), &[A, B]);
    world.answers(A, &[500; 3]);
    world.answers(B, &[500; 3]);
    assert!(world.pick(&[]).is_none(), "no panic: 503 UH");
    let panic = OutlierDetection { min_health_percent: 50, ..detection() };
    let world = World::new(panic, &[A, B]);
    world.answers(A, &[500; 3]);
    assert_eq!(world.used(), B, "half are healthy");
    world.answers(B, &[500; 3]);
    assert_eq!(world.used(), format!("{A} {B}"), "fewer than half are");
}

#[tokio::test(start_paused = true)]
async fn what_counts_is_as_the_policy_says() {
    let gateway = OutlierDetection { consecutive_5xx: 0, consecutive_gateway: 2, ..detection() };
    let world = World::new(gateway, &[A, B]);
    world.answers(A, &[500, 500, 500, 502, 500, 504]);
    assert_eq!(world.out(), []);
    world.answers(A, &[503]);
    assert_eq!(world.live.ejections()[0].reason, EjectionReason::ConsecutiveGateway);

    let codes = OutlierDetection { error_codes: [429].into(), ..detection() };
    let world = World::new(codes, &[A, B]);
    world.answers(B, &[500, 500, 500, 503]);
    world.answers(A, &[429; 3]);
    assert_eq!(world.used(), B);
}

#[tokio::test(start_paused = true)]
async fn no_answer_counts_as_a_gateways_or_apart() {
    let world = World::new(detection(), &[A, B]);
    for _ in 0..3 {
        world.at(A).active.unanswered();
    }
    assert_eq!(world.live.ejections()[0].reason, EjectionReason::Consecutive5xx);

    let split = OutlierDetection { split: true, consecutive_local: 2, ..detection() };
    let world = World::new(split, &[A, B]);
    world.answers(A, &[500, 500]);
    world.at(A).active.unanswered();
    world.answers(A, &[200]);
    world.at(A).active.unanswered();
    assert_eq!(world.out(), [], "neither row is whole: an answer means that it can be reached");
    world.at(A).active.unanswered();
    assert_eq!(world.live.ejections()[0].reason, EjectionReason::ConsecutiveLocal);
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_to_an_ejected_endpoint_changes_nothing() {
    let world = World::new(detection(), &[A, B]);
    let under_way: Vec<Picked> = (0..3).map(|_| world.at(A)).collect();
    world.answers(A, &[500; 3]);
    under_way.iter().for_each(|picked| picked.active.answered(500));
    assert_eq!(world.out(), [(1, 30, 1)]);
    assert_eq!(world.live.ejection_counts()[0].total, 1);
    // Told after its time, before anybody chose: the first of a new row.
    wait(30).await;
    under_way[0].active.answered(500);
    assert_eq!(world.used(), format!("{A} {B}"));
    world.answers(A, &[500]);
    assert_eq!(world.out(), []);
    world.answers(A, &[500]);
    assert_eq!(world.out(), [(1, 60, 2)]);
}

#[tokio::test(start_paused = true)]
async fn ejections_outlive_changes_of_configuration() {
    let mut world = World::new(detection(), &[A, B, C]);
    world.answers(A, &[500; 3]);
    world.answers(B, &[500, 500]);
    world.change(rules(Some(detection()), LoadBalancer::RoundRobin), &[A, B, C, D]);
    wait(1).await;
    assert_eq!(world.used(), format!("{B} {C} {D}"));
    // A lower threshold holds from the next answer on.
    let stricter = OutlierDetection { consecutive_5xx: 1, ..detection() };
    world.change(rules(Some(stricter), LoadBalancer::RoundRobin), &[A, B, C]);
    world.answers(B, &[500]);
    assert_eq!(world.used(), C);
    // Without the policy all are used, and none is shown; with it they are out as before.
    world.change(rules(None, LoadBalancer::RoundRobin), &[A, B, C]);
    assert_eq!((world.used(), world.out()), (format!("{A} {B} {C}"), vec![]));
    world.answers(C, &[500; 9]);
    world.change(rules(Some(detection()), LoadBalancer::RoundRobin), &[A, B, C]);
    assert_eq!(world.used(), C);
    // A longer base holds for those who are out, too.
    let longer = OutlierDetection { base_ejection: Duration::from_secs(60), ..detection() };
    world.change(rules(Some(longer), LoadBalancer::RoundRobin), &[A, B, C]);
    assert_eq!(world.out(), [(1, 59, 1), (2, 69, 1)]);
}

#[tokio::test(start_paused = true)]
async fn who_has_left_takes_no_place() {
    let one = OutlierDetection { max_ejection_percent: 50, ..detection() };
    let mut world = World::new(one.clone(), &[A, B]);
    world.answers(A, &[500; 3]);
    let late = world.at(B);
    world.change(rules(Some(one.clone()), LoadBalancer::RoundRobin), &[B, C]);
    assert_eq!(world.used(), format!("{B} {C}"));
    world.answers(C, &[500; 3]);
    assert_eq!(world.used(), B);
    // Whoever comes back starts anew, and what is said of one that has left is nothing.
    world.change(rules(Some(one), LoadBalancer::RoundRobin), &[A, C]);
    assert_eq!(world.used(), A);
    wait(100).await;
    (0..3).for_each(|_| late.active.answered(500));
    assert_eq!(world.out(), []);
}

#[tokio::test(start_paused = true)]
async fn another_client_is_not_concerned() {
    let world = World::new(detection(), &[A, B]);
    world.answers(A, &[500; 3]);
    let other = pod("other", &["10.0.1.10"], "");
    let web = world.live.snapshot.services.values().next().unwrap();
    let policy = &world.live.snapshot.destination_rules["shop"][0].policy;
    let balancer = world.live.upstream(Ask { policy, ..ask(&other, web) });
    let choice = Choice { tried: &[], leave: &[], hash: None, draw: 0 };
    assert!((0..2).any(|_| balancer.pick(&choice).unwrap().endpoint.address == A.parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_key_leaves_an_ejected_endpoint_and_comes_back() {
    let mut world = World::new(detection(), &[A, B, C, D]);
    let ring = LoadBalancer::RingHash { minimum: 1_024 };
    world.change(rules(Some(detection()), ring), &[A, B, C, D]);
    let go = |world: &World, hash| {
        let web = world.live.snapshot.services.values().next().unwrap();
        let policy = &world.live.snapshot.destination_rules["shop"][0].policy;
        let balancer = world.live.upstream(Ask { policy, ..ask(&world.client, web) });
        balancer.pick(&Choice { tried: &[], leave: &[], hash: Some(hash), draw: 0 }).unwrap()
    };
    let keys = || (0..300_u32).map(|key| crate::balance::hash_of(&key.to_be_bytes()));
    let before: Vec<_> = keys().map(|key| go(&world, key).endpoint.address).collect();
    let first = keys().next().unwrap();
    (0..3).for_each(|_| go(&world, first).active.answered(500));
    for (key, old) in keys().zip(&before) {
        let new = go(&world, key).endpoint.address;
        assert_eq!(new == *old, *old != before[0]);
    }
    wait(30).await;
    assert!(keys().zip(&before).all(|(key, old)| go(&world, key).endpoint.address == *old));
}

#[tokio::test(start_paused = true)]
async fn tried_and_ejected_together() {
    let world = World::new(detection(), &[A, B, C]);
    world.answers(A, &[500; 3]);
    let (a, b) = (A.parse().unwrap(), B.parse().unwrap());
    let next = world.pick(&[b]).unwrap().endpoint.address;
    assert_eq!(next, C.parse().unwrap());
    let last = world.pick(&[b, next]).unwrap().endpoint.address;
    assert_ne!(last, a, "rather one that was tried than one that is ejected");
}

/// Errors from many threads: nobody is lost, and each endpoint is ejected once.
#[test]
fn threads_eject_once() {
    const THREADS: u32 = 8;
    let many = OutlierDetection { consecutive_5xx: THREADS * 50, ..detection() };
    for _ in 0..20 {
        let world = World::new(many.clone(), &[A, B]);
        let (a, b) = (world.at(A), world.at(B));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for at in 0..50 {
                        a.active.answered(500);
                        b.active.answered(if at == 25 { 200 } else { 500 });
                    }
                });
            }
        });
        assert_eq!(world.live.ejection_counts()[0].total, 1);
        assert_eq!(world.used(), B, "the last error of all made it enough");
    }
}

const CAP: Duration = Duration::from_secs(300);

proptest! {
    /// Each ejection in a row is a base longer than the one before, up to the cap; health between them
    /// takes back a base for each tick.
    #[test]
    fn ejections_grow_by_a_base_to_their_cap(
        base in 1_u64..1_000, gaps in prop::collection::vec(0_u64..5, 1..60)
    ) {
        let base = Duration::from_secs(base);
        let mut times = 0;
        for ticks in gaps {
            let (before, left) = (ejection_time(base, times), decayed(times, ticks));
            times = next_times(times, ticks, base);
            let time = ejection_time(base, times);
            prop_assert!(time >= base && time <= CAP.max(base));
            prop_assert!(times == left + 1 || ejection_time(base, left) == CAP.max(base));
            if ticks == 0 {
                prop_assert_eq!(time, (before + base).min(CAP.max(base)));
            }
            if time < CAP.max(base) {
                prop_assert_eq!(time, base * times);
            }
        }
        prop_assert_eq!(next_times(times, u64::MAX, base), 1, "healthy for long: as the first time");
    }

    /// Whatever is answered and however long it takes: never more are out than may be, each for its
    /// time, and one whose streak is long enough goes if there is room.
    #[test]
    fn ejections_keep_to_their_bounds(
        percent in 0_u32..=100,
        base in 1_u64..400,
        steps in prop::collection::vec((0_usize..5, any::<bool>(), 0_u64..700), 1..40),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let base = Duration::from_secs(base);
            let detection = OutlierDetection {
                max_ejection_percent: percent, base_ejection: base, ..detection()
            };
            let addresses = [A, B, C, D, "10.0.0.5:8080"];
            let world = World::new(detection, &addresses);
            let guards = addresses.map(|address| world.at(address));
            let most = (addresses.len() * percent as usize / 100).max(1);
            for (at, fails, seconds) in steps {
                let name = u8::try_from(at + 1).unwrap();
                let is_out = |out: &[(u8, u64, u32)]| out.iter().any(|(last, ..)| *last == name);
                let before = world.out();
                for _ in 0..3 {
                    guards[at].active.answered(if fails { 500 } else { 200 });
                }
                let out = world.out();
                prop_assert!(out.len() <= most, "{out:?}");
                let goes = fails && before.len() < most;
                prop_assert_eq!(is_out(&out), is_out(&before) || goes, "{:?}", out);
                for (last, remaining, times) in &out {
                    let time = ejection_time(base, *times).as_secs();
                    // Until the first tick of ten seconds after it.
                    prop_assert!(*remaining <= time + 10, "{out:?}");
                    if *last == name && !is_out(&before) {
                        prop_assert!(*remaining >= time, "{out:?}");
                    }
                }
                wait(seconds).await;
            }
            Ok(())
        })?;
    }
}
