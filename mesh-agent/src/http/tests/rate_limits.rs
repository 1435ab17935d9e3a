//! Rate limits, through the whole engine.

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, object, service, snapshot};
use crate::model::{
    Callers, Cors, Fault, FaultAbort, HttpMatch, HttpRule, KeyMatch, Protocol, Rate, RateLimit,
    RateMatch, ServiceKey, Share, StringMatch,
};

const HOST: &str = "web.shop.svc.cluster.local";
const OTHER: &str = "10.96.0.2:80";

/// Four requests at once, ten a second.
fn limit(name: &str) -> RateLimit {
    RateLimit {
        object: object("RateLimit", "web"),
        name: name.into(),
        callers: Callers::default(),
        matches: Vec::new(),
        rate: Rate::new(10, Duration::from_secs(1), Some(4)),
    }
}

/// `web` with its only endpoint A, whose requests go by `rule`; `front`, which sends all to `web`.
fn mesh(rule: HttpRule, limits: Vec<RateLimit>) -> Arc<Snapshot> {
    let http = |port| (port, Protocol::Http);
    let web = service(("shop", "web"), "10.96.0.1", http(80), vec![endpoint(A, "v1")]);
    let front = service(("shop", "front"), "10.96.0.2", http(80), vec![endpoint(B, "v1")]);
    let front_host = front.hostname.to_string();
    let routes = vec![
        virtual_service("web", &[HOST], vec![rule]),
        virtual_service("front", &[&front_host], vec![to_web()]),
    ];
    let pods = [client(), pod("other", &["10.0.0.8"], "")];
    let mut snapshot = Arc::unwrap_or_clone(snapshot(&pods, vec![web, front], routes, vec![]));
    let web = ServiceKey { namespace: "shop".into(), name: "web".into() };
    snapshot.rate_limits.insert(web, limits.into_iter().map(Arc::new).collect());
    Arc::new(snapshot)
}

fn to_web() -> HttpRule {
    forwarding(forward(&[("web", None, 1)]))
}

fn world(rule: HttpRule, limits: Vec<RateLimit>) -> (World, Heads) {
    let world = World::new(mesh(rule, limits));
    let heads = world.answers(A, HttpVersion::Http1, "A");
    (world, heads)
}

