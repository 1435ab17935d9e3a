//! One request from a local pod, from its head to its response: the only place that knows the
//! order of phases.
//!
//! route -> redirect or direct response -> headers and rewrite -> attempts {pick, send} -> headers
//! of the response. Each phase is a leaf; what a phase decides is a value that the next one takes.
//!
//! Invariant: one `Live` for the whole request, however long it takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{Gate, Held, RequestBody, ResponseBody, grpc_status};
use super::client::{SendError, Target};
use super::connect::Connect;
use super::engine::{ConnectionFacts, Engine};
use super::error::HttpError;
use super::pool::Lease;
use super::router::{self, Head, Route, VirtualHost};
use super::serve::{Connection, HttpVersion};
use super::upgrade::Handover;
use super::{headers, redirect, reply, retry, rewrite};
use crate::balance::{ActiveGuard, Ask, Live};
use crate::model::{
    Action, Endpoint, Forward, HeaderOps, HttpMatch, LoadBalancer, Protocol, Service, ServiceKind,
    ServicePort, Snapshot, Subset, TrafficPolicy, WeightedDestination, Workload,
};
use crate::telemetry::{Reporter, RequestRecord, RequestStart, ResponseFlag};

/// The connect time-out outside services, and where no rule says otherwise: Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes, after routing.
#[derive(Clone, Copy)]
enum Destination<'a> {
    /// One of a service port's endpoints.
    Service(ServiceTarget<'a>),
    /// The address that the client dialled.
    Dialled,
}

#[derive(Clone, Copy)]
struct ServiceTarget<'a> {
    service: &'a Arc<Service>,
    port: &'a ServicePort,
    subset: Option<&'a Subset>,
    policy: LoadBalancer,
    connect_timeout: Duration,
}

/// Everything that the rule says about a request that goes on.
struct Plan<'a> {
    destination: Destination<'a>,
    /// The route's, then the destination's.
    request_ops: [Option<&'a HeaderOps>; 2],
    response_ops: [Option<&'a HeaderOps>; 2],
    path: Option<PathAndQuery>,
    authority: Option<&'a HeaderValue>,
    timeout: Option<Duration>,
    version: HttpVersion,
    /// No rule and no service: the request's target stays in the form that it has.
    untouched: bool,
}

/// What was decided about a request's head.
enum Decision<'a> {
    Forward(Box<Plan<'a>>),
    Redirect(String, StatusCode, &'a HeaderOps),
    Direct(&'a crate::model::DirectResponse, &'a HeaderOps),
    Fail(HttpError),
}

/// An endpoint's response head, and what it holds.
struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    active: Option<ActiveGuard>,
    since: Instant,
}

/// The last failure, and how many attempts there were.
struct GaveUp {
    error: HttpError,
    attempts: u32,
}

/// Answers one request.
pub(super) async fn respond<C: Connect>(
    engine: &Engine<C>,
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let live = engine.shared.live.load_full();
    let (mut parts, body) = request.into_parts();
    let authority = authority_of(&parts);
    let authority_text = authority.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("");
    let grpc = headers::is_grpc(&parts.headers);
    let mut record = engine.shared.telemetry.request(RequestStart {
        reporter: Reporter::Source,
        source: &connection.facts.source,
        method: &parts.method,
        path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
        authority: authority_text,
        grpc,
    });
    record.request_id(&headers::identify(
        &mut parts.headers,
        (engine.shared.draws.next(), engine.shared.draws.next()),
    ));
    let upgrade = connection.version == HttpVersion::Http1 && headers::asks_upgrade(&parts.headers);
    let head = Head {
        method: &parts.method,
        uri: &parts.uri,
        headers: &parts.headers,
        authority: authority_text,
    };
    let draw = engine.shared.draws.next();
    let decision = decide(&live.snapshot, connection, &head, (upgrade, draw), &mut record);
    let mut response = match decision {
        Decision::Fail(error) => reply::failure(&error, false, grpc, record),
        Decision::Redirect(location, code, ops) => reply::redirect(&location, code, ops, record),
        Decision::Direct(direct, ops) => reply::direct(direct, ops, record),
        Decision::Forward(plan) => {
            let flow = Flow { engine, connection, live: &live, plan: &plan, upgrade, grpc };
            flow.forward(parts, authority, body, record).await
        }
    };
    *response.version_mut() = match connection.version {
        HttpVersion::Http1 => Version::HTTP_11,
        HttpVersion::Http2 => Version::HTTP_2,
    };
    response
}

/// Counts a request that could not be read; hyper has answered it with 400.
pub(super) fn refused<C: Connect>(engine: &Engine<C>, connection: &Connection) {
    let mut record = engine.shared.telemetry.request(RequestStart {
        reporter: Reporter::Source,
        source: &connection.facts.source,
        method: &Method::default(),
        path: "-",
        authority: "-",
        grpc: false,
    });
    record.flag(ResponseFlag::DownstreamProtocolError);
    record.details("http1.codec_error");
    record.status(StatusCode::BAD_REQUEST);
    record.finish();
}

fn authority_of(parts: &Parts) -> Option<HeaderValue> {
    match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(HOST).cloned(),
    }
}

