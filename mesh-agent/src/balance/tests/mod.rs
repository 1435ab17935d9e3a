//! Balancing through `Live`: state per upstream, carried over by key, shared by threads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use super::fixture::{endpoint, pod, rule, service, snapshot};
use super::{Ask, Choice, Draws, Live, Picked, share};
use crate::model::{
    DestinationRule, LoadBalancer, Protocol, Readiness, Service, Subset, TrafficPolicy, Workload,
};

mod hashing;
mod locality;
mod outlier;
mod warmup;

fn web(endpoints: &[(&str, &str)]) -> Service {
    let endpoints = endpoints.iter().map(|(at, version)| endpoint(at, version)).collect();
    service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), endpoints)
}

fn ask<'a>(source: &'a Arc<Workload>, service: &'a Service) -> Ask<'a> {
    Ask {
        source,
        service,
        port: &service.ports[0],
        subset: None,
        policy: &ROUND_ROBIN,
        dialled: "10.96.0.1:80".parse().unwrap(),
    }
}

static ROUND_ROBIN: LazyLock<TrafficPolicy> = LazyLock::new(|| by(LoadBalancer::RoundRobin));

fn by(load_balancer: LoadBalancer) -> TrafficPolicy {
    TrafficPolicy { load_balancer, ..TrafficPolicy::default() }
}

fn pick(live: &Live, ask: &Ask<'_>, draw: u64) -> Option<Picked> {
    live.upstream(*ask).pick(&Choice { tried: &[], leave: &[], hash: None, draw })
}

fn at(live: &Live, ask: &Ask<'_>) -> SocketAddr {
    pick(live, ask, 0).unwrap().endpoint.address
}

const A: &str = "10.0.0.1:8080";
const B: &str = "10.0.0.2:8080";

#[test]
fn turns_are_exact_across_threads_and_generations() {
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1"), (B, "v1")]);
    let world = snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]);
    let live = Arc::new(Live::new(world.clone()));
    let next = Arc::new(live.next(world));
    let counts: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = [&live, &next, &live, &next]
            .into_iter()
            .map(|live| {
                let (client, web) = (&client, &web);
                scope.spawn(move || {
                    let first: SocketAddr = A.parse().unwrap();
                    (0..500).filter(|_| at(live, &ask(client, web)) == first).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(counts.iter().sum::<usize>(), 1_000, "{counts:?}");
}

#[test]
fn one_clients_turn_is_not_anothers() {
    let (one, two) = (pod("one", &["10.0.0.8"], ""), pod("two", &["10.0.0.9"], ""));
    let web = web(&[(A, "v1"), (B, "v1")]);
    let live = Live::new(snapshot(&[one.clone(), two.clone()], vec![web.clone()], vec![], vec![]));
    let first = at(&live, &ask(&one, &web));
    for _ in 0..3 {
        at(&live, &ask(&two, &web));
    }
    assert_ne!(at(&live, &ask(&one, &web)), first);
    assert_eq!(live.upstream_count(), 2);
}

/// A Job's pods that send one request each.
#[test]
fn clients_begin_their_turns_at_different_endpoints() {
    let endpoints: Vec<_> = (1..=4).map(|last| format!("10.0.0.{last}:8080")).collect();
    let endpoints: Vec<_> = endpoints.iter().map(|address| (&**address, "v1")).collect();
    let web = web(&endpoints);
    let clients: Vec<_> = (0..400).map(|at| pod(&format!("job-{at}"), &["10.0.1.9"], "")).collect();
    let world = snapshot(&clients, vec![web.clone()], vec![], vec![]);
    let firsts = |live: &Live| -> Vec<SocketAddr> {
        clients.iter().map(|client| at(live, &ask(client, &web))).collect()
    };
    let first = firsts(&Live::new(world.clone()));
    let mut counts: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    first.iter().for_each(|address| *counts.entry(*address).or_default() += 1);
    // Five standard deviations of a binomial(400, 1/4) are 43.
    assert!(counts.values().all(|count| count.abs_diff(100) < 43), "{counts:?}");
    assert_eq!(counts.len(), 4);
    assert_eq!(firsts(&Live::new(world)), first, "the same in another process");
}

#[test]
fn active_requests_survive_a_new_generation_and_end_with_the_guard() {
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1"), (B, "v1")]);
    let world = snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]);
    let live = Live::new(world.clone());
    let busy = pick(&live, &ask(&client, &web), 0).unwrap();
    let live = live.next(world);
    let draws = Draws::seeded(3);
    let policy = by(LoadBalancer::LeastRequest);
    let least = || {
        let ask = Ask { policy: &policy, ..ask(&client, &web) };
        pick(&live, &ask, draws.next()).unwrap().endpoint.address
    };
    for _ in 0..50 {
        assert_eq!(least(), B.parse().unwrap());
    }
    drop(busy);
    let after: Vec<_> = (0..50).map(|_| least()).collect();
    assert!(after.contains(&A.parse().unwrap()), "the count went back to 0");
}

#[test]
fn what_left_the_configuration_is_forgotten() {
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1")]);
    let live =
        Live::new(snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]));
    at(&live, &ask(&client, &web));
    assert_eq!(live.next(live.snapshot.clone()).upstream_count(), 1);
    let without_service = snapshot(std::slice::from_ref(&client), vec![], vec![], vec![]);
    assert_eq!(live.next(without_service).upstream_count(), 0);
    at(&live, &ask(&client, &web));
    let without_client = snapshot(&[], vec![web.clone()], vec![], vec![]);
    assert_eq!(live.next(without_client).upstream_count(), 0);
}

