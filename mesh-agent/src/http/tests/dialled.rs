//! Requests whose endpoint is the address that the client dialled, and those for which it must not be.

use futures_util::future::join_all;

use super::external::external;
use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{
    ConnectionPool, LoadBalancer, OutlierDetection, Protocol, Resolution, RetryOn, RetryPolicy,
    Service, ServiceKey, ServiceKind, TrafficPolicy, Visibility,
};

const HOST: &str = "web.shop.svc.cluster.local";
/// What clients resolve names outside the mesh to.
const OUTSIDE: &str = "198.51.100.1:80";

/// Plaintext to a virtual address would be refused under STRICT, and carry no identity under
/// PERMISSIVE.
#[test]
fn passthrough_does_not_leave_the_mesh_for_a_virtual_address() {
    run(async {
        let web =
            service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), vec![endpoint(A, "")]);
        let passthrough = rule(HOST, &[], LoadBalancer::Passthrough);
        let world = World::new(snapshot(&[client()], vec![web], vec![], vec![passthrough]));
        world.answers(A, HttpVersion::Http1, "pod");
        world.answers(VIP, HttpVersion::Http1, "virtual address");
        assert_eq!(world.get(VIP, "web", "/").await.1, "pod");
    });
}

/// An alias of `name`.
fn alias(own: &str, name: &str) -> Service {
    let mut made = service(("shop", own), "10.9.9.9", (80, Protocol::Http), vec![]);
    made.addresses.clear();
    made.kind = ServiceKind::ExternalName(name.into());
    made
}

/// Routes of `host` lead to `to`: `known` is an alias of `api`, whose pod is B; `unknown` of a host
/// outside.
fn aliases(host: &str, to: &str) -> World {
    let http = |port| (port, Protocol::Http);
    let services = vec![
        service(("shop", "web"), "10.96.0.1", http(80), vec![endpoint(A, "")]),
        service(("shop", "api"), "10.96.0.2", http(8000), vec![endpoint(B, "")]),
        alias("twice", "known.shop.svc.cluster.local"),
        alias("known", "api.shop.svc.cluster.local"),
        alias("unknown", "api.example.com"),
        alias("circle", "circle.shop.svc.cluster.local"),
    ];
    let routes = virtual_service("v", &[host], vec![forwarding(forward(&[(to, None, 1)]))]);
    let world = World::new(snapshot(&[client()], services, vec![routes], vec![]));
    for (address, answer) in
        [(A, "web"), (B, "api"), (VIP, "virtual address"), (OUTSIDE, "outside")]
    {
        world.answers(address, HttpVersion::Http1, answer);
    }
    world
}

#[test]
fn a_route_to_an_alias_leads_where_the_alias_does() {
    run(async {
        for to in ["known", "twice"] {
            let world = aliases(HOST, to);
            assert_eq!(world.get(VIP, "web", "/").await.1, "api", "{to}");
        }
    });
}

/// Not to the server whose address the client happened to dial.
#[test]
fn a_route_to_an_alias_of_a_host_outside_leads_nowhere() {
    run(async {
        for to in ["unknown", "circle"] {
            let world = aliases(HOST, to);
            assert_eq!(world.get(VIP, "web", "/").await.0, 503, "{to}");
            assert_eq!((world.dials(), world.counted()), (0, vec!["503 NC 1".to_owned()]));
        }
    });
}

#[test]
fn who_has_resolved_an_alias_gets_the_address_dialled() {
    run(async {
        let world = aliases("unknown.shop.svc.cluster.local", "unknown");
        for host in ["unknown", "unknown.shop"] {
            assert_eq!(world.get(OUTSIDE, host, "/").await.1, "outside", "by its routes");
        }
        assert_eq!(aliases(HOST, "web").get(OUTSIDE, "unknown", "/").await.1, "outside");
        let world = aliases("api.example.com", "unknown");
        assert_eq!(world.get(OUTSIDE, "api.example.com", "/").await.1, "outside", "by its name");
        // A virtual address is the mesh's, whatever the Host.
        let world = aliases("unknown.shop.svc.cluster.local", "unknown");
        assert_eq!(world.get(VIP, "unknown", "/").await.1, "web");
    });
}

