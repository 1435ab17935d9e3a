//! The body of the fuzz target `router`.
//!
//! The input chooses VirtualServices and requests. The objects are compiled as from a file; then
//! the router must choose what `reference` finds by reading the objects, and what a rule makes of
//! the request must be a legal target, or a legal URL to be sent to.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::{Value, json};

use super::bytes::Bytes;
use super::objects::service;
use super::reference::{Ask, Client, Expected, SITES, Site, expected};
use super::table::{AUTHORITIES, HEADERS, METHODS, NAMESPACES, PATHS, Table, VALUES, expand};
use crate::config::{Objects, Settings, Severity, compile, parse};
use crate::http::{Head, Route, VirtualHost, redirect, rewrite, route, router, virtual_host};
use crate::model::{
    Action, CaptureRules, Forward, HttpMatch, HttpRule, PeerPolicy, Redirect, RedirectPort,
    Snapshot, SpiffeId, Workload, WorkloadName, is_authority,
};

/// Names of the tables; the first ones are used.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Requests per input; what is left of it is not read.
const MAX_REQUESTS: usize = 16;

/// Compiles what `data` chooses, and routes requests through it.
///
/// # Panics
/// If an object is refused that should not be, or a request goes elsewhere.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let count = bytes.below(NAMES.len()) + 1;
    let tables: Vec<Table> =
        NAMES.iter().take(count).map(|name| Table::choose(name, &mut bytes)).collect();
    let snapshot = compiled(&tables);
    let taken = |table: &&Table| {
        snapshot.virtual_services.iter().any(|found| {
            *found.object.name == *table.name && *found.object.namespace == *table.namespace
        })
    };
    let tables: Vec<&Table> =
        tables.iter().filter(|table| !table.hosts.is_empty()).filter(taken).collect();
    for _ in 0..MAX_REQUESTS {
        let ask = ask(&mut bytes);
        check(&snapshot, &tables, &ask, bytes.word());
        if bytes.is_empty() {
            break;
        }
    }
}

fn compiled(tables: &[Table]) -> Snapshot {
    let items: Vec<Value> =
        SITES.iter().map(service).chain(tables.iter().map(Table::object)).collect();
    let text = json!({"kind": "List", "items": items}).to_string();
    let settings = Settings::default();
    let mut objects = Objects::new(settings.clone());
    let file = Arc::from("objects.json");
    objects.apply(&file, parse(&text, Some(&file), &settings.mesh), 0);
    let compiled = compile(&objects, &Snapshot::default());
    for found in &compiled.diagnostics {
        let free = ["rewrite", "redirect"].iter().any(|part| found.field.contains(part));
        assert!(found.severity == Severity::Warning || free, "{found}\n{text}");
    }
    compiled.snapshot
}

fn ask(bytes: &mut Bytes<'_>) -> Ask {
    let client = Client { namespace: bytes.pick(&NAMESPACES), version: bytes.pick(&["v1", "v2"]) };
    let addresses = ["10.96.0.1:80", "10.96.0.2:8000", "10.96.0.3:80", "192.0.2.1:80"];
    let more = ["10.96.0.1:8000", "192.0.2.1:8000"];
    let dialled = bytes.pick(&[&addresses[..], &more].concat());
    let mut authority = bytes.text(&AUTHORITIES);
    // As a header's text can be.
    authority.retain(|letter| letter.is_ascii_graphic());
    let method = bytes.text(&METHODS).parse().unwrap_or(Method::GET);
    let mut target = bytes.text(&PATHS);
    if bytes.flag() {
        target = format!("http://elsewhere{target}");
    }
    for (index, (key, value)) in
        bytes.list(3, |bytes| (bytes.pick(&HEADERS), bytes.text(&VALUES))).into_iter().enumerate()
    {
        target.push_str(&format!("{}{key}={value}", if index == 0 { '?' } else { '&' }));
    }
    let mut headers = HeaderMap::new();
    for (key, value) in bytes.list(4, |bytes| (bytes.pick(&HEADERS), bytes.text(&VALUES))) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(HeaderName::from_static(key), value);
        }
    }
    Ask {
        client,
        dialled: dialled.parse().unwrap_or(([0, 0, 0, 0], 0).into()),
        authority,
        method,
        uri: target.parse().unwrap_or(Uri::from_static("/")),
        headers,
    }
}