// === deciding ===

/// Routes a request and resolves its destination. Pure but for the record.
fn decide<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    head: &Head<'_>,
    (upgrade, draw): (bool, u64),
    record: &mut RequestRecord,
) -> Decision<'a> {
    let facts = &connection.facts;
    let found = router::virtual_host(snapshot, &facts.source, facts.destination, head.authority);
    let Some(host) = found else {
        return Decision::Forward(Box::new(Plan {
            untouched: true,
            ..Plan::to(Destination::Dialled, connection.version)
        }));
    };
    if let Some(service) = host.service {
        record.service(service);
    }
    let resolved = match router::route(&host, &facts.source, head) {
        Route::NoRule => return Decision::Fail(HttpError::NoRoute),
        Route::Service(service) => own_service(snapshot, facts, service, &host)
            .map(|destination| Plan::to(destination, connection.version)),
        Route::Rule(rule, entry) => {
            record.route(&rule.name);
            match &rule.action {
                Action::Redirect(redirect) => {
                    let location = redirect::location(redirect, entry, head, host.port);
                    return Decision::Redirect(location, redirect.code, &rule.response_headers);
                }
                Action::Direct(direct) => {
                    return Decision::Direct(direct, &rule.response_headers);
                }
                Action::Forward(forward) => {
                    let to = Matched { rule, forward, entry, draw };
                    planned(snapshot, connection, head, &host, &to)
                }
            }
        }
    };
    match resolved {
        Ok(mut plan) => {
            if let Destination::Service(target) = &plan.destination {
                record.service(target.service);
                plan.version = upstream_version(target.port.protocol, connection.version, upgrade);
            }
            Decision::Forward(Box::new(plan))
        }
        Err(error) => Decision::Fail(error),
    }
}

/// A rule that forwards, with what else its plan is made from.
struct Matched<'a> {
    rule: &'a crate::model::HttpRule,
    forward: &'a Forward,
    entry: Option<&'a HttpMatch>,
    draw: u64,
}

fn planned<'a>(
    snapshot: &'a Snapshot,
    connection: &Connection,
    head: &Head<'_>,
    host: &VirtualHost<'a>,
    to: &Matched<'a>,
) -> Result<Plan<'a>, HttpError> {
    let forward = to.forward;
    let chosen = router::destination(forward, to.draw).ok_or(HttpError::NoCluster)?;
    let destination = named_service(snapshot, &connection.facts, chosen, host.port)?;
    let path = match &forward.rewrite.path {
        Some(path) => Some(rewrite::rewritten(path, to.entry, head.uri).ok_or(HttpError::Local)?),
        None => None,
    };
    Ok(Plan {
        request_ops: [Some(&to.rule.request_headers), Some(&chosen.request_headers)],
        response_ops: [Some(&to.rule.response_headers), Some(&chosen.response_headers)],
        path,
        authority: forward.rewrite.authority.as_ref().or(chosen.authority.as_ref()),
        timeout: headers::timeout(forward.timeout, head.headers),
        ..Plan::to(destination, connection.version)
    })
}