/// A mesh with the service `none.net`, whose endpoint is what is dialled.
fn dialled_by(policy: TrafficPolicy) -> World {
    let mut destination = rule("none.net", &[], LoadBalancer::Random);
    destination.policy = policy;
    let retrying = |mut forward: crate::model::Forward| {
        forward.retries = RetryPolicy { on: RetryOn::SERVER_ERROR, ..RetryPolicy::default() };
        forwarding(forward)
    };
    let routes = retrying(forward(&[("none.net", None, 1)]));
    let routes = virtual_service("v", &["none.net"], vec![routes]);
    let mut made =
        Arc::unwrap_or_clone(snapshot(&[client()], vec![], vec![routes], vec![destination]));
    let none = external("none.net", Resolution::Dialled, Visibility::Everyone, &[]);
    made.external.insert(&none);
    made.services_by_host.insert(none.hostname.clone(), none.clone());
    made.services.insert(none.key.clone(), none);
    made.external.sort();
    World::new(Arc::new(made))
}

#[test]
fn limits_hold_where_the_endpoint_is_what_was_dialled() {
    run(async {
        let pool = ConnectionPool { max_requests: 3, ..ConnectionPool::default() };
        let world = dialled_by(TrafficPolicy { pool, ..TrafficPolicy::default() });
        let slow = |_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Response::new(full("slow"))
        };
        world.listen(OUTSIDE, hyper(HttpVersion::Http1, slow));
        let asked = (0..10).map(|_| world.get(OUTSIDE, "none.net", "/"));
        let answers = join_all(asked).await;
        assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 3);
        assert_eq!((world.total("200 -"), world.total("503 UO")), (3, 7));

        let pool = ConnectionPool { max_retries: 0, ..ConnectionPool::default() };
        let world = dialled_by(TrafficPolicy { pool, ..TrafficPolicy::default() });
        let failing = |_| async {
            let mut response = Response::new(full("no"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        };
        world.listen(OUTSIDE, hyper(HttpVersion::Http1, failing));
        assert_eq!(world.get(OUTSIDE, "none.net", "/").await.0, 503);
        assert_eq!(world.counted(), ["503 UO 1"], "no leave to try again");
    });
}

/// The pod that a client of a headless service has chosen counts as any other.
#[test]
fn a_headless_pod_that_fails_is_left_out() {
    run(async {
        let mut pods = service(
            ("shop", "pods"),
            "10.9.9.9",
            (80, Protocol::Http),
            vec![endpoint(A, ""), endpoint(B, "")],
        );
        pods.addresses.clear();
        pods.kind = ServiceKind::Headless;
        let outlier = OutlierDetection {
            consecutive_5xx: 3,
            max_ejection_percent: 100,
            ..OutlierDetection::default()
        };
        let mut destination = rule("pods.shop.svc.cluster.local", &[], LoadBalancer::Random);
        destination.policy.outlier = Some(Arc::new(outlier));
        let mut made =
            Arc::unwrap_or_clone(snapshot(&[client()], vec![pods], vec![], vec![destination]));
        for address in [A, B] {
            let key = ServiceKey { namespace: "shop".into(), name: "pods".into() };
            made.headless_by_endpoint.insert(address.parse().unwrap(), (key, 80));
        }
        let world = World::new(Arc::new(made));
        let failing = |_| async {
            let mut response = Response::new(full("A"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        };
        world.listen(A, hyper(HttpVersion::Http1, failing));
        world.answers(B, HttpVersion::Http1, "B");
        for _ in 0..3 {
            assert_eq!(
                world.get(A, "pods", "/").await,
                (StatusCode::INTERNAL_SERVER_ERROR, "A".into())
            );
        }
        assert_eq!(world.live.load().ejections().len(), 1);
        assert_eq!(world.get(A, "pods", "/").await, (StatusCode::OK, "B".to_owned()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.get(A, "pods", "/").await.1, "A", "its time is over");
    });
}