#[test]
fn a_subset_that_is_gone_for_its_client_is_forgotten() {
    const HOST: &str = "web.shop.svc.cluster.local";
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1")]);
    let both = rule(HOST, &["v1", "v2"], LoadBalancer::RoundRobin);
    let with = |rules: Vec<DestinationRule>| {
        snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], rules)
    };
    let live = Live::new(with(vec![both.clone()]));
    let subsets = [None, both.subset("v1"), both.subset("v2")];
    for subset in subsets {
        pick(&live, &Ask { subset, ..ask(&client, &web) }, 0);
    }
    assert_eq!(live.upstream_count(), 3);
    let live = live.next(with(vec![rule(HOST, &["v1"], LoadBalancer::RoundRobin)]));
    assert_eq!(live.upstream_count(), 2);
    // Another client's rule has it still.
    let mut others = both.clone();
    others.workload_selector = [("app".into(), "other".into())].into();
    assert_eq!(live.next(with(vec![others])).upstream_count(), 1, "that without a subset");
}

#[test]
fn only_ready_endpoints_of_the_subset_in_a_family_that_the_client_has() {
    let mut web = web(&[(A, "v1"), (B, "v2"), ("[fd00::1]:8080", "v1"), ("10.0.0.3:8080", "v1")]);
    let mut endpoints = web.ports[0].endpoints.to_vec();
    endpoints[3].readiness = Readiness::NotReady;
    web.ports[0].endpoints = endpoints.into();
    let dr = rule("web.shop.svc.cluster.local", &["v1", "v2", "v3"], LoadBalancer::RoundRobin);
    let seen = |client: &Arc<Workload>, subset: Option<&Subset>, dialled: &str| {
        let live =
            Live::new(snapshot(std::slice::from_ref(client), vec![web.clone()], vec![], vec![]));
        let ask = Ask { subset, dialled: dialled.parse().unwrap(), ..ask(client, &web) };
        let mut seen: Vec<String> = (0..6)
            .filter_map(|_| pick(&live, &ask, 0))
            .map(|picked| picked.endpoint.address.to_string())
            .collect();
        seen.sort();
        seen.dedup();
        seen.join(" ")
    };
    let (v4, v6) = (pod("c4", &["10.0.0.9"], ""), pod("c6", &["fd00::9"], ""));
    let both = pod("c46", &["10.0.0.9", "fd00::9"], "");
    assert_eq!(seen(&v4, None, "10.96.0.1:80"), "10.0.0.1:8080 10.0.0.2:8080");
    assert_eq!(seen(&v4, dr.subset("v1"), "10.96.0.1:80"), A);
    assert_eq!(seen(&v4, dr.subset("v3"), "10.96.0.1:80"), "");
    assert_eq!(seen(&v6, None, "[fd00:96::1]:80"), "[fd00::1]:8080");
    assert_eq!(seen(&v6, dr.subset("v2"), "[fd00:96::1]:80"), "", "v2 has no address it can reach");
    assert_eq!(seen(&both, dr.subset("v2"), "[fd00:96::1]:80"), B, "the other family helps out");
    assert_eq!(seen(&both, None, "10.96.0.1:80"), "10.0.0.1:8080 10.0.0.2:8080");
}