/// How many of `count` requests, sent one after the other at one moment, are answered 200 and 429.
async fn ask(world: &World, count: usize, request: impl Fn() -> Request<Body>) -> (usize, usize) {
    let mut client = world.http1(VIP).await;
    let (mut good, mut refused) = (0, 0);
    for _ in 0..count {
        client.ready().await.unwrap();
        let response = client.send_request(request()).await.unwrap();
        match response.status().as_u16() {
            200 => good += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
        text(response).await;
    }
    (good, refused)
}

#[test]
fn beyond_the_limit_nothing_reaches_the_service() {
    run(async {
        let (world, heads) = world(to_web(), vec![limit("all")]);
        assert_eq!(ask(&world, 10, || get("web", "/")).await, (4, 6));
        let response = world.http1(VIP).await.send_request(get("web", "/")).await.unwrap();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert!(!response.headers().contains_key("x-envoy-ratelimited"));
        assert!(!response.headers().contains_key("x-envoy-overloaded"));
        assert_eq!(text(response).await, "local_rate_limited");
        assert_eq!(heads.borrow().len(), 4);
        assert_eq!(world.counted(), ["200 - 4", "429 RL 7"]);
        let mut metrics = String::new();
        prometheus_client::encoding::text::encode(&mut metrics, &world.registry).unwrap();
        let line = "malha_rate_limited_requests_total{rate_limit=\"shop/web\",limit=\"all\",\
                    source_workload=\"client\",source_workload_namespace=\"shop\"} 7";
        assert!(metrics.contains(line), "{metrics}");
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(ask(&world, 10, || get("web", "/")).await, (2, 8));
    });
}

#[test]
fn another_pod_has_its_own() {
    run(async {
        let (world, _) = world(to_web(), vec![limit("all")]);
        assert_eq!(ask(&world, 5, || get("web", "/")).await, (4, 1));
        let other = pod("other", &["10.0.0.8"], "");
        let response = world.http1_of(&other, VIP).await.send_request(get("web", "/")).await;
        assert_eq!(response.unwrap().status(), 200);
    });
}

#[test]
fn the_first_limit_that_is_for_a_request_counts_it_and_no_other_does() {
    run(async {
        let of = |request: HttpMatch| vec![RateMatch { route: None, request }];
        let prefix = Some(StringMatch::Prefix("/api".into()));
        let one = KeyMatch { key: "x-tenant".into(), value: StringMatch::Exact("a".into()) };
        let batch = Callers { namespace: Some("batch".into()), ..Callers::default() };
        let limits = vec![
            RateLimit { callers: batch, ..limit("elsewhere") },
            RateLimit {
                matches: of(HttpMatch { uri: prefix, ..HttpMatch::default() }),
                ..limit("api")
            },
            RateLimit {
                matches: of(HttpMatch { headers: vec![one], ..HttpMatch::default() }),
                ..limit("tenant")
            },
        ];
        let (world, _) = world(to_web(), limits);
        let tenant = |path: &str| {
            let mut request = get("web", path);
            request.headers_mut().insert("x-tenant", "a".parse().unwrap());
            request
        };
        assert_eq!(ask(&world, 10, || tenant("/api/x")).await, (4, 6));
        assert_eq!(ask(&world, 10, || tenant("/")).await, (4, 6));
        assert_eq!(ask(&world, 10, || get("web", "/")).await, (10, 0));
    });
}

#[test]
fn a_limit_may_be_for_one_rule() {
    run(async {
        let of = |name: &str| RateMatch { route: Some(name.into()), request: HttpMatch::default() };
        let limits = || vec![RateLimit { matches: vec![of("other"), of("named")], ..limit("one") }];
        let (world, _) = world(HttpRule { name: "named".into(), ..to_web() }, limits());
        assert_eq!(ask(&world, 5, || get("web", "/")).await, (4, 1));
        world.change(mesh(HttpRule { name: "renamed".into(), ..to_web() }, limits()));
        assert_eq!(ask(&world, 5, || get("web", "/")).await, (5, 0));
    });
}

#[test]
fn a_rule_of_another_host_is_no_way_around() {
    run(async {
        let (world, heads) = world(to_web(), vec![limit("all")]);
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(world.get(OTHER, "front", "/").await.0.as_u16());
        }
        assert_eq!(answers, [200, 200, 200, 200, 429, 429]);
        assert_eq!(heads.borrow().len(), 4);
    });
}

#[test]
fn the_limit_comes_before_fault_and_cors() {
    run(async {
        let abort = Some((FaultAbort::Http(StatusCode::IM_A_TEAPOT), Share::ALL));
        let rule = HttpRule {
            fault: Some(Box::new(Fault { delay: None, abort })),
            cors: Some(Box::new(Cors {
                allow_origins: vec![StringMatch::Present],
                ..Cors::default()
            })),
            ..to_web()
        };
        let (world, heads) = world(rule, vec![limit("all")]);
        let preflight = || {
            let request = Request::options("/").header("host", "web").header("origin", "x");
            request.header("access-control-request-method", "GET").body(full("")).unwrap()
        };
        for request in [preflight(), preflight(), get("web", "/"), get("web", "/")] {
            let response = world.http1(VIP).await.send_request(request).await.unwrap();
            assert_ne!(response.status(), 429);
        }
        for request in [preflight(), get("web", "/")] {
            let response = world.http1(VIP).await.send_request(request).await.unwrap();
            assert_eq!(response.status(), 429);
        }
        assert_eq!((heads.borrow().len(), world.total("429 RL")), (0, 2));
    });
}

#[test]
fn a_grpc_client_gets_a_status_of_its_own() {
    run(async {
        let none = Rate::new(0, Duration::from_secs(1), None);
        let (world, _) = world(to_web(), vec![RateLimit { rate: none, ..limit("none") }]);
        let mut request = get("web", "/");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = world.http1(VIP).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "local_rate_limited");
    });
}
