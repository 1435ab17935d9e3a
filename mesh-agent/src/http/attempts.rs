//! The attempts of one request: pick, send, tell outlier detection, try again.
//!
//! Invariant: nothing is sent again once a head went to the client, nor a body of which a part was
//! let go. Whether another attempt is wanted: `retry`. Source: istio-surface 1.1.2, 2.2 to 2.4.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response};
use tokio::time::Instant;

use super::body::{Deadline, grpc_status};
use super::client::{SendError, Target};
use super::connect::{Connect, ConnectError};
use super::error::HttpError;
use super::incoming::Incoming;
use super::outbound::Flow;
use super::plan::Destination;
use super::pool::Lease;
use super::replay::Source;
use super::request_body::{Gate, Progress, RequestBody};
use super::retry::{self, Outcome};
use super::{form, headers};
use crate::balance::{ActiveGuard, Balancer, Choice, Connections, InFlight, Live};
use crate::model::{Endpoint, ServiceKind, TlsTarget};
use crate::telemetry::{RequestRecord, ResponseFlag};

/// An endpoint's response head, and what it holds.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) active: Option<ActiveGuard>,
    pub(super) since: Instant,
}

/// The last failure, and how many attempts there were.
pub(super) struct GaveUp {
    pub(super) error: HttpError,
    pub(super) attempts: u32,
}

/// What further attempts are made of.
pub(super) struct Spare {
    head: Option<Parts>,
    source: Option<Rc<Source>>,
    gate: Option<Arc<Gate>>,
}

/// The attempts of one request.
pub(super) struct Attempts<'a, 'b, C: Connect> {
    pub(super) flow: &'a Flow<'b, C>,
    pub(super) balancer: Option<&'a Balancer<'a>>,
    pub(super) limits: Option<&'a Connections>,
    pub(super) progress: &'a Rc<Progress>,
    /// TLS that the destination's policy has the agent speak.
    pub(super) tls: Option<&'a Arc<TlsTarget>>,
}

/// Endpoints of earlier attempts.
#[derive(Default)]
struct Past {
    /// Others are chosen, while there are any.
    tried: Vec<SocketAddr>,
    /// Other localities are (`retryRemoteLocalities`).
    leave: Vec<SocketAddr>,
}

/// How one attempt ended.
enum Ended {
    Answer(Box<Answer>),
    Failure {
        error: HttpError,
        outcome: Outcome,
        /// The request, if the endpoint has not begun with it.
        unsent: Option<Box<Request<RequestBody>>>,
    },
    /// In a way that no other attempt could change.
    Final(HttpError),
}

/// Which time-out has passed.
enum Late {
    Route,
    Try,
}

// === impl Spare ===

impl Spare {
    pub(super) fn new(source: Option<Rc<Source>>, gate: Option<Arc<Gate>>) -> Self {
        Self { head: None, source, gate }
    }

    /// Keeps the head, as it is sent.
    pub(super) fn head(&mut self, parts: &Parts) {
        self.head = Some(form::copied(parts));
    }

    /// The request once more. `None`: its body was too large to be kept.
    fn request(&self, progress: &Rc<Progress>) -> Option<Request<RequestBody>> {
        let body = RequestBody::anew(self.source.as_ref(), self.gate.as_ref(), progress)?;
        Some(Request::from_parts(form::copied(self.head.as_ref()?), body))
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.forget();
        }
    }
}

// === impl Ended ===

impl Ended {
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Answer(answer) => {
                Some(Outcome::of(answer.response.status(), answer.response.headers()))
            }
            Self::Failure { outcome, .. } => Some(*outcome),
            Self::Final(_) => None,
        }
    }

    fn into_result(self, attempts: u32) -> Result<Answer, GaveUp> {
        match self {
            Self::Answer(answer) => Ok(*answer),
            Self::Failure { error, .. } | Self::Final(error) => Err(GaveUp { error, attempts }),
        }
    }
}

// === impl Attempts ===

