//! One request from a local pod, from its head to its response: the only place that knows the
//! order of phases.
//!
//! route -> rate limit -> redirect or direct response -> fault -> CORS -> headers and rewrite ->
//! mirrors -> attempts {pick, send, ejection, retry} -> headers of the response. Each phase is a leaf;
//! what a phase decides is a value that the next one takes.
//!
//! Invariant: one `Live` for the whole request, however long it takes.

use std::sync::Arc;

use http::header::{EXPECT, HOST, SET_COOKIE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::attempts::{Attempts, Spare};
use super::body::{Held, ResponseBody, grpc_status};
use super::connect::Connect;
use super::early::Early;
use super::engine::Engine;
use super::error::HttpError;
use super::form::{self, Origin};
use super::incoming::Incoming;
use super::mirror::Copies;
use super::plan::{Decided, Decision, Destination, Plan, decide};
use super::pool::{Http1, Lease};
use super::reply::To;
use super::request_body::{Gate, RequestBody};
use super::router::Head;
use super::serve::{Connection, HttpVersion};
use super::upgrade::{Handover, Switch};
use super::{cors, fault, headers, reply, retry, strict};
use crate::balance::{Ask, Balancer, Live};
use crate::model::{Endpoint, Fault, Readiness, TrafficPolicy};
use crate::telemetry::{Reporter, RequestRecord, RequestStart, ResponseFlag};
use crate::tunnel::Permit;

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
    let draws = &engine.shared.draws;
    let leaves = switch != Switch::No;
    let illegal = legal.is_err();
    let room = connection.facts.quota.request();
    let decided: Decided<'_> = match (legal, connection.version, &parts.method) {
        (Err(error), ..) => Decision::Fail(error).into(),
        _ if room.is_none() => Decision::Fail(HttpError::Overflow).into(),
        // hyper keeps such a stream to itself.
        (_, HttpVersion::Http2, &Method::CONNECT) => Decision::Fail(HttpError::Local).into(),
        _ => decide(&live, connection, &head, (leaves, draws), &mut record),
    };
    let to = To { grpc, ops: decided.response_ops };
    let mut response = match injected(engine, decided.fault, to, record).await {
        Err(response) => *response,
        Ok(record) => match decided.decision {
            Decision::Fail(error) => reply::failure(&error, false, to, record),
            Decision::Redirect(location, code) => reply::redirect(&location, code, to, record),
            Decision::Direct(direct) => reply::direct(direct, to, record),
            Decision::Preflight(headers) => reply::preflight(headers, record),
            Decision::Forward(plan) => {
                // HTTP/1.0 has none: nobody takes them.
                let none = Early::default();
                let early = if parts.version == Version::HTTP_10 { &none } else { early };
                let flow = Flow { engine, connection, live: &live, plan: &plan, switch, to, early };
                flow.forward(Request::from_parts(parts, body), authority, record, room).await
            }
        },
    };
    if let Some((policy, origin)) = decided.cors {
        cors::mark(policy, origin, response.headers_mut());
    }
    if illegal || connection.shutdown.is_cancelled() {
        connection.close_after(&mut response);
    }
    *response.version_mut() = match connection.version {
        HttpVersion::Http1 => Version::HTTP_11,
        HttpVersion::Http2 => Version::HTTP_2,
    };
    response
}

