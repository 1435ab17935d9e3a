//! Warm-up through `Live`, in paused time.

use std::time::Duration;

use super::*;
use crate::model::Warmup;

/// How many of 10,000 requests go to `address`.
fn share(live: &Live, client: &Arc<Workload>, policy: &TrafficPolicy, address: &str) -> u32 {
    let web = live.snapshot.services.values().next().unwrap();
    let draws = Draws::seeded(1);
    let address: SocketAddr = address.parse().unwrap();
    let ask = Ask { policy, ..ask(client, web) };
    let chosen = (0..10_000).filter(|_| {
        pick(live, &ask, draws.next()).is_some_and(|picked| picked.endpoint.address == address)
    });
    u32::try_from(chosen.count()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_grows_into_its_share() {
    let warmup =
        Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    for balancer in [LoadBalancer::RoundRobin, LoadBalancer::LeastRequest] {
        let policy = TrafficPolicy { warmup: Some(warmup), ..by(balancer) };
        let client = pod("client", &["10.0.1.9"], "");
        let world = |endpoints: &[(&str, &str)]| {
            snapshot(std::slice::from_ref(&client), vec![web(endpoints)], vec![], vec![])
        };
        let live = Live::new(world(&[(A, "v1")]));
        assert_eq!(share(&live, &client, &policy, A), 10_000, "the first is there from the start");
        let live = live.next(world(&[(A, "v1"), (B, "v1")]));
        // 0.1 of 1.1, 0.5 of 1.5, then half. Five standard deviations are 250 at most.
        for (wait, expected) in [(0, 909), (50, 3_333), (50, 5_000)] {
            tokio::time::advance(Duration::from_secs(wait)).await;
            let count = share(&live, &client, &policy, B);
            assert!(count.abs_diff(expected) < 250, "{balancer:?} {wait}: {count}");
        }
        let again = live.next(world(&[(A, "v1"), (B, "v1")]));
        let count = share(&again, &client, &policy, B);
        assert!(count.abs_diff(5_000) < 250, "a new generation does not begin anew: {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_warm_up_a_new_endpoint_has_its_share_at_once() {
    let policy = by(LoadBalancer::RoundRobin);
    let client = pod("client", &["10.0.1.9"], "");
    let world = |endpoints: &[(&str, &str)]| {
        snapshot(std::slice::from_ref(&client), vec![web(endpoints)], vec![], vec![])
    };
    let live = Live::new(world(&[(A, "v1")]));
    share(&live, &client, &policy, A);
    let live = live.next(world(&[(A, "v1"), (B, "v1")]));
    assert_eq!(share(&live, &client, &policy, B), 5_000);
}
