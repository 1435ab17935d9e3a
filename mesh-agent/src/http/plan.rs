//! What is to become of a request: routing, rate limits and the destination's resolution. Nothing is
//! done but that the record is told the service and the route, and that limits count.
//!
//! Invariant: everything in a plan is borrowed from the one snapshot that the request holds.
//! Source: istio-surface 1.1 and 1.2.1. Not here: doing it (`outbound`).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::cors::{self, Verdict};
use super::engine::ConnectionFacts;
use super::error::HttpError;
use super::rate::Limits;
use super::router::{self, Head, Route, VirtualHost};
use super::serve::{Connection, HttpVersion};
use super::sticky::{self, Key, Sender};
use super::{headers, redirect, rewrite};
use crate::balance::{Draws, Live, choose_version, hash_of};
use crate::model::{
    Action, Cors, DirectResponse, Fault, Forward, FoundDestination, HeaderOps, HttpMatch, HttpRule,
    Mirror, NamedDestination, Protocol, RetryPolicy, ServiceKind, ServiceTarget, Snapshot,
    WeightedDestination,
};
use crate::telemetry::RequestRecord;

/// Where a request goes, after routing.
#[derive(Clone, Copy)]
pub(super) enum Destination<'a> {
    /// One of a service port's endpoints.
    Service(ServiceTarget<'a>),
    /// The address that the client dialled.
    Dialled,
}

/// What a rule does to headers: the route's, then the destination's.
pub(super) type Ops<'a> = [Option<&'a HeaderOps>; 2];

/// Everything that the rule says about a request that goes on.
pub(super) struct Plan<'a> {
    pub(super) destination: Destination<'a>,
    pub(super) request_ops: Ops<'a>,
    pub(super) path: Option<PathAndQuery>,
    pub(super) authority: Option<&'a HeaderValue>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: &'a RetryPolicy,
    /// Where copies go.
    pub(super) mirrors: &'a [Mirror],
    /// The service port that the client addressed.
    pub(super) addressed: u16,
    /// The request's key under consistent hashing.
    pub(super) key: Key,
    pub(super) version: HttpVersion,
    /// No rule and no service: the request's target stays in the form that it has.
    pub(super) untouched: bool,
}

/// What was decided about a request's head.
pub(super) enum Decision<'a> {
    Forward(Box<Plan<'a>>),
    /// CORS: answered here with these headers.
    Preflight(HeaderMap),
    Redirect(String, StatusCode),
    Direct(&'a DirectResponse),
    Fail(HttpError),
}

/// Envoy's name of the route that Istio makes where only known hosts may be reached
/// (istio-surface 2.1).
const BLOCK_ALL: &str = "block_all";
static BLOCKED: DirectResponse =
    DirectResponse { status: StatusCode::BAD_GATEWAY, body: Bytes::new() };

/// What was decided, and what comes before and after it.
pub(super) struct Decided<'a> {
    pub(super) decision: Decision<'a>,
    /// What befalls the request first, also one whose destination is missing.
    pub(super) fault: Option<&'a Fault>,
    /// What is done to the answer, whoever makes it: Envoy has its local replies pass the route's
    /// `finalizeResponseHeaders`.
    pub(super) response_ops: Ops<'a>,
    /// How the answer is marked for pages of another origin.
    pub(super) cors: Option<(&'a Cors, HeaderValue)>,
}

impl<'a> From<Decision<'a>> for Decided<'a> {
    fn from(decision: Decision<'a>) -> Self {
        Self { decision, fault: None, response_ops: [None; 2], cors: None }
    }
}

/// Routes a request and resolves its destination, unless a rate limit refuses it.
pub(super) fn decide<'a>(
    live: &'a Live,
    connection: &Connection,
    head: &Head<'_>,
    (upgrade, draws): (bool, &Draws),
    record: &mut RequestRecord,
) -> Decided<'a> {
    let (snapshot, facts) = (&*live.snapshot, &connection.facts);
    let found = router::virtual_host(snapshot, &facts.source, facts.destination, head.authority);
    let Some(host) = found else {
        if snapshot.blocks(facts.destination) {
            record.route(BLOCK_ALL, None);
            return Decision::Direct(&BLOCKED).into();
        }
        let plan = Plan::to(Destination::Dialled, connection.version);
        return Decision::Forward(Box::new(Plan { untouched: true, ..plan })).into();
    };
    if let Some(service) = host.service {
        record.service(service);
    }
    let route = router::route(&host, &facts.source, head);
    let rule = match route {
        Route::Rule(rule, entry) => {
            record.route(&rule.name, entry.map(|entry| &*entry.name));
            Some(rule)
        }
        Route::Service(_) | Route::NoRule => None,
    };
    let (addressed, port) = (host.service, host.port);
    let limits = Limits { live, source: &facts.source, head, addressed, port, rule };
    if !limits.let_in(record) {
        let response_ops = [rule.map(|rule| &rule.response_headers), None];
        return Decided { response_ops, ..Decision::Fail(HttpError::RateLimited).into() };
    }
    let matched = match route {
        Route::NoRule => return Decision::Fail(HttpError::NoRoute).into(),
        Route::Service(service) => {
            let destination = to_service(snapshot, facts, (service, host.port, None));
            let plan = destination.map(|to| Plan {
                key: key_at(to, facts, head, draws),
                ..Plan::to(to, connection.version)
            });
            return forward(plan, connection, upgrade, &limits, record).into();
        }
        Route::Rule(rule, entry) => Matched { rule, entry },
    };
    by_rule(snapshot, connection, (&host, &matched), (upgrade, draws), (&limits, record))
}

