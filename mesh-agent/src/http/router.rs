//! Which rule a request falls under. Pure: a snapshot and a head in, a borrowed route out.
//!
//! Two steps, as in an Istio sidecar: the Host chooses a virtual host among those visible on the
//! dialled port, else the dialled address does; then the rules of the virtual host's
//! VirtualService are tried in order. Not here: the choice among weighted destinations' endpoints.
//!
//! Invariant: a request that names no known host and was sent to no known service passes through
//! untouched. Source: istio-surface 1.0 and 1.1.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, Method, Uri};

use crate::balance::by_weight;
use crate::model::{
    Forward, HttpMatch, HttpRule, KeyMatch, Service, Snapshot, StringMatch, VirtualService,
    WeightedDestination, Workload, path_of,
};

/// The port on which a VirtualService is seen under hosts that are no service: Istio puts those
/// virtual hosts on port 80 only.
const FOREIGN_HOST_PORT: u16 = 80;

/// A request's head, as far as routing reads it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target.
    pub uri: &'a Uri,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Host or `:authority`, as sent; empty if there is none.
    pub authority: &'a str,
}

/// The virtual host that a request belongs to.
#[derive(Clone, Copy, Debug)]
pub struct VirtualHost<'a> {
    /// The service, unless the host is only a VirtualService's.
    pub service: Option<&'a Arc<Service>>,
    /// The VirtualService that owns the host for this client, if any.
    pub virtual_service: Option<&'a Arc<VirtualService>>,
    /// The service port that the client addressed.
    pub port: u16,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub enum Route<'a> {
    /// A rule of a VirtualService, and the match entry that held (none: the rule matches all).
    Rule(&'a HttpRule, Option<&'a HttpMatch>),
    /// No VirtualService: the service itself.
    Service(&'a Arc<Service>),
    /// The VirtualService has no rule for this request (404 `NR`).
    NoRule,
}

/// The virtual host for a request of `source` that dialled `dialled`; `None`: not of this mesh.
pub fn virtual_host<'a>(
    snapshot: &'a Snapshot,
    source: &Workload,
    dialled: SocketAddr,
    authority: &str,
) -> Option<VirtualHost<'a>> {
    let namespace = &*source.name.namespace;
    let host = host_of(authority);
    let named = service_named(snapshot, namespace, &host);
    if let Some((service, port)) = named.and_then(|named| visible(snapshot, named, dialled)) {
        return Some(host_for(snapshot, namespace, &host, (service, port)));
    }
    let foreign = named.is_none() && dialled.port() == FOREIGN_HOST_PORT && !host.is_empty();
    if foreign
        && !snapshot.external.is_awaited(&host, namespace)
        && let Some(found) = snapshot.virtual_service(&host, namespace)
    {
        let virtual_service = Some(found);
        return Some(VirtualHost { service: None, virtual_service, port: dialled.port() });
    }
    let found = snapshot.dialled_service(dialled, namespace)?;
    Some(host_for(snapshot, namespace, &host, found))
}

/// The rule for a request in a virtual host.
pub fn route<'a>(host: &VirtualHost<'a>, source: &Workload, head: &Head<'_>) -> Route<'a> {
    let rules = host.virtual_service.map(|found| &found.http).filter(|rules| !rules.is_empty());
    match (rules, host.service) {
        (None, Some(service)) => Route::Service(service),
        (None, None) => Route::NoRule,
        (Some(rules), _) => rules
            .of_path(path_of(head.uri))
            .find_map(|rule| matching(rule, source, head, host.port))
            .map_or(Route::NoRule, |(rule, entry)| Route::Rule(rule, entry)),
    }
}

/// Chooses a destination by weight. `None` only if there is none.
pub(super) fn destination(forward: &Forward, draw: u64) -> Option<&WeightedDestination> {
    by_weight(&forward.destinations, forward.total_weight, draw)
}

fn host_for<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    host: &str,
    (service, port): (&'a Arc<Service>, u16),
) -> VirtualHost<'a> {
    VirtualHost {
        service: Some(service),
        virtual_service: snapshot.virtual_service(service.name_for(host), namespace),
        port,
    }
}

/// Whether a request is for this host, which is in lower case.
pub(super) fn asks_for(authority: &str, host: &str) -> bool {
    *host_of(authority) == *host
}

/// Lower case, without user information, port and trailing dot.
fn host_of(authority: &str) -> Cow<'_, str> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}

/// The service that `host` means to a client in `namespace`; wildcards of `ServiceEntry` objects come
/// last.
fn service_named<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    host: &str,
) -> Option<&'a Arc<Service>> {
    let named = named_in_full_or_short(snapshot, namespace, host);
    named.or_else(|| snapshot.external.covering(host, namespace))
}

