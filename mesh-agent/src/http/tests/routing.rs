//! Router tables: which virtual host, which rule; and properties that hold for any request.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use proptest::prelude::*;
use regex::Regex;

use crate::balance::fixture::{endpoint, object, pod, service, snapshot};
use crate::http::router::{Head, Route, destination, route, virtual_host};
use crate::model::{
    Action, DirectResponse, Forward, HeaderOps, HostPattern, HttpMatch, HttpRule, KeyMatch,
    L4Routes, Protocol, RetryPolicy, Rewrite, ServiceKey, ServiceKind, Snapshot, StringMatch,
    VirtualService, Visibility, WeightedDestination,
};

/// A rule named `name` that answers by itself.
fn rule(name: &str, matches: Vec<HttpMatch>) -> HttpRule {
    HttpRule {
        name: name.into(),
        matches,
        action: Action::Direct(DirectResponse {
            status: StatusCode::OK,
            body: name.to_owned().into(),
        }),
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        fault: None,
        cors: None,
    }
}

pub(super) fn virtual_service(name: &str, hosts: &[&str], http: Vec<HttpRule>) -> VirtualService {
    VirtualService {
        object: object("VirtualService", name),
        hosts: hosts.iter().map(|host| HostPattern::parse(host)).collect(),
        visibility: Visibility::Everyone,
        created: 0,
        http: http.into(),
        l4: L4Routes::default(),
    }
}

pub(super) fn forward(destinations: &[(&str, Option<&str>, u32)]) -> Forward {
    let destinations: Vec<_> = destinations
        .iter()
        .map(|(name, subset, weight)| WeightedDestination {
            host: format!("{name}.shop.svc.cluster.local").into(),
            service: Some(ServiceKey { namespace: "shop".into(), name: (*name).into() }),
            subset: subset.map(Into::into),
            port: None,
            weight: *weight,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            authority: None,
        })
        .collect();
    Forward {
        total_weight: destinations.iter().map(|to| to.weight).sum::<u32>().max(1),
        destinations,
        rewrite: Rewrite::default(),
        timeout: None,
        retries: RetryPolicy::default(),
        mirrors: vec![],
    }
}

pub(super) fn forwarding(forward: Forward) -> HttpRule {
    HttpRule { action: Action::Forward(forward), ..rule("forward", vec![]) }
}

fn world() -> Arc<Snapshot> {
    let http = |port| (port, Protocol::Http);
    let mut alias = service(("shop", "alias"), "10.96.9.9", http(80), vec![]);
    alias.kind = ServiceKind::ExternalName("web.shop.svc.cluster.local".into());
    let mut pods =
        service(("shop", "pods"), "10.96.9.8", http(80), vec![endpoint("10.0.1.1:9000", "")]);
    pods.addresses.clear();
    pods.kind = ServiceKind::Headless;
    let services = vec![
        service(("shop", "web"), "10.96.0.1", http(80), vec![endpoint("10.0.0.1:8080", "")]),
        service(("shop", "api"), "10.96.0.2", http(8000), vec![endpoint("10.0.0.2:8080", "")]),
        service(("bank", "web"), "10.96.0.3", http(80), vec![]),
        alias,
        pods,
    ];
    let hidden = VirtualService {
        visibility: Visibility::Namespaces(vec!["bank".into()]),
        ..virtual_service("hidden", &["web.shop.svc.cluster.local"], vec![rule("hidden", vec![])])
    };
    let rules = vec![
        hidden,
        virtual_service("web", &["web.shop.svc.cluster.local"], vec![rule("web", vec![])]),
        virtual_service("bank", &["*.bank.svc.cluster.local"], vec![rule("bank", vec![])]),
        virtual_service(
            "foreign",
            &["example.com", "*.example.com"],
            vec![rule("foreign", vec![])],
        ),
    ];
    let mut world = Arc::unwrap_or_clone(snapshot(&[super::client()], services, rules, vec![]));
    let key = ServiceKey { namespace: "shop".into(), name: "pods".into() };
    world.headless_by_endpoint.insert("10.0.1.1:9000".parse().unwrap(), (key, 80));
    Arc::new(world)
}

