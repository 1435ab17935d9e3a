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
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::body::{Gate, Held, RequestBody, ResponseBody, grpc_status};
use super::client::{SendError, Target};
use super::connect::{Connect, ConnectError};
use super::early::Early;
use super::engine::Engine;
use super::error::HttpError;
use super::form::{self, Origin};
use super::incoming::Incoming;
use super::plan::{Decision, Destination, Plan, decide};
use super::pool::Lease;
use super::router::Head;
use super::serve::{Connection, HttpVersion};
use super::upgrade::{Handover, Switch};
use super::{headers, reply, retry, strict};
use crate::balance::{ActiveGuard, Ask, Live};
use crate::model::{Endpoint, LoadBalancer, Readiness, ServiceKind};
use crate::telemetry::{Reporter, RequestRecord, RequestStart, ResponseFlag};
use crate::tunnel::Permit;

/// The connect time-out outside services, and where no rule says otherwise: Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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
    early: &Early,
) -> Response<ResponseBody> {
    let live = engine.shared.live.load_full();
    let (mut parts, body) = request.into_parts();
    let authority = authority_of(&parts);
    let authority_text = authority.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("");
    let grpc = headers::is_grpc(&parts.headers);
    let content = !body.is_end_stream();
    let legal = strict::request(&parts, connection.version, content);
    let mut record = engine.shared.telemetry.request(RequestStart {
        reporter: Reporter::Source,
        source: &connection.facts.source,
        method: &parts.method,
        path: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
        authority: authority_text,
        grpc,
    });
    let switch = Switch::of(connection.version, &parts, content);
    // First of all: what the mesh adds is not the client's to name there.
    headers::strip_hop_by_hop(&mut parts.headers, matches!(switch, Switch::Upgrade(_)));
    record.request_id(&headers::identify(
        &mut parts.headers,
        (engine.shared.draws.next(), engine.shared.draws.next()),
    ));
    let head = Head {
        method: &parts.method,
        uri: &parts.uri,
        headers: &parts.headers,
        authority: authority_text,
    };
    let draw = engine.shared.draws.next();
    let leaves = switch != Switch::No;
    let illegal = legal.is_err();
    let room = connection.facts.quota.request();
    let decision = match (legal, connection.version, &parts.method) {
        (Err(error), ..) => Decision::Fail(error),
        _ if room.is_none() => Decision::Fail(HttpError::Overflow),
        // hyper keeps such a stream to itself.
        (_, HttpVersion::Http2, &Method::CONNECT) => Decision::Fail(HttpError::Local),
        _ => decide(&live.snapshot, connection, &head, (leaves, draw), &mut record),
    };
    let mut response = match decision {
        Decision::Fail(error) => reply::failure(&error, false, grpc, record),
        Decision::Redirect(location, code, ops) => reply::redirect(&location, code, ops, record),
        Decision::Direct(direct, ops) => reply::direct(direct, ops, record),
        Decision::Forward(plan) => {
            // HTTP/1.0 has none: nobody takes them.
            let early = if parts.version == Version::HTTP_10 { &Early::default() } else { early };
            let flow = Flow { engine, connection, live: &live, plan: &plan, switch, grpc, early };
            flow.forward(Request::from_parts(parts, body), authority, record, room).await
        }
    };
    if illegal || connection.shutdown.is_cancelled() {
        connection.close_after(&mut response);
    }
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
        None => parts.headers.get(HOST).filter(|host| !host.is_empty()).cloned(),
    }
}

// === impl Flow ===

/// What one request's forwarding reads.
struct Flow<'a, C: Connect> {
    engine: &'a Engine<C>,
    connection: &'a Connection,
    live: &'a Live,
    plan: &'a Plan<'a>,
    switch: Switch,
    grpc: bool,
    /// Where informational responses go.
    early: &'a Early,
}

impl<C: Connect> Flow<'_, C> {
    async fn forward(
        &self,
        request: Request<Incoming>,
        authority: Option<HeaderValue>,
        mut record: RequestRecord,
        room: Option<Permit>,
    ) -> Response<ResponseBody> {
        let (mut parts, body) = request.into_parts();
        let gate = self.gate(&mut parts);
        let body = RequestBody::new(body, gate.clone(), &self.connection.last);
        let progress = body.progress();
        if self.prepared(&mut parts, authority).is_none() {
            return reply::failure(&HttpError::Local, false, self.grpc, record);
        }
        if self.plan.version == HttpVersion::Http1 {
            body.frame(&mut parts.headers);
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
            Err(mut gave_up) => {
                if progress.is_broken() {
                    gave_up.error = HttpError::Malformed;
                }
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
                    _room: room,
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
        if parts.version == Version::HTTP_10 {
            parts.headers.remove(EXPECT);
            return None;
        }
        if self.plan.version == HttpVersion::Http2 {
            parts.headers.remove(EXPECT);
            self.early.tell_continue();
            return None;
        }
        Some(Arc::default())
    }

    fn prepared(&self, parts: &mut Parts, authority: Option<HeaderValue>) -> Option<()> {
        let from =
            Origin { version: self.connection.version, dialled: self.connection.facts.destination };
        form::prepare(parts, self.plan, authority, &from)
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
            let since = Instant::now();
            let target = self.target(&endpoint);
            match self.engine.shared.client.send(&target, request, self.early).await {
                Ok((response, _)) if !self.is_legal(&response) => {
                    return Err(gave_up(HttpError::Protocol));
                }
                Ok((response, lease)) => return Ok(Answer { response, lease, active, since }),
                Err(SendError::Failed(error)) => return Err(gave_up(error)),
                Err(SendError::Connect(ConnectError::Limit, _)) => {
                    return Err(gave_up(HttpError::Overflow));
                }
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
        let pod = self.live.snapshot.workloads_by_ip.get(&address.ip());
        Endpoint { address, workload: pod.cloned(), readiness: Readiness::Ready }
    }

    // === answering ===

    /// Whether the head of an endpoint's answer may go on. Not so a change of protocol that nobody
    /// asked for.
    fn is_legal(&self, response: &Response<Incoming>) -> bool {
        let (status, headers) = (response.status(), response.headers());
        let goes_on = !status.is_informational() || self.switch.happens(status, headers);
        goes_on && strict::response(headers, self.plan.version)
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        mut held: Held,
        since: Instant,
    ) -> Response<ResponseBody> {
        let (mut head, body) = response.into_parts();
        let switched = self.switch.happens(head.status, &head.headers);
        let upgraded = switched && self.switch != Switch::Connect;
        headers::strip_hop_by_hop(&mut head.headers, upgraded);
        strict::one_length(&mut head.headers, Some(head.status), switched);
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
        let body = match (switched, held.lease.take()) {
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