/// Full name, `name.namespace.svc`, `name.namespace`, `name` (own namespace), or a virtual address.
fn named_in_full_or_short<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    host: &str,
) -> Option<&'a Arc<Service>> {
    if let Some(found) = snapshot.service_for(host, namespace) {
        return Some(snapshot.unaliased(found, namespace));
    }
    let mut labels = host.split('.');
    let (name, second, third) = (labels.next()?, labels.next(), labels.next());
    let namespace = match (second, third, labels.next()) {
        (None, ..) => namespace,
        (Some(second), None | Some("svc"), None) => second,
        _ => return host.parse::<IpAddr>().ok().and_then(|ip| snapshot.services_by_ip.get(&ip)),
    };
    if name.is_empty() {
        return None;
    }
    let full = format!("{name}.{namespace}.svc.{}", snapshot.mesh.cluster_domain);
    let found = snapshot.service_by_host(&full);
    found
        .map(|found| snapshot.unaliased(found, namespace))
        .or_else(|| host.parse::<IpAddr>().ok().and_then(|ip| snapshot.services_by_ip.get(&ip)))
}

/// The service if it is there on the dialled port: by its own port number, or because the client
/// dialled one of its pods (headless).
fn visible<'a>(
    snapshot: &Snapshot,
    service: &'a Arc<Service>,
    dialled: SocketAddr,
) -> Option<(&'a Arc<Service>, u16)> {
    if service.port(dialled.port()).is_some() {
        return Some((service, dialled.port()));
    }
    let (key, port) = snapshot.headless_by_endpoint.get(&dialled)?;
    (*key == service.key).then_some((service, *port))
}

fn matching<'a>(
    rule: &'a HttpRule,
    source: &Workload,
    head: &Head<'_>,
    port: u16,
) -> Option<(&'a HttpRule, Option<&'a HttpMatch>)> {
    if rule.matches.is_empty() {
        return Some((rule, None));
    }
    let found = rule.matches.iter().find(|entry| holds(entry, source, head, port))?;
    Some((rule, Some(found)))
}

/// Whether all conditions of one entry hold.
pub(super) fn holds(entry: &HttpMatch, source: &Workload, head: &Head<'_>, port: u16) -> bool {
    let path = path_of(head.uri);
    let is = |wanted: &Option<StringMatch>, value: &str, ignore_case| {
        wanted.as_ref().is_none_or(|wanted| wanted.matches(value, ignore_case))
    };
    entry.port.is_none_or(|wanted| wanted == port)
        && entry.source_namespace.as_ref().is_none_or(|wanted| *wanted == source.name.namespace)
        && source.has_labels(&entry.source_labels)
        && is(&entry.uri, path, entry.ignore_uri_case)
        && is(&entry.method, head.method.as_str(), false)
        && is(&entry.authority, head.authority, false)
        && is(&entry.scheme, scheme(head), false)
        && entry.headers.iter().all(|wanted| header_holds(wanted, head))
        && !entry.without_headers.iter().any(|unwanted| header_holds(unwanted, head))
        && entry.query.iter().all(|wanted| query_holds(wanted, head.uri.query().unwrap_or("")))
}

fn scheme<'a>(head: &Head<'a>) -> &'a str {
    head.uri.scheme_str().unwrap_or("http")
}

/// Whether a header is there and matches. Several fields of one name count as one, joined by
/// commas (RFC 9110 §5.3). HTTP/2's pseudo headers have names too.
fn header_holds(wanted: &KeyMatch, head: &Head<'_>) -> bool {
    match &*wanted.key {
        ":authority" | "host" => {
            return !head.authority.is_empty() && wanted.value.matches(head.authority, false);
        }
        ":method" => return wanted.value.matches(head.method.as_str(), false),
        ":scheme" => return wanted.value.matches(scheme(head), false),
        ":path" => {
            let path = head.uri.path_and_query().map_or("/", |target| target.as_str());
            return wanted.value.matches(path, false);
        }
        _ => {}
    }
    let mut values = head.headers.get_all(&*wanted.key).iter();
    let Some(first) = values.next() else { return false };
    let rest: Vec<_> = values.map(|value| value.as_bytes()).collect();
    let joined = if rest.is_empty() {
        Cow::Borrowed(first.as_bytes())
    } else {
        Cow::Owned([&[first.as_bytes()], &*rest].concat().join(&b","[..]))
    };
    match std::str::from_utf8(&joined) {
        Ok(text) => wanted.value.matches(text, false),
        Err(_) => wanted.value == StringMatch::Present,
    }
}

/// Whether a query parameter is there and matches.
fn query_holds(wanted: &KeyMatch, query: &str) -> bool {
    query_value(query, &wanted.key).is_some_and(|value| wanted.value.matches(value, false))
}

/// The first value of a query parameter, not decoded, as Envoy reads it.
pub(super) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}