fn head<'a>(uri: &'a Uri, headers: &'a HeaderMap, authority: &'a str) -> Head<'a> {
    Head { method: &Method::GET, uri, headers, authority }
}

/// `service:port` and the VirtualService, or what else became of the request.
fn chosen(world: &Snapshot, authority: &str, dialled: &str) -> String {
    let client = super::client();
    let Some(host) = virtual_host(world, &client, dialled.parse().unwrap(), authority) else {
        return "passthrough".to_owned();
    };
    let service = host.service.map_or("-".to_owned(), |found| found.key.to_string());
    let owner = host.virtual_service.map_or("-", |found| &*found.object.name);
    format!("{service}:{} {owner}", host.port)
}

#[test]
fn the_host_chooses_the_virtual_host_else_the_address_does() {
    let world = world();
    for (authority, dialled, expected) in [
        // Every way to say it from the client's namespace, whatever the port in the Host.
        ("web", "10.96.0.1:80", "shop/web:80 web"),
        ("web.shop", "10.96.0.1:80", "shop/web:80 web"),
        ("web.shop.svc", "10.96.0.1:80", "shop/web:80 web"),
        ("web.shop.svc.cluster.local", "10.96.0.1:80", "shop/web:80 web"),
        ("web.shop.svc.cluster.local.", "10.96.0.1:80", "shop/web:80 web"),
        ("WEB.Shop:8080", "10.96.0.1:80", "shop/web:80 web"),
        ("10.96.0.1", "10.96.0.1:80", "shop/web:80 web"),
        ("10.96.0.1:80", "10.96.0.1:80", "shop/web:80 web"),
        // The Host wins over the address.
        ("web", "10.96.0.3:80", "shop/web:80 web"),
        ("web.bank", "10.96.0.1:80", "bank/web:80 bank"),
        // Unknown, or not on this port, or not said at all: the address.
        ("nonsense", "10.96.0.1:80", "shop/web:80 web"),
        ("api", "10.96.0.1:80", "shop/web:80 web"),
        ("", "10.96.0.1:80", "shop/web:80 web"),
        ("web", "10.96.0.2:8000", "shop/api:8000 -"),
        ("web.shop.svc.other.domain", "10.96.0.2:8000", "shop/api:8000 -"),
        // Aliases and headless services.
        ("alias", "10.96.0.1:80", "shop/web:80 web"),
        ("pods", "10.0.1.1:9000", "shop/pods:80 -"),
        ("pod-0.pods.shop.svc.cluster.local", "10.0.1.1:9000", "shop/pods:80 -"),
        // Hosts of a VirtualService only: port 80 only, and the bare suffix is not covered.
        ("example.com", "93.184.216.34:80", "-:80 foreign"),
        ("a.example.com", "93.184.216.34:80", "-:80 foreign"),
        ("example.com", "93.184.216.34:8080", "passthrough"),
        ("example.org", "93.184.216.34:80", "passthrough"),
        // A pod's own address is no service.
        ("10.0.0.1:8080", "10.0.0.1:8080", "passthrough"),
        ("[fd00::1]:80", "[fd00::1]:80", "passthrough"),
    ] {
        assert_eq!(chosen(&world, authority, dialled), expected, "{authority} at {dialled}");
    }
}

/// The name of the rule that a request falls under.
fn ruled(rules: Vec<HttpRule>, uri: &str, headers: &[(&str, &str)], authority: &str) -> String {
    let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), vec![]);
    let rules = virtual_service("web", &["web.shop.svc.cluster.local"], rules);
    let world = snapshot(&[], vec![web], vec![rules], vec![]);
    let client = pod("client", &["10.0.0.9"], "v3");
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let uri = uri.parse().unwrap();
    let head = head(&uri, &map, authority);
    let host = virtual_host(&world, &client, super::VIP.parse().unwrap(), authority).unwrap();
    match route(&host, &client, &head) {
        Route::Rule(rule, _) => rule.name.to_string(),
        Route::Service(_) => "service".to_owned(),
        Route::NoRule => "none".to_owned(),
    }
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

fn regex(text: &str) -> StringMatch {
    StringMatch::Regex(Regex::new(&format!("^(?:{text})$")).unwrap())
}