fn check(snapshot: &Snapshot, tables: &[&Table], ask: &Ask, draw: u64) {
    let source = workload(ask.client);
    let head = Head {
        method: &ask.method,
        uri: &ask.uri,
        headers: &ask.headers,
        authority: &ask.authority,
    };
    let host = virtual_host(snapshot, &source, ask.dialled, &ask.authority);
    let routed = host.as_ref().map(|host| route(host, &source, &head));
    let found = found(host.as_ref(), routed.as_ref());
    let expected = expected(tables, ask);
    assert_eq!(found, expected, "{ask:?}\n{tables:#?}");
    if let (Some(host), Some(Route::Rule(rule, entry))) = (host, routed) {
        action(rule, entry, &head, (host.port, draw));
    }
}

/// The router's word in the reference's terms.
fn found(host: Option<&VirtualHost<'_>>, routed: Option<&Route<'_>>) -> Expected {
    let number = |name: &str| name.parse().unwrap_or(usize::MAX);
    match (host, routed) {
        (Some(host), Some(Route::Rule(rule, entry))) => {
            let owner = host.virtual_service.map_or("", |found| &*found.object.name);
            let owner = NAMES.into_iter().find(|name| *name == owner).unwrap_or_default();
            Expected::Rule(owner, number(&rule.name), entry.map(|entry| number(&entry.name)))
        }
        (Some(_), Some(Route::Service(service))) => {
            let is = |site: &Site| expand(site.name, site.namespace) == *service.hostname;
            Expected::Service(SITES.iter().position(is).unwrap_or(usize::MAX))
        }
        (Some(_), Some(Route::NoRule)) => Expected::NoRule,
        _ => Expected::Untouched,
    }
}

fn workload(client: Client) -> Workload {
    Workload {
        uid: "client".into(),
        name: WorkloadName { namespace: client.namespace.into(), name: "client".into() },
        node: "n1".into(),
        locality: None,
        identity: SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: client.namespace.into(),
            service_account: "client".into(),
        },
        ips: Vec::new(),
        labels: [("version".into(), client.version.into())].into(),
        host_network: false,
        selected: true,
        unfit: None,
        enrolled: true,
        finished: false,
        terminating: false,
        capture: CaptureRules::default(),
        peer_policy: PeerPolicy::default(),
    }
}

// === what a rule makes of a request ===

fn action(rule: &HttpRule, entry: Option<&HttpMatch>, head: &Head<'_>, (port, draw): (u16, u64)) {
    match &rule.action {
        Action::Forward(forward) => forwarded(forward, entry, head, draw),
        Action::Redirect(redirect) => redirected(redirect, entry, head, port),
        Action::Direct(direct) => assert_eq!(direct.status, 200),
    }
}

fn forwarded(forward: &Forward, entry: Option<&HttpMatch>, head: &Head<'_>, draw: u64) {
    let chosen = router::destination(forward, draw);
    let chosen = chosen.unwrap_or_else(|| panic!("a rule without a destination"));
    let weights = forward.destinations.iter().map(|to| u64::from(to.weight));
    assert_eq!(weights.sum::<u64>(), u64::from(forward.total_weight));
    assert!(chosen.weight > 0, "{} takes no share", chosen.host);
    if let Some(path) = &forward.rewrite.path {
        let before = head.uri.query();
        let target = rewrite::rewritten(path, entry, head.uri);
        let target = target.unwrap_or_else(|| panic!("{path:?} makes {} illegal", head.uri));
        assert!(target.as_str().starts_with('/'), "{target}");
        if let Some(query) = before {
            assert!(target.as_str().ends_with(&format!("?{query}")), "{target} lost {query}");
        }
        let whole = Uri::builder().path_and_query(target.as_str()).build();
        assert_eq!(whole.ok().and_then(|uri| uri.into_parts().path_and_query), Some(target));
    }
}

fn redirected(redirect: &Redirect, entry: Option<&HttpMatch>, head: &Head<'_>, port: u16) {
    // Others are refused before they are routed.
    if !is_authority(head.authority) {
        return;
    }
    let location = redirect::location(redirect, entry, head, port);
    assert!(HeaderValue::from_str(&location).is_ok(), "{location:?} is no header");
    assert!(location.bytes().all(legal), "{location:?} is no URI");
    let Some((scheme, rest)) = location.split_once("://") else { panic!("{location}: no scheme") };
    let asked = redirect.scheme.as_deref();
    assert_eq!(scheme, asked.or(head.uri.scheme_str()).unwrap_or("http"));
    let authority = rest.split('/').next().unwrap_or_default();
    assert!(authority.len() < rest.len(), "{location} has no path");
    assert!(is_authority(authority), "{location}: {authority} is no host");
    if let (Some(wanted), RedirectPort::Keep) = (&redirect.authority, redirect.port) {
        assert_eq!(authority, &**wanted);
    }
}

/// What may stand in a URI (RFC 3986 section 2), a fragment's mark among it.
fn legal(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&octet)
}
