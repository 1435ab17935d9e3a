//! What routing is to come to, for the fuzz target `router`: read from the objects as the user wrote
//! them, by going through all of them in order. Pure.
//!
//! Deliberately without the router's indexes, its compiled conditions and its code.

use std::net::SocketAddr;

use http::{HeaderMap, Method, Uri};

use super::table::{Condition, Entry, PRESENT, REGEXES, Rule, Table, expand};

/// A service of the fixed world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    /// Virtual address; none of an alias.
    pub(super) ip: Option<&'static str>,
    pub(super) port: u16,
}

/// The services, in each world the same. `shop/alias` is another name of `shop/web`.
pub(super) const SITES: [Site; 4] = [
    Site { namespace: "shop", name: "web", ip: Some("10.96.0.1"), port: 80 },
    Site { namespace: "shop", name: "api", ip: Some("10.96.0.2"), port: 8000 },
    Site { namespace: "bank", name: "web", ip: Some("10.96.0.3"), port: 80 },
    Site { namespace: "shop", name: "alias", ip: None, port: 80 },
];
/// The service behind the alias.
pub(super) const ALIASED: usize = 0;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) namespace: &'static str,
    pub(super) version: &'static str,
}

/// A request, and where its client connected to.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) client: Client,
    pub(super) dialled: SocketAddr,
    pub(super) authority: String,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

/// What is to become of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Not of this mesh.
    Untouched,
    /// A service (index into [`SITES`]), as no VirtualService is in its way.
    Service(usize),
    /// The rule and the entry of this VirtualService, by number.
    Rule(&'static str, usize, Option<usize>),
    /// A VirtualService, none of whose rules matches.
    NoRule,
}

/// Goes through `tables`, in no order.
pub(super) fn expected(tables: &[&Table], ask: &Ask) -> Expected {
    let host = host_of(&ask.authority);
    let named = (0..SITES.len()).find(|index| means(*index, &host, ask.client.namespace));
    let named = named.map(|index| if SITES[index].ip.is_none() { ALIASED } else { index });
    let (service, owner) = match named {
        Some(index) if SITES[index].port == ask.dialled.port() => (Some(index), None),
        None if ask.dialled.port() == 80 && !host.is_empty() => (None, owner(tables, &host, ask)),
        _ => (None, None),
    };
    if let (None, Some(owner)) = (service, owner) {
        return rule_of(owner, ask, ask.dialled.port());
    }
    let dialled = || {
        SITES.iter().position(|site| {
            let ip = site.ip.and_then(|ip| ip.parse().ok());
            ip == Some(ask.dialled.ip()) && site.port == ask.dialled.port()
        })
    };
    let Some(index) = service.or_else(dialled) else { return Expected::Untouched };
    let site = &SITES[index];
    match owner_of_site(tables, site, ask) {
        Some(owner) => rule_of(owner, ask, site.port),
        None => Expected::Service(index),
    }
}

fn owner_of_site<'a>(tables: &[&'a Table], site: &Site, ask: &Ask) -> Option<&'a Table> {
    owner(tables, &expand(site.name, site.namespace), ask)
}

/// The authority's host: lower case, no port, no user, no dot at its end.
fn host_of(authority: &str) -> String {
    let after_user = authority.rsplit('@').next().unwrap_or_default();
    let host = match after_user.strip_prefix('[') {
        Some(literal) => literal.split(']').next(),
        None => after_user.split(':').next(),
    };
    let host = host.unwrap_or_default().to_ascii_lowercase();
    host.strip_suffix('.').map_or(host.clone(), str::to_owned)
}

/// Whether a client in `namespace` that says `host` means this service.
fn means(index: usize, host: &str, namespace: &str) -> bool {
    let site = &SITES[index];
    let full = format!("{}.{}.svc.cluster.local", site.name, site.namespace);
    let named = [
        full.as_str(),
        full.strip_suffix(".cluster.local").unwrap_or_default(),
        full.strip_suffix(".svc.cluster.local").unwrap_or_default(),
    ];
    let address = host.parse::<std::net::IpAddr>().ok();
    named.contains(&host)
        || (host == site.name && namespace == site.namespace)
        || (address.is_some() && address == site.ip.and_then(|ip| ip.parse().ok()))
}