impl<C: Connect> Attempts<'_, '_, C> {
    /// Sends the request, again as often as its route allows, within the route's time-out.
    pub(super) async fn run(
        &self,
        mut request: Request<RequestBody>,
        spare: Option<Spare>,
        deadline: &mut Option<Deadline>,
        record: &mut RequestRecord,
    ) -> Result<Answer, GaveUp> {
        let policy = self.flow.plan.retries;
        let engine = &self.flow.engine.shared;
        let timeout = match (policy.per_try_timeout, self.flow.plan.timeout) {
            (Some(of_try), Some(of_route)) => Some(of_try.min(of_route)),
            (of_try, of_route) => of_try.or(of_route),
        };
        let mut past = Past::default();
        let mut number = 0;
        let mut retrying: Option<InFlight> = None;
        loop {
            number += 1;
            let picked = self.pick(&past);
            let (endpoint, active) =
                picked.ok_or(GaveUp { error: HttpError::NoHealthyUpstream, attempts: number })?;
            record.upstream(&endpoint, engine.client.mutual_tls(&endpoint));
            headers::attempt(request.headers_mut(), number, timeout);
            let ended = self.attempt(request, &endpoint, active, deadline).await;
            // A retry counts until its attempt has ended: the next one may need its place.
            drop(retrying.take());
            let wanted = ended.outcome().filter(|outcome| retry::wanted(policy, *outcome));
            let Some(outcome) = wanted else { return ended.into_result(number) };
            let next = match number <= policy.attempts {
                true => self.next(&ended, spare.as_ref(), record),
                false => {
                    if policy.attempts > 0 {
                        record.flag(ResponseFlag::RetriesExhausted);
                    }
                    None
                }
            };
            let Some((place, again)) = next else { return ended.into_result(number) };
            retrying = place;
            request = match (ended, again) {
                (_, Some(again)) => again,
                (Ended::Failure { unsent: Some(unsent), .. }, None) => *unsent,
                (ended, None) => return ended.into_result(number),
            };
            // The same key means the same endpoint, unless nobody is there.
            let elsewhere = match self.flow.plan.key.hash {
                None => policy.ignore_previous_hosts,
                Some(_) => outcome == Outcome::NoConnection,
            };
            if elsewhere {
                past.tried.push(endpoint.address);
            }
            if policy.remote_localities {
                past.leave.push(endpoint.address);
            }
            let wait = retry::back_off(policy.back_off, number, engine.draws.next());
            let waiting = pin!(tokio::time::sleep(wait));
            if in_time(waiting, deadline, &mut None).await.is_err() {
                return Err(GaveUp { error: HttpError::Timeout, attempts: number });
            }
        }
    }

    /// Leave for another attempt, and the request for it (`None` inside: the one that was not sent).
    fn next(
        &self,
        ended: &Ended,
        spare: Option<&Spare>,
        record: &mut RequestRecord,
    ) -> Option<(Option<InFlight>, Option<Request<RequestBody>>)> {
        let retrying = match self.balancer {
            None => None,
            Some(balancer) => match balancer.retry() {
                Some(retrying) => Some(retrying),
                None => {
                    record.flag(ResponseFlag::UpstreamOverflow);
                    return None;
                }
            },
        };
        match ended {
            Ended::Failure { unsent: Some(_), .. } => Some((retrying, None)),
            _ => Some((retrying, Some(spare?.request(self.progress)?))),
        }
    }