/// The service that a rule names.
fn named_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    chosen: &'a WeightedDestination,
    addressed: u16,
) -> Result<Destination<'a>, HttpError> {
    let key = chosen.service.as_ref().ok_or(HttpError::NoCluster)?;
    let service = snapshot.services.get(key).ok_or(HttpError::NoCluster)?;
    let port = match (chosen.port, &*service.ports) {
        (Some(port), _) => port,
        (None, [only]) => only.port,
        (None, _) => addressed,
    };
    let namespace = &*facts.source.name.namespace;
    let subset = match &chosen.subset {
        Some(name) => Some(snapshot.subset(service, namespace, name).ok_or(HttpError::NoCluster)?),
        None => None,
    };
    to_service(snapshot, facts, (service, port), subset)
}

/// The service that was addressed, where no VirtualService says otherwise.
fn own_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    service: &'a Arc<Service>,
    host: &VirtualHost<'a>,
) -> Result<Destination<'a>, HttpError> {
    to_service(snapshot, facts, (service, host.port), None)
}

fn to_service<'a>(
    snapshot: &'a Snapshot,
    facts: &ConnectionFacts,
    (service, port): (&'a Arc<Service>, u16),
    subset: Option<&'a Subset>,
) -> Result<Destination<'a>, HttpError> {
    if matches!(service.kind, ServiceKind::ExternalName(_)) {
        // Resolved by the client, who dialled the address.
        return Ok(Destination::Dialled);
    }
    let port = service.port(port).ok_or(HttpError::NoCluster)?;
    let rule = snapshot.destination_rule(service, &facts.source.name.namespace);
    let default = TrafficPolicy::default();
    let policy = rule.map_or(&default, |rule| rule.policy(subset, port.port));
    Ok(Destination::Service(ServiceTarget {
        service,
        port,
        subset,
        policy: policy.load_balancer,
        connect_timeout: policy.connect_timeout,
    }))
}

/// What is spoken to an endpoint: what its port declares; on an undeclared port what the client
/// speaks. An upgrade is HTTP/1.1's.
fn upstream_version(protocol: Protocol, client: HttpVersion, upgrade: bool) -> HttpVersion {
    match protocol {
        Protocol::Http => HttpVersion::Http1,
        Protocol::Http2 | Protocol::Grpc if upgrade => HttpVersion::Http1,
        Protocol::Http2 | Protocol::Grpc => HttpVersion::Http2,
        Protocol::Detect | Protocol::Tcp | Protocol::Tls => client,
    }
}

impl<'a> Plan<'a> {
    fn to(destination: Destination<'a>, version: HttpVersion) -> Self {
        Self {
            destination,
            request_ops: [None; 2],
            response_ops: [None; 2],
            path: None,
            authority: None,
            timeout: None,
            version,
            untouched: false,
        }
    }
}

// === forwarding ===

/// What one request's forwarding reads.
struct Flow<'a, C: Connect> {
    engine: &'a Engine<C>,
    connection: &'a Connection,
    live: &'a Live,
    plan: &'a Plan<'a>,
    upgrade: bool,
    grpc: bool,
}

