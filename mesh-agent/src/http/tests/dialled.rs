//! Requests whose endpoint is the address that the client dialled, and those for which it must not be.

use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{LoadBalancer, Protocol};

const HOST: &str = "web.shop.svc.cluster.local";

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