/// The table that owns `host` for the client: an exact host before wildcards, long ones before
/// short ones, then the oldest, then by name and namespace.
fn owner<'a>(tables: &[&'a Table], host: &str, ask: &Ask) -> Option<&'a Table> {
    let visible = tables.iter().filter(|table| sees(table, ask.client.namespace));
    let claims = visible.flat_map(|table| {
        let hosts = table.hosts.iter().map(|own| expand(own, table.namespace));
        hosts.filter_map(|own| claim(&own, host)).map(|length| (length, *table))
    });
    let rank = |(length, table): &(usize, &Table)| {
        (std::cmp::Reverse(*length), table.created, table.name, table.namespace)
    };
    claims.min_by(|a, b| rank(a).cmp(&rank(b))).map(|(_, table)| table)
}

/// How closely a VirtualService's host fits, if it does.
fn claim(own: &str, host: &str) -> Option<usize> {
    match own.strip_prefix('*') {
        None => (own == host).then_some(usize::MAX),
        Some(end) => (host.ends_with(end) && host != end).then_some(end.len()),
    }
}

fn sees(table: &Table, namespace: &str) -> bool {
    table.export.is_empty()
        || table.export.iter().any(|to| match *to {
            "*" => true,
            "." => table.namespace == namespace,
            named => named == namespace,
        })
}

fn rule_of(table: &Table, ask: &Ask, port: u16) -> Expected {
    for (number, Rule { entries, .. }) in table.rules.iter().enumerate() {
        if entries.is_empty() {
            return Expected::Rule(table.name, number, None);
        }
        if let Some(entry) = entries.iter().position(|entry| holds(entry, ask, port)) {
            return Expected::Rule(table.name, number, Some(entry));
        }
    }
    Expected::NoRule
}

fn holds(entry: &Entry, ask: &Ask, port: u16) -> bool {
    let path = match ask.uri.path() {
        "" => "/",
        path => path,
    };
    let scheme = ask.uri.scheme_str().unwrap_or("http");
    let parts = [
        (&entry.uri, path, entry.ignore_case),
        (&entry.method, ask.method.as_str(), false),
        (&entry.authority, &ask.authority, false),
        (&entry.scheme, scheme, false),
    ];
    let query = ask.uri.query().unwrap_or_default();
    parts.iter().all(|(condition, text, fold)| {
        condition.as_ref().is_none_or(|condition| is(condition, text, *fold))
    }) && entry.headers.iter().all(|(key, condition)| header(key, condition, ask))
        && entry.without.iter().all(|(key, condition)| !header(key, condition, ask))
        && entry.query.iter().all(|(key, condition)| parameter(key, condition, query))
        && entry.port.is_none_or(|wanted| wanted == port)
        && entry.label.is_none_or(|wanted| wanted == ask.client.version)
        && entry.namespace.is_none_or(|wanted| wanted == ask.client.namespace)
}

fn is(condition: &Condition, text: &str, fold: bool) -> bool {
    let lower = |text: &str| if fold { text.to_ascii_lowercase() } else { text.to_owned() };
    match condition {
        Condition::Exact(wanted) => lower(wanted) == lower(text),
        Condition::Prefix(wanted) => lower(text).starts_with(&lower(wanted)),
        Condition::Regex(index) => REGEXES.get(*index).is_some_and(|(_, matches)| matches(text)),
        Condition::Present => true,
    }
}

fn header(key: &str, condition: &Condition, ask: &Ask) -> bool {
    if key == "host" {
        return !ask.authority.is_empty() && is(condition, &ask.authority, false);
    }
    let mut all = Vec::new();
    let mut there = false;
    for value in ask.headers.get_all(key) {
        if there {
            all.push(b',');
        }
        all.extend_from_slice(value.as_bytes());
        there = true;
    }
    let present = matches!(condition, Condition::Present)
        || matches!(condition, Condition::Regex(index) if *index == PRESENT);
    match String::from_utf8(all) {
        _ if !there => false,
        Ok(text) => is(condition, &text, false),
        Err(_) => present,
    }
}

fn parameter(key: &str, condition: &Condition, query: &str) -> bool {
    let pairs = query.split('&').map(|pair| match pair.find('=') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, ""),
    });
    let mut values = pairs.filter(|(name, _)| *name == key).map(|(_, value)| value);
    values.next().is_some_and(|value| is(condition, value, false))
}