impl<C: Connect> Flow<'_, C> {
    async fn forward(
        &self,
        mut parts: Parts,
        authority: Option<HeaderValue>,
        body: Incoming,
        mut record: RequestRecord,
    ) -> Response<ResponseBody> {
        let gate = self.gate(&mut parts);
        let body = RequestBody::new(body, gate.clone());
        let progress = body.progress();
        if self.prepare(&mut parts, authority).is_none() {
            return reply::failure(&HttpError::Local, false, self.grpc, record);
        }
        let mut deadline = self.plan.timeout.map(|timeout| progress.deadline(timeout));
        let attempts = self.attempts(Request::from_parts(parts, body), &mut record);
        let outcome = match &mut deadline {
            None => attempts.await,
            Some(deadline) => tokio::select! {
                outcome = attempts => outcome,
                () = deadline => Err(GaveUp { error: HttpError::Timeout, attempts: 1 }),
            },
        };
        match outcome {
            Err(gave_up) => {
                record.received(progress.bytes());
                if gave_up.attempts > retry::RETRIES {
                    record.flag(ResponseFlag::RetriesExhausted);
                }
                reply::failure(&gave_up.error, gave_up.attempts > 1, self.grpc, record)
            }
            Ok(answer) => {
                let held = Held {
                    record,
                    progress,
                    active: answer.active,
                    lease: Some(answer.lease),
                    gate,
                    deadline,
                };
                self.answer(answer.response, held, answer.since)
            }
        }
    }

    /// `Expect: 100-continue` goes on to an HTTP/1.1 endpoint, whose word opens the gate. HTTP/2
    /// endpoints get the body at once.
    fn gate(&self, parts: &mut Parts) -> Option<Arc<Gate>> {
        let expects = parts
            .headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !expects {
            return None;
        }
        if self.plan.version == HttpVersion::Http2 {
            parts.headers.remove(EXPECT);
            return None;
        }
        Some(Arc::default())
    }

    /// Brings a head into the form that goes to the endpoint. `None`: it has no legal form.
    fn prepare(&self, parts: &mut Parts, authority: Option<HeaderValue>) -> Option<()> {
        let plan = self.plan;
        let keep_upgrade = self.upgrade && plan.version == HttpVersion::Http1;
        headers::strip_hop_by_hop(&mut parts.headers, keep_upgrade);
        if let Some(path) = &plan.path {
            let before = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
            headers::original_path(&mut parts.headers, &before);
            parts.uri = replaced_path(&parts.uri, path.clone())?;
        }
        for ops in plan.request_ops.into_iter().flatten() {
            headers::apply(ops, &mut parts.headers);
        }
        let authority = plan.authority.cloned().or(authority);
        parts.version = match plan.version {
            HttpVersion::Http1 => {
                headers::join_cookies(&mut parts.headers);
                self.http1_target(parts, authority)?;
                Version::HTTP_11
            }
            HttpVersion::Http2 => {
                self.http2_target(parts, authority)?;
                Version::HTTP_2
            }
        };
        Some(())
    }

    fn http1_target(&self, parts: &mut Parts, authority: Option<HeaderValue>) -> Option<()> {
        let fallback =
            || HeaderValue::from_str(&self.connection.facts.destination.to_string()).ok();
        parts.headers.insert(HOST, authority.or_else(fallback)?);
        // To a forward proxy outside the mesh the absolute form means something.
        let keep = self.plan.untouched && self.connection.version == HttpVersion::Http1;
        if !keep && parts.method != Method::CONNECT && parts.uri.authority().is_some() {
            let target = parts.uri.path_and_query().cloned();
            parts.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        Some(())
    }

    fn http2_target(&self, parts: &mut Parts, authority: Option<HeaderValue>) -> Option<()> {
        let fallback = || self.connection.facts.destination.to_string();
        let authority = authority.and_then(|value| value.to_str().ok().map(str::to_owned));
        let authority: Authority = authority.unwrap_or_else(fallback).parse().ok()?;
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Some(authority);
        if parts.method != Method::CONNECT {
            uri.scheme.get_or_insert(Scheme::HTTP);
            uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        }
        parts.uri = Uri::from_parts(uri).ok()?;
        parts.headers.remove(HOST);
        Some(())
    }

    /// Sends the request; if no connection can be made, to another endpoint, twice more.
    async fn attempts(
        &self,
        mut request: Request<RequestBody>,
        record: &mut RequestRecord,
    ) -> Result<Answer, GaveUp> {
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut number = 0;
        loop {
            number += 1;
            let gave_up = |error| GaveUp { error, attempts: number };
            let (endpoint, active) =
                self.pick(&tried).ok_or_else(|| gave_up(HttpError::NoHealthyUpstream))?;
            record.upstream(&endpoint, self.engine.shared.client.mutual_tls(&endpoint));
            headers::attempt(request.headers_mut(), number, self.plan.timeout);
            if let Some(gate) = request.body().gate() {
                hyper::ext::on_informational(&mut request, move |informational| {
                    if informational.status() == StatusCode::CONTINUE {
                        gate.open();
                    }
                });
            }
            let since = Instant::now();
            match self.engine.shared.client.send(&self.target(&endpoint), request).await {
                Ok((response, lease)) => return Ok(Answer { response, lease, active, since }),
                Err(SendError::Failed(error)) => return Err(gave_up(error)),
                Err(SendError::Connect(error, unsent)) => {
                    tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
                    if number > retry::RETRIES {
                        return Err(gave_up(HttpError::Connect(error)));
                    }
                    tried.push(endpoint.address);
                    request = *unsent;
                }
            }
            tokio::time::sleep(retry::back_off(number, self.engine.shared.draws.next())).await;
        }
    }

    fn target<'b>(&'b self, endpoint: &'b Endpoint) -> Target<'b> {
        Target {
            source: &self.connection.facts.source,
            endpoint,
            version: self.plan.version,
            connect_timeout: match &self.plan.destination {
                Destination::Service(target) => target.connect_timeout,
                Destination::Dialled => CONNECT_TIMEOUT,
            },
        }
    }

    fn pick(&self, tried: &[SocketAddr]) -> Option<(Endpoint, Option<ActiveGuard>)> {
        let facts = &self.connection.facts;
        let target = match &self.plan.destination {
            Destination::Service(target) if target.policy != LoadBalancer::Passthrough => target,
            _ => return Some((self.dialled(), None)),
        };
        if target.service.kind == ServiceKind::Headless && tried.is_empty() {
            // The client chose the pod.
            let chosen = Live::endpoint_at(target.port, target.subset, facts.destination);
            if let Some(endpoint) = chosen {
                return Some((endpoint.clone(), None));
            }
        }
        let picked = self.live.pick(&Ask {
            source: &facts.source,
            service: target.service,
            port: target.port,
            subset: target.subset,
            policy: target.policy,
            dialled: facts.destination,
            tried,
            draw: self.engine.shared.draws.next(),
        })?;
        Some((picked.endpoint, Some(picked.active)))
    }

    /// The address that the client dialled, with the pod behind it if it is one's.
    fn dialled(&self) -> Endpoint {
        let address = self.connection.facts.destination;
        let pod: Option<&Arc<Workload>> = self.live.snapshot.workloads_by_ip.get(&address.ip());
        Endpoint { address, workload: pod.cloned(), ready: true }
    }

    // === answering ===

    fn answer(
        &self,
        response: Response<Incoming>,
        mut held: Held,
        since: Instant,
    ) -> Response<ResponseBody> {
        let (mut head, body) = response.into_parts();
        let upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS && self.upgrade;
        headers::strip_hop_by_hop(&mut head.headers, upgraded);
        if !self.plan.untouched {
            headers::answered(&mut head.headers, since.elapsed());
        }
        for ops in self.plan.response_ops.into_iter().flatten() {
            headers::apply(ops, &mut head.headers);
        }
        held.record.status(head.status);
        if let Some(status) = grpc_status(&head.headers) {
            held.record.grpc_status(status);
        }
        let body = match (upgraded, held.lease.take()) {
            (true, Some(Lease::Http1(_, _, connection))) => {
                held.deadline = None;
                let handover = Handover { upstream: connection.upgraded, held };
                *self.connection.handover.borrow_mut() = Some(handover);
                ResponseBody::empty()
            }
            (_, lease) => {
                held.lease = lease;
                ResponseBody::upstream(body, held)
            }
        };
        Response::from_parts(head, body)
    }
}

fn replaced_path(uri: &Uri, path: PathAndQuery) -> Option<Uri> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}
