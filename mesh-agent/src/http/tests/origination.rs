//! Requests that go out in TLS of the agent's: for which server, and over whose connections. What TLS
//! itself does is `origination`'s.

use http::uri::Scheme;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{
    Alpn, LoadBalancer, Mirror, Protocol, Rewrite, ServiceKey, Share, TlsOrigination,
};

const HOST: &str = "web.shop.svc.cluster.local";

/// Service `web` at [`VIP`], and `mirror`, which gets copies; both with this `tls`.
fn world(protocol: Protocol, tls: Option<TlsOrigination>, rewrite: Option<&'static str>) -> World {
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), vec![endpoint(A, "")]);
    let mirror = service(("shop", "mirror"), "10.96.0.2", (80, protocol), vec![endpoint(B, "")]);
    let mut to = forward(&[("web", None, 1)]);
    to.mirrors = vec![Mirror {
        host: "mirror.shop.svc.cluster.local".into(),
        service: Some(ServiceKey { namespace: "shop".into(), name: "mirror".into() }),
        subset: None,
        port: None,
        share: Share::ALL,
    }];
    let authority = rewrite.map(http::HeaderValue::from_static);
    to.rewrite = Rewrite { authority, ..Rewrite::default() };
    let mut rule = rule("*.shop.svc.cluster.local", &[], LoadBalancer::Random);
    rule.policy.tls = tls.map(Arc::new);
    let routes = virtual_service("web", &[HOST], vec![forwarding(to)]);
    let world = World::new(snapshot(&[client()], vec![web, mirror], vec![routes], vec![rule]));
    let version = match protocol {
        Protocol::Http2 => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    world.answers(A, version, "a");
    world.answers(B, version, "b");
    world
}

/// The server names of the connections to an address, in the order in which they were opened.
fn secured(world: &World, address: &str) -> Vec<Option<String>> {
    let (dialled, tls) = (world.net.dialled.borrow(), world.net.secured.borrow());
    let of_address = dialled.iter().zip(&*tls).filter(|((_, at), _)| at.to_string() == address);
    let name = |tls: &Option<TlsTarget>| tls.as_ref()?.server_name.as_deref().map(str::to_owned);
    of_address.map(|(_, tls)| name(tls)).collect()
}

fn some(names: &[&str]) -> Vec<Option<String>> {
    names.iter().map(|name| Some((*name).to_owned())).collect()
}

#[test]
fn connections_of_one_server_name_are_not_another_ones() {
    run(async {
        let world = world(Protocol::Http, Some(TlsOrigination::default()), None);
        for host in ["a.example.com", "b.example.com:80", "A.example.com", "[::1]:80"] {
            assert_eq!(world.get(VIP, host, "/").await.1, "a", "{host}");
        }
        assert_eq!(secured(&world, A), some(&["a.example.com", "b.example.com", "::1"]));
        assert!(
            world.net.secured.borrow().iter().flatten().all(|tls| tls.alpn == Alpn::Http1),
            "as the connection is for HTTP/1.1"
        );
    });
}

#[test]
fn a_written_name_counts_for_all() {
    run(async {
        let settings = TlsOrigination { sni: Some("sni.example.com".into()), ..Default::default() };
        let world = world(Protocol::Http, Some(settings), None);
        for host in ["a.example.com", "b.example.com"] {
            assert_eq!(world.get(VIP, host, "/").await.1, "a");
        }
        assert_eq!(secured(&world, A), some(&["sni.example.com"]));
    });
}

#[test]
fn the_name_is_that_of_the_request_as_it_goes_out_and_copies_have_theirs() {
    run(async {
        let tls = Some(TlsOrigination::default());
        let world = world(Protocol::Http, tls, Some("outside.example.com"));
        assert_eq!(world.get(VIP, HOST, "/").await.1, "a");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(secured(&world, A), some(&["outside.example.com"]));
        assert_eq!(secured(&world, B), some(&["outside.example.com"]));
    });
}

#[test]
fn http2_says_that_it_goes_over_tls() {
    run(async {
        for (tls, scheme) in
            [(Some(TlsOrigination::default()), Scheme::HTTPS), (None, Scheme::HTTP)]
        {
            let is_tls = tls.is_some();
            let world = world(Protocol::Http2, tls, None);
            let heads = world.answers(A, HttpVersion::Http2, "a");
            assert_eq!(world.get(VIP, "a.example.com", "/").await.1, "a");
            assert_eq!(heads.borrow()[0].uri.scheme(), Some(&scheme));
            let offered = world.net.secured.borrow()[0].as_ref().map(|tls| tls.alpn);
            assert_eq!(offered, is_tls.then_some(Alpn::Http2));
        }
    });
}

#[test]
fn a_change_of_the_policy_opens_connections_anew() {
    run(async {
        let world = world(Protocol::Http, None, None);
        assert_eq!(world.get(VIP, "a.example.com", "/").await.1, "a");
        let mut next = Snapshot::clone(&world.live.load().snapshot);
        let rules = next.destination_rules.get_mut("shop").unwrap();
        let mut rule = crate::model::DestinationRule::clone(&rules[0]);
        rule.policy.tls = Some(Arc::default());
        rules[0] = Arc::new(rule);
        world.change(Arc::new(next));
        assert_eq!(world.get(VIP, "a.example.com", "/").await.1, "a");
        assert_eq!(secured(&world, A), [None, Some("a.example.com".to_owned())]);
    });
}