/// Gives a request its fault: it waits, and goes on, or is answered here.
async fn injected<C: Connect>(
    engine: &Engine<C>,
    fault: Option<&Fault>,
    to: To<'_>,
    mut record: RequestRecord,
) -> Result<RequestRecord, Box<Response<ResponseBody>>> {
    let Some(fault) = fault else { return Ok(record) };
    let draws = &engine.shared.draws;
    let rolled = fault::roll(fault, (draws.next(), draws.next()));
    if let Some(delay) = rolled.delay {
        record.flag(ResponseFlag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    match rolled.abort {
        Some(abort) => Err(Box::new(reply::fault(abort, to, record))),
        None => Ok(record),
    }
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
pub(super) struct Flow<'a, C: Connect> {
    pub(super) engine: &'a Engine<C>,
    pub(super) connection: &'a Connection,
    pub(super) live: &'a Arc<Live>,
    pub(super) plan: &'a Plan<'a>,
    switch: Switch,
    /// Whom answers are for.
    to: To<'a>,
    /// Where informational responses go.
    pub(super) early: &'a Early,
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
        let mut body = RequestBody::new(body, gate.clone(), &self.connection.ending);
        let progress = body.progress();
        if self.prepared(&mut parts, authority).is_none() {
            return reply::failure(&HttpError::Local, false, self.to, record);
        }
        let balancer = self.balancer();
        let in_flight = match &balancer {
            Some(balancer) => match balancer.admit() {
                Some(in_flight) => Some(in_flight),
                None => return reply::failure(&HttpError::Overflow, false, self.to, record),
            },
            None => None,
        };
        let mut spare = self.shared(&parts, &mut body, gate.as_ref());
        if self.plan.version == HttpVersion::Http1 {
            body.frame(&mut parts.headers);
        }
        if let Some(spare) = &mut spare {
            spare.head(&parts);
        }
        let mut deadline = self.plan.timeout.map(|timeout| progress.deadline(timeout));
        let limits = balancer.as_ref().and_then(Balancer::connections);
        let tls = match &self.plan.destination {
            Destination::Service(target) => form::tls(&parts, target, self.plan.version),
            Destination::Dialled => None,
        };
        let attempts = Attempts {
            flow: self,
            balancer: balancer.as_ref(),
            limits: limits.as_ref(),
            progress: &progress,
            tls: tls.as_ref(),
        };
        let request = Request::from_parts(parts, body);
        let outcome = attempts.run(request, spare, &mut deadline, &mut record).await;
        match outcome {
            Err(mut gave_up) => {
                if progress.is_broken() {
                    gave_up.error = HttpError::Malformed;
                }
                record.received(progress.bytes());
                reply::failure(&gave_up.error, gave_up.attempts > 1, self.to, record)
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
                    _in_flight: in_flight,
                };
                self.answer(answer.response, held, answer.since)
            }
        }
    }

    /// Sees to it that the request can be sent again, if the route may want that, and sends copies to
    /// mirrors.
    fn shared(
        &self,
        parts: &Parts,
        body: &mut RequestBody,
        gate: Option<&Arc<Gate>>,
    ) -> Option<Spare> {
        // After a change of protocol there is no second attempt, and no copy.
        let ordinary = self.switch == Switch::No;
        let has_body = !body.is_end_stream();
        let kind = (self.to.grpc, has_body);
        let keep = ordinary && retry::keeps(self.plan.retries, kind, self.plan.version);
        let copies = match self.plan.mirrors {
            [] => None,
            _ => ordinary.then(|| Copies::of(self)).flatten(),
        };
        if !keep && copies.is_none() {
            return None;
        }
        let taps = copies.map_or_else(Vec::new, |copies| {
            let size = has_body.then(|| body.size_hint());
            copies.send(parts, size.as_ref())
        });
        let source = match keep || !taps.is_empty() {
            true => body.share(keep, taps),
            false => None,
        };
        keep.then(|| Spare::new(source, gate.cloned()))
    }

    /// The balancer of the chosen service, whose limits hold also where the client's address is the
    /// endpoint; `None`: no service.
    fn balancer(&self) -> Option<Balancer<'_>> {
        let target = match &self.plan.destination {
            Destination::Service(target) => target,
            Destination::Dialled => return None,
        };
        let facts = &self.connection.facts;
        Some(self.live.upstream(Ask::new(&facts.source, target, facts.destination)))
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

    /// The policy of the destination.
    pub(super) fn policy(&self) -> &TrafficPolicy {
        match &self.plan.destination {
            Destination::Service(target) => target.policy,
            Destination::Dialled => TrafficPolicy::of_mesh(),
        }
    }

    /// The address that the client dialled, with the pod behind it if it is one's.
    pub(super) fn dialled(&self) -> Endpoint {
        let address = self.connection.facts.destination;
        let pod = self.live.snapshot.workloads_by_ip.get(&address.ip());
        Endpoint {
            address,
            workload: pod.cloned(),
            labels: None,
            locality: None,
            readiness: Readiness::Ready,
        }
    }

    // === answering ===

    /// Whether the head of an endpoint's answer may go on. Not so a change of protocol that nobody
    /// asked for.
    pub(super) fn is_legal(&self, response: &Response<Incoming>) -> bool {
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
        for ops in self.to.ops.into_iter().flatten() {
            headers::apply(ops, &mut head.headers);
        }
        if let Some(cookie) = &self.plan.key.cookie {
            head.headers.append(SET_COOKIE, cookie.clone());
        }
        held.record.status(head.status);
        if let Some(status) = grpc_status(&head.headers) {
            held.record.grpc_status(status);
        }
        let body = match (switched, held.lease.take()) {
            (true, Some(Lease::Http1(_, _, connection))) => {
                held.deadline = None;
                let Http1 { upgraded, place, .. } = connection;
                let handover = Handover { upstream: upgraded, held, _place: place };
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
