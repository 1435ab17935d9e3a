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

/// How old an endpoint is does not depend on when this client asks, nor on what else changes.
#[tokio::test(start_paused = true)]
async fn warm_up_counts_from_an_endpoints_arrival() {
    let warmup =
        Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    let policy = TrafficPolicy { warmup: Some(warmup), ..by(LoadBalancer::RoundRobin) };
    let client = pod("client", &["10.0.1.9"], "");
    let world = |endpoints: &[(&str, &str)]| {
        snapshot(std::slice::from_ref(&client), vec![web(endpoints)], vec![], vec![])
    };
    let both = || world(&[(A, "v1"), (B, "v1")]);
    let used = |live: Live| {
        share(&live, &client, &policy, A);
        live
    };
    // An upstream that idles while B comes and grows old, and then sees an unrelated change.
    let live = used(Live::new(world(&[(A, "v1")]))).next(both());
    tokio::time::advance(Duration::from_secs(3_600)).await;
    assert_eq!(share(&live.next(both()), &client, &policy, B), 5_000, "an hour old");
    // B came before the client's first request.
    let live = Live::new(world(&[(A, "v1")])).next(both());
    let count = share(&live, &client, &policy, B);
    assert!(count.abs_diff(909) < 250, "0.1 of 1.1: {count}");
    // Once it has not been ready, it is new again.
    tokio::time::advance(Duration::from_secs(3_600)).await;
    let mut unready = web(&[(A, "v1"), (B, "v1")]);
    let mut endpoints = unready.ports[0].endpoints.to_vec();
    endpoints[1].readiness = Readiness::NotReady;
    unready.ports[0].endpoints = endpoints.into();
    let unready = snapshot(std::slice::from_ref(&client), vec![unready], vec![], vec![]);
    let live = used(live.next(unready)).next(both());
    let count = share(&live, &client, &policy, B);
    assert!(count.abs_diff(909) < 250, "{count}");
    // All that an agent finds when it starts is warm.
    let live = Live::new(Arc::default()).next(both());
    assert_eq!(share(&live, &client, &policy, B), 5_000);
}