/// What a rule says about a request that it is for.
fn by_rule<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    (host, matched): (&VirtualHost<'a>, &Matched<'a>),
    (upgrade, draws): (bool, &Draws),
    (limits, record): (&Limits<'_>, &mut RequestRecord),
) -> Decided<'a> {
    let (facts, head) = (&connection.facts, limits.head);
    let fault = matched.rule.fault.as_deref();
    let verdict = matched
        .rule
        .cors
        .as_deref()
        .map(|policy| (policy, cors::judge(policy, head.method, head.headers)));
    let cors = match verdict {
        Some((_, Verdict::Preflight(headers))) => {
            return Decided { fault, ..Decision::Preflight(headers).into() };
        }
        Some((policy, Verdict::Allowed(origin))) => Some((policy, origin)),
        _ => None,
    };
    let of_route = Some(&matched.rule.response_headers);
    let only_routes =
        |decision: Decision<'a>| Decided { response_ops: [of_route, None], ..decision.into() };
    let decided = match &matched.rule.action {
        Action::Redirect(redirect) => {
            // A client that names no host (HTTP/1.0) knows the address.
            let dialled = facts.destination.to_string();
            let authority = Some(head.authority).filter(|named| !named.is_empty());
            let head = Head { authority: authority.unwrap_or(&dialled), ..*head };
            let location = redirect::location(redirect, matched.entry, &head, host.port);
            only_routes(Decision::Redirect(location, redirect.code))
        }
        Action::Direct(direct) => only_routes(Decision::Direct(direct)),
        Action::Forward(to) => {
            let chosen = chosen(snapshot, facts, head, (to, host), draws);
            let of_destination = chosen.as_ref().ok().map(|(to, _)| &to.response_headers);
            let plan = chosen.and_then(|chosen| {
                planned(snapshot, connection, head, (host, matched, to, chosen), draws)
            });
            let decision = forward(plan, connection, upgrade, limits, record);
            // A limit of where the request goes comes before the fault, too.
            let limited = matches!(decision, Decision::Fail(HttpError::RateLimited));
            Decided {
                fault: fault.filter(|_| !limited),
                response_ops: [of_route, of_destination],
                ..decision.into()
            }
        }
    };
    Decided { cors, ..decided }
}

/// A plan in the version that its destination speaks.
fn forward<'a>(
    plan: Result<Plan<'a>, HttpError>,
    connection: &Connection,
    upgrade: bool,
    limits: &Limits<'_>,
    record: &mut RequestRecord,
) -> Decision<'a> {
    match plan {
        Ok(mut plan) => {
            if let Destination::Service(target) = &plan.destination {
                record.service(target.service);
                if !limits.let_on(target.service, record) {
                    return Decision::Fail(HttpError::RateLimited);
                }
                plan.version = upstream_version(target, connection.version, upgrade);
            }
            Decision::Forward(Box::new(plan))
        }
        Err(error) => Decision::Fail(error),
    }
}

/// A rule that holds, and the entry of it that matched.
struct Matched<'a> {
    rule: &'a HttpRule,
    entry: Option<&'a HttpMatch>,
}

fn planned<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    head: &Head<'_>,
    (host, matched, forward, (chosen, key)): (
        &VirtualHost<'a>,
        &Matched<'a>,
        &'a Forward,
        Chosen<'a>,
    ),
    draws: &Draws,
) -> Result<Plan<'a>, HttpError> {
    let facts = &connection.facts;
    let destination = routed(snapshot, facts, chosen, (host, head))?;
    let path = match &forward.rewrite.path {
        Some(path) => {
            Some(rewrite::rewritten(path, matched.entry, head.uri).ok_or(HttpError::Local)?)
        }
        None => None,
    };
    Ok(Plan {
        request_ops: [Some(&matched.rule.request_headers), Some(&chosen.request_headers)],
        path,
        authority: forward.rewrite.authority.as_ref().or(chosen.authority.as_ref()),
        timeout: headers::timeout(forward.timeout, head.headers),
        retries: &forward.retries,
        mirrors: &forward.mirrors,
        addressed: host.port,
        key: key.unwrap_or_else(|| key_at(destination, facts, head, draws)),
        ..Plan::to(destination, connection.version)
    })
}

/// One of weighted destinations, and the request's key if that chose it.
type Chosen<'a> = (&'a WeightedDestination, Option<Key>);

