//! Requests whose endpoint is the address that the client dialled, and those for which it must not be.

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{LoadBalancer, Protocol, Service, ServiceKind};

const HOST: &str = "web.shop.svc.cluster.local";
/// What clients resolve names outside the mesh to.
const OUTSIDE: &str = "198.51.100.1:80";

/// Plaintext to a virtual address would be refused under STRICT, and carry no identity under
/// PERMISSIVE.
#[test]
fn passthrough_does_not_leave_the_mesh_for_a_virtual_address() {
    run(async {
        let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), vec![endpoint(A, "")]);
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
    for (address, answer) in [(A, "web"), (B, "api"), (VIP, "virtual address"), (OUTSIDE, "outside")]
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