fn key(key: &str, value: StringMatch) -> KeyMatch {
    KeyMatch { key: key.into(), value }
}

fn when(set: impl FnOnce(&mut HttpMatch)) -> Vec<HttpRule> {
    let mut entry = HttpMatch::default();
    set(&mut entry);
    vec![rule("hit", vec![entry]), rule("rest", vec![])]
}

type Request = (&'static str, &'static [(&'static str, &'static str)], &'static str);

/// A condition by itself: the requests that meet it, and those that do not.
fn check(rules: fn() -> Vec<HttpRule>, hits: &[Request], misses: &[Request]) {
    for (expected, requests) in [("hit", hits), ("rest", misses)] {
        for (uri, headers, authority) in requests {
            let found = ruled(rules(), uri, headers, authority);
            let condition = &rules()[0].matches;
            assert_eq!(found, expected, "{condition:?} {uri} {headers:?} {authority}");
        }
    }
}

#[test]
fn conditions_on_the_target() {
    check(
        || when(|m| m.uri = Some(exact("/a"))),
        &[("/a", &[], "web"), ("/a?q=1", &[], "web")],
        &[("/a/", &[], "web"), ("/A", &[], "web"), ("/", &[], "web")],
    );
    check(
        || when(|m| m.uri = Some(prefix("/foo"))),
        &[("/foo", &[], "web"), ("/foobar", &[], "web"), ("/foo/x", &[], "web")],
        &[("/fo", &[], "web"), ("/Foo", &[], "web"), ("/x/foo", &[], "web")],
    );
    check(
        || when(|m| (m.uri, m.ignore_uri_case) = (Some(prefix("/foo")), true)),
        &[("/FOObar", &[], "web")],
        &[("/fo", &[], "web")],
    );
    check(
        || when(|m| m.uri = Some(regex("/[0-9]+"))),
        &[("/42", &[], "web")],
        &[("/42x", &[], "web"), ("/a/42", &[], "web")],
    );
    check(
        || when(|m| m.authority = Some(exact("web:80"))),
        &[("/", &[], "web:80")],
        &[("/", &[], "web")],
    );
    check(
        || when(|m| m.scheme = Some(exact("https"))),
        &[("https://web/", &[], "web")],
        &[("/", &[], "web"), ("http://web/", &[], "web")],
    );
}

#[test]
fn conditions_on_headers_and_query() {
    check(
        || when(|m| m.headers = vec![key("x-a", exact("1")), key("x-b", StringMatch::Present)]),
        &[("/", &[("x-a", "1"), ("x-b", "")], "web"), ("/", &[("x-a", "1"), ("x-b", "é")], "web")],
        &[("/", &[("x-a", "1")], "web"), ("/", &[("x-a", "2"), ("x-b", "")], "web")],
    );
    check(
        || when(|m| m.headers = vec![key("x-a", exact("1,2"))]),
        &[("/", &[("x-a", "1"), ("x-a", "2")], "web")],
        &[("/", &[("x-a", "1")], "web")],
    );
    check(
        || when(|m| m.headers = vec![key(":method", exact("GET")), key("host", exact("web"))]),
        &[("/", &[], "web")],
        &[("/", &[], "web.shop")],
    );
    check(
        || when(|m| m.without_headers = vec![key("x-a", exact("1"))]),
        &[("/", &[], "web"), ("/", &[("x-a", "2")], "web")],
        &[("/", &[("x-a", "1")], "web")],
    );
    check(
        || when(|m| m.query = vec![key("q", prefix("a"))]),
        &[("/?q=abc", &[], "web"), ("/?x=1&q=a&q=b", &[], "web")],
        &[("/?q=b&q=a", &[], "web"), ("/?qq=a", &[], "web"), ("/", &[], "web")],
    );
    check(
        || when(|m| m.query = vec![key("q", exact(""))]),
        &[("/?q=", &[], "web"), ("/?q", &[], "web")],
        &[("/?q=1", &[], "web"), ("/?", &[], "web")],
    );
}

#[test]
fn conditions_on_the_client_and_the_port() {
    let ruled = |set: fn(&mut HttpMatch)| ruled(when(set), "/", &[], "web");
    assert_eq!(ruled(|m| m.port = Some(80)), "hit");
    assert_eq!(ruled(|m| m.port = Some(81)), "rest");
    assert_eq!(ruled(|m| m.source_namespace = Some("shop".into())), "hit");
    assert_eq!(ruled(|m| m.source_namespace = Some("bank".into())), "rest");
    assert_eq!(ruled(|m| m.source_labels = [("version".into(), "v3".into())].into()), "hit");
    assert_eq!(ruled(|m| m.source_labels = [("version".into(), "v4".into())].into()), "rest");
    assert_eq!(ruled(|m| m.method = Some(exact("GET"))), "hit");
    assert_eq!(ruled(|m| m.method = Some(exact("get"))), "rest");
}

#[test]
fn order_alternatives_and_no_rule() {
    let one = HttpMatch { uri: Some(prefix("/a")), ..HttpMatch::default() };
    let two = HttpMatch { uri: Some(prefix("/ab")), ..HttpMatch::default() };
    let three = HttpMatch { uri: Some(exact("/c")), ..HttpMatch::default() };
    let rules =
        || vec![rule("first", vec![one.clone(), three.clone()]), rule("second", vec![two.clone()])];
    assert_eq!(ruled(rules(), "/abc", &[], "web"), "first", "the first wins, not the longest");
    assert_eq!(ruled(rules(), "/c", &[], "web"), "first", "entries are alternatives");
    assert_eq!(ruled(rules(), "/d", &[], "web"), "none");
    assert_eq!(ruled(vec![], "/d", &[], "web"), "service", "no HTTP rules at all");
}

#[test]
fn weights_are_shares_of_their_sum() {
    let forward = forward(&[("a", None, 1), ("b", None, 0), ("c", None, 2)]);
    let at = |draw| &*destination(&forward, draw).unwrap().host;
    assert!(at(0).starts_with("a.") && at(u64::MAX / 3 - 1).starts_with("a."));
    assert!(at(u64::MAX / 3 + 1).starts_with("c.") && at(u64::MAX).starts_with("c."));
    let lone = self::forward(&[("a", None, 0)]);
    assert!(destination(&lone, u64::MAX).is_some(), "a single destination takes everything");
}

proptest! {
    /// Whatever a client sends: no panic, and a service that was dialled is never passed by.
    #[test]
    fn any_request_has_one_fate(
        authority in "[a-zA-Z0-9.:@\\[\\]*-]{0,40}",
        path in "/[a-zA-Z0-9/?&=%.~-]{0,30}",
        name in "[a-z-]{1,8}",
        value in proptest::collection::vec(0x20_u8..=0xff, 0..12),
        vip in any::<bool>(),
        port in prop_oneof![Just(80_u16), Just(8000), any::<u16>()],
    ) {
        let world = world();
        let ip = if vip { [10, 96, 0, 1] } else { [93, 184, 216, 34] };
        let dialled = SocketAddr::from((ip, port));
        let client = super::client();
        let mut headers = HeaderMap::new();
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(&value)) {
            headers.insert(name, value);
        }
        let Ok(uri) = path.parse::<Uri>() else { return Ok(()) };
        let host = virtual_host(&world, &client, dialled, &authority);
        prop_assert!(host.is_some() || world.service_at(dialled).is_none());
        if let Some(host) = host {
            if let Some(service) = host.service {
                prop_assert!(service.port(host.port).is_some());
            }
            let again = virtual_host(&world, &client, dialled, &authority.to_uppercase());
            prop_assert_eq!(
                again.and_then(|host| host.service).map(|service| &service.key),
                host.service.map(|service| &service.key)
            );
            let _ = route(&host, &client, &head(&uri, &headers, &authority));
        }
    }

    /// A destination of weight 0 is never chosen among several, and somebody always is.
    #[test]
    fn zero_weights_get_nothing(weights in proptest::collection::vec(0_u32..5, 2..6), draw in any::<u64>()) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let listed: Vec<_> = weights.iter().map(|weight| ("a", None, *weight)).collect();
        let forward = forward(&listed);
        prop_assert!(destination(&forward, draw).unwrap().weight > 0);
    }
}