/// Chooses among weighted destinations. Where the policy of the first one hashes, the request's key
/// decides (a sticky canary), else a draw does.
fn chosen<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    head: &Head<'_>,
    (forward, host): (&'a Forward, &VirtualHost<'a>),
    draws: &Draws,
) -> Result<Chosen<'a>, HttpError> {
    if let [first, _, ..] = &*forward.destinations
        && let Ok(to) = routed(snapshot, facts, first, (host, head))
    {
        let key = key_at(to, facts, head, draws);
        if let Some(hash) = key.hash {
            let versions = forward.destinations.iter();
            let versions = versions.map(|version| (version_id(version), version.weight));
            let at = choose_version(hash, versions).unwrap_or(0);
            let version = forward.destinations.get(at).ok_or(HttpError::NoCluster)?;
            return Ok((version, Some(key)));
        }
    }
    let drawn = router::destination(forward, draws.next()).ok_or(HttpError::NoCluster)?;
    Ok((drawn, None))
}

/// What a version is told apart by, whatever its place in the list.
fn version_id(version: &WeightedDestination) -> u64 {
    let subset = version.subset.as_deref().unwrap_or_default();
    hash_of(format!("{}|{subset}|{}", version.host, version.port.unwrap_or(0)).as_bytes())
}

/// The request's key, if the destination's policy hashes.
fn key_at(to: Destination<'_>, facts: &ConnectionFacts, head: &Head<'_>, draws: &Draws) -> Key {
    let Destination::Service(target) = to else { return Key::default() };
    let Some(by) = &target.policy.hash_key else { return Key::default() };
    let sender = Sender { headers: head.headers, query: head.uri.query(), ip: facts.peer.ip() };
    sticky::key(by, &sender, || (draws.next(), draws.next()))
}

/// Where a rule sends a request of a client that asked for `host`.
fn routed<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    to: &WeightedDestination,
    (host, head): (&VirtualHost<'a>, &Head<'_>),
) -> Result<Destination<'a>, HttpError> {
    let client = facts.source.client();
    let found = snapshot.named(&to.into(), client, host.port).ok_or(HttpError::NoCluster)?;
    if let ServiceKind::ExternalName(name) = &found.0.kind
        && router::asks_for(head.authority, name)
    {
        return outside(snapshot, facts);
    }
    if snapshot.misleads(found, client, host.service.map(Arc::as_ref), facts.destination) {
        return Err(HttpError::NoCluster);
    }
    to_service(snapshot, facts, found)
}

/// The service that a mirror names. `addressed`: the port that the client did.
pub(super) fn named_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    named: &NamedDestination<'_>,
    addressed: u16,
) -> Result<Destination<'a>, HttpError> {
    let client = facts.source.client();
    let found = snapshot.named(named, client, addressed).ok_or(HttpError::NoCluster)?;
    if snapshot.misleads(found, client, None, facts.destination) {
        return Err(HttpError::NoCluster);
    }
    to_service(snapshot, facts, found)
}

fn to_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    found: FoundDestination<'a>,
) -> Result<Destination<'a>, HttpError> {
    if matches!(found.0.kind, ServiceKind::ExternalName(_)) {
        return outside(snapshot, facts);
    }
    let target = snapshot.target(found, facts.source.client());
    target.map(Destination::Service).ok_or(HttpError::NoCluster)
}

/// A name outside the mesh, resolved by its client: the address that it dialled. Should that be a
/// virtual one of the cluster's, then the service that has it: plaintext would leave the mesh.
fn outside<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
) -> Result<Destination<'a>, HttpError> {
    let Some((service, port)) = snapshot.service_at(facts.destination) else {
        return Ok(Destination::Dialled);
    };
    let target = snapshot.target((service, port.port, None), facts.source.client());
    target.map(Destination::Service).ok_or(HttpError::NoCluster)
}

/// What is spoken to an endpoint: what its port declares or the policy asks for; on an undeclared
/// port what the client speaks. An upgrade is HTTP/1.1's.
pub(super) fn upstream_version(
    target: &ServiceTarget<'_>,
    client: HttpVersion,
    upgrade: bool,
) -> HttpVersion {
    let pool = &target.policy.pool;
    match target.port.protocol {
        Protocol::Detect | Protocol::Tcp | Protocol::Tls => client,
        _ if upgrade => HttpVersion::Http1,
        _ if pool.use_client_protocol => client,
        Protocol::Http if pool.upgrade_to_http2 => HttpVersion::Http2,
        Protocol::Http => HttpVersion::Http1,
        Protocol::Http2 | Protocol::Grpc => HttpVersion::Http2,
    }
}

static RETRIES: LazyLock<RetryPolicy> = LazyLock::new(RetryPolicy::default);

impl<'a> Plan<'a> {
    fn to(destination: Destination<'a>, version: HttpVersion) -> Self {
        Self {
            destination,
            request_ops: [None; 2],
            path: None,
            authority: None,
            timeout: None,
            retries: &RETRIES,
            mirrors: &[],
            addressed: 0,
            key: Key::default(),
            version,
            untouched: false,
        }
    }
}
