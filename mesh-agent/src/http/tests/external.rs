//! Services of `ServiceEntry` objects, through the whole engine: found by Host on any address, routed
//! as any other.

use std::time::Duration;

use tokio::time::Instant;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, object, rule, service, snapshot};
use crate::model::{
    Action, Endpoint, External, LoadBalancer, OutboundPolicy, Protocol, Resolution, Service,
    ServiceKind, VirtualService, Visibility, WeightedDestination,
};

/// Where clients think that everything outside is.
const SOMEWHERE: &str = "198.51.100.1:80";

/// A service of an entry in `shop`, on port 80.
pub(super) fn external(
    host: &str,
    resolution: Resolution,
    visibility: Visibility,
    endpoints: &[(&str, &str)],
) -> Arc<Service> {
    let endpoints = endpoints.iter().map(|(address, version)| Endpoint {
        workload: None,
        labels: Some(Arc::new([("version".into(), (*version).into())].into())),
        ..endpoint(address, "")
    });
    let mut made = service(("shop", host), "10.9.9.9", (80, Protocol::Http), endpoints.collect());
    made.hostname = host.into();
    made.addresses.clear();
    made.kind = ServiceKind::External(Box::new(External {
        object: object("ServiceEntry", host),
        visibility,
        is_internal: false,
        resolution,
        ranges: Vec::new(),
        subject_alt_names: Arc::default(),
    }));
    Arc::new(made)
}

/// Routes of a host to itself, within a second.
fn within_a_second(host: &str, to: &str, subset: Option<&str>) -> VirtualService {
    let mut forward = forward(&[(to, subset, 1)]);
    forward.timeout = Some(Duration::from_secs(1));
    for destination in &mut forward.destinations {
        *destination = WeightedDestination { host: to.into(), ..destination.clone() };
    }
    virtual_service(host, &[host], vec![forwarding(forward)])
}

fn mesh(outbound: OutboundPolicy) -> World {
    let bank = || Visibility::Namespaces(vec!["bank".into()]);
    let everyone = || Visibility::Everyone;
    let pending = Resolution::Dns { names: ["late.net".into()].into(), pending: true };
    let services = [
        external("api.net", Resolution::Static, everyone(), &[(A, "v1"), (B, "v2")]),
        external("*.wild.net", Resolution::Dialled, everyone(), &[]),
        external("secret.net", Resolution::Static, bank(), &[(A, "")]),
        external("late.net", pending, everyone(), &[]),
        external("nowhere.net", Resolution::Static, everyone(), &[]),
    ];
    let routes = vec![
        within_a_second("api.net", "api.net", Some("v2")),
        within_a_second("slow.wild.net", "*.wild.net", None),
        within_a_second("late.net", "late.net", None),
    ];
    let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), vec![endpoint(A, "")]);
    let rules = vec![rule("api.net", &["v1", "v2"], LoadBalancer::Random)];
    let mut made = Arc::unwrap_or_clone(snapshot(&[client()], vec![web], routes, rules));
    for one in services {
        made.external.insert(&one);
        made.services_by_host.insert(one.hostname.clone(), one.clone());
        made.services.insert(one.key.clone(), one);
    }
    made.external.sort();
    made.outbound = outbound;
    let world = World::new(Arc::new(made));
    world.answers(A, HttpVersion::Http1, "v1");
    world.answers(B, HttpVersion::Http1, "v2");
    world.answers(SOMEWHERE, HttpVersion::Http1, "somewhere");
    world
}

#[test]
fn the_host_finds_the_service_wherever_it_was_dialled() {
    run(async {
        let world = mesh(OutboundPolicy::AllowAny);
        for (host, expected) in [
            ("api.net", "v2"),
            ("API.net:80", "v2"),
            // As dialled: one that says so, and those that are not there for this client, or not yet.
            ("a.wild.net", "somewhere"),
            ("secret.net", "somewhere"),
            ("late.net", "somewhere"),
            ("other.net", "somewhere"),
        ] {
            let (status, text) = world.get(SOMEWHERE, host, "/").await;
            assert_eq!((status.as_u16(), &*text), (200, expected), "{host}");
        }
        // Also at the address of another service, as with Istio's listener of the port.
        assert_eq!(world.get(VIP, "api.net", "/").await.1, "v2");
        let (status, text) = world.get(SOMEWHERE, "nowhere.net", "/").await;
        assert_eq!((status.as_u16(), &*text), (503, "no healthy upstream"));
    });
}

#[test]
fn only_registered_hosts_are_reached_where_the_mesh_says_so() {
    run(async {
        let world = mesh(OutboundPolicy::RegistryOnly);
        for (host, status) in
            [("api.net", 200), ("a.wild.net", 200), ("secret.net", 502), ("other.net", 502)]
        {
            assert_eq!(world.get(SOMEWHERE, host, "/").await.0, status, "{host}");
        }
    });
}

#[test]
fn a_time_out_holds_for_addresses_that_only_the_client_knows() {
    run(async {
        let world = mesh(OutboundPolicy::AllowAny);
        world.listen(SOMEWHERE, hyper(HttpVersion::Http1, |_| std::future::pending()));
        let start = Instant::now();
        let (status, text) = world.get(SOMEWHERE, "slow.wild.net", "/").await;
        assert_eq!((status.as_u16(), &*text), (504, "upstream request timeout"));
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    });
}

#[test]
fn a_route_reaches_the_service_of_the_same_host_that_its_client_sees() {
    run(async {
        let mut made =
            Arc::unwrap_or_clone(mesh(OutboundPolicy::AllowAny).live.load().snapshot.clone());
        // The route names that of another namespace, which was there before.
        let theirs = external(
            "api.net",
            Resolution::Static,
            Visibility::Namespaces(vec!["bank".into()]),
            &[(A, "v2")],
        );
        let theirs = Arc::new(Service {
            key: crate::model::ServiceKey { namespace: "bank".into(), name: "api.net".into() },
            ..Service::clone(&theirs)
        });
        let mut routes = VirtualService::clone(&made.virtual_services[0]);
        if let Some(Action::Forward(forward)) = routes.http.actions_mut().next() {
            forward.destinations[0].service = Some(theirs.key.clone());
        }
        made.virtual_services[0] = Arc::new(routes);
        made.services.insert(theirs.key.clone(), theirs);
        let world = World::new(Arc::new(made));
        world.answers(A, HttpVersion::Http1, "theirs");
        world.answers(B, HttpVersion::Http1, "ours");
        assert_eq!(world.get(SOMEWHERE, "api.net", "/").await.1, "ours");
    });
}