#[test]
fn a_tried_endpoint_comes_last() {
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1"), (B, "v1")]);
    let live =
        Live::new(snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]));
    let (a, b): (SocketAddr, SocketAddr) = (A.parse().unwrap(), B.parse().unwrap());
    for policy in [LoadBalancer::LeastRequest, LoadBalancer::RoundRobin, LoadBalancer::Random] {
        let policy = by(policy);
        let balancer = live.upstream(Ask { policy: &policy, ..ask(&client, &web) });
        for draw in [0, u64::MAX / 3, u64::MAX] {
            let choice = Choice { tried: &[a], leave: &[], hash: None, draw };
            assert_eq!(balancer.pick(&choice).unwrap().endpoint.address, b);
            assert!(balancer.pick(&Choice { tried: &[a, b], ..choice }).is_some());
        }
    }
}

/// 90/10 by weight, then round robin in each subset: shares within five standard deviations, and
/// the members of a subset exactly even.
#[test]
fn round_robin_holds_inside_weighted_subsets() {
    let client = pod("client", &["10.0.0.9"], "");
    let web = web(&[(A, "v1"), (B, "v1"), ("10.0.0.3:8080", "v2"), ("10.0.0.4:8080", "v2")]);
    let dr = rule("web.shop.svc.cluster.local", &["v1", "v2"], LoadBalancer::RoundRobin);
    let live =
        Live::new(snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]));
    let draws = Draws::seeded(2_026);
    let mut counts: BTreeMap<SocketAddr, i64> = BTreeMap::new();
    for _ in 0..10_000 {
        let name = if share(draws.next(), 100) < 90 { "v1" } else { "v2" };
        let ask = Ask { subset: dr.subset(name), ..ask(&client, &web) };
        let picked = pick(&live, &ask, draws.next()).unwrap();
        *counts.entry(picked.endpoint.address).or_default() += 1;
    }
    let counts: Vec<i64> = counts.into_values().collect();
    assert!((counts[0] + counts[1] - 9_000).abs() < 150, "{counts:?}");
    assert!((counts[0] - counts[1]).abs() <= 1 && (counts[2] - counts[3]).abs() <= 1, "{counts:?}");
}

#[test]
fn terminating_endpoints_serve_only_where_none_is_ready() {
    use crate::model::Readiness::{NotReady, Ready, Terminating};
    let client = pod("client", &["10.0.0.9"], "");
    let first = |states: [Readiness; 2]| {
        let mut found = [endpoint(A, "v1"), endpoint(B, "v1")];
        for (endpoint, state) in found.iter_mut().zip(states) {
            endpoint.readiness = state;
        }
        let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), found.to_vec());
        let world = snapshot(std::slice::from_ref(&client), vec![web.clone()], vec![], vec![]);
        let live = Live::new(world);
        let mut seen: Vec<SocketAddr> = (0..4)
            .filter_map(|_| Some(pick(&live, &ask(&client, &web), 0)?.endpoint.address))
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(first([Terminating, Ready]), [B]);
    assert_eq!(first([Terminating, NotReady]), [A]);
    assert_eq!(first([Terminating, Terminating]), [A, B]);
    assert!(first([NotReady, NotReady]).is_empty());
}