    /// One attempt; outlier detection learns how it went.
    async fn attempt(
        &self,
        request: Request<RequestBody>,
        endpoint: &Endpoint,
        active: Option<ActiveGuard>,
        deadline: &mut Option<Deadline>,
    ) -> Ended {
        let flow = self.flow;
        let since = Instant::now();
        let target = Target {
            source: &flow.connection.facts.source,
            endpoint,
            version: flow.plan.version,
            pool: &flow.policy().pool,
            limits: self.limits,
            tls: self.tls,
        };
        let mut of_try =
            flow.plan.retries.per_try_timeout.map(|timeout| self.progress.deadline(timeout));
        let sending = pin!(flow.engine.shared.client.send(&target, request, flow.early));
        let sent = in_time(sending, deadline, &mut of_try).await;
        let blame = || {
            if let Some(active) = &active {
                active.unanswered();
            }
        };
        let (error, outcome, unsent) = match sent {
            Ok(Ok((response, lease))) if flow.is_legal(&response) => {
                if let Some(active) = &active {
                    active.answered(status_of(&response));
                }
                return Ended::Answer(Box::new(Answer { response, lease, active, since }));
            }
            Ok(Ok(_)) => (HttpError::Protocol, Outcome::Broken, None),
            Err(Late::Route) => {
                blame();
                return Ended::Final(HttpError::Timeout);
            }
            Err(Late::Try) => {
                blame();
                let (error, outcome) = (HttpError::TryTimeout, Outcome::TryTimeout);
                return Ended::Failure { error, outcome, unsent: None };
            }
            Ok(Err(SendError::Connect(ConnectError::Limit, _))) => {
                return Ended::Final(HttpError::Overflow);
            }
            Ok(Err(SendError::Connect(error, unsent))) => {
                tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
                match error {
                    ConnectError::Remote(_) | ConnectError::Timeout => blame(),
                    // Not the endpoint's fault.
                    ConnectError::Local(_) | ConnectError::Limit => {}
                }
                let (error, outcome) = (HttpError::Connect(error), Outcome::NoConnection);
                return Ended::Failure { error, outcome, unsent: Some(unsent) };
            }
            Ok(Err(SendError::Refused(error, again))) => (error, Outcome::Refused, again),
            Ok(Err(SendError::Failed(error))) => (error, Outcome::Broken, None),
        };
        // What the client broke is not the endpoint's, and is not tried again.
        if self.progress.is_broken() || error == HttpError::Local {
            return Ended::Final(error);
        }
        blame();
        Ended::Failure { error, outcome, unsent }
    }

    fn pick(&self, past: &Past) -> Option<(Endpoint, Option<ActiveGuard>)> {
        let flow = self.flow;
        let (Some(balancer), Destination::Service(target)) =
            (self.balancer, &flow.plan.destination)
        else {
            return Some((flow.dialled(), None));
        };
        if target.is_dialled() {
            return Some((flow.dialled(), None));
        }
        if target.service.kind == ServiceKind::Headless && past.tried.is_empty() {
            // The client chose the pod.
            let dialled = flow.connection.facts.destination;
            let endpoint = Live::endpoint_at(target.port, target.subset, dialled);
            if let Some(picked) = endpoint.and_then(|endpoint| balancer.pick_at(endpoint)) {
                return Some((picked.endpoint, Some(picked.active)));
            }
        }
        let draw = flow.engine.shared.draws.next();
        let Past { tried, leave } = past;
        let picked = balancer.pick(&Choice { tried, leave, hash: flow.plan.key.hash, draw })?;
        Some((picked.endpoint, Some(picked.active)))
    }
}

/// What outlier detection takes an answer for: gRPC's status counts where it is in the head.
pub(super) fn status_of(response: &Response<Incoming>) -> u16 {
    let grpc = grpc_status(response.headers()).and_then(|value| value.to_str().ok()?.parse().ok());
    grpc.map_or(response.status().as_u16(), retry::status_of_grpc)
}

/// Awaits `work` until one of the time-outs has passed. It is pinned by who asks: what is handed on is
/// held twice.
async fn in_time<T>(
    work: Pin<&mut impl Future<Output = T>>,
    of_route: &mut Option<Deadline>,
    of_try: &mut Option<Deadline>,
) -> Result<T, Late> {
    if of_route.is_none() && of_try.is_none() {
        return Ok(work.await);
    }
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = passed(of_route) => Err(Late::Route),
        () = passed(of_try) => Err(Late::Try),
    }
}

async fn passed(deadline: &mut Option<Deadline>) {
    match deadline {
        Some(deadline) => deadline.await,
        None => std::future::pending().await,
    }
}
