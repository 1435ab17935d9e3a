//! Copies of requests for mirrors: sent on their own, their answers dropped.
//!
//! Invariant: a mirror never slows or fails the original. A copy that nobody takes in time, or that
//! falls too far behind, is given up; above [`MOST`] at one moment further ones are not made.
//! Source: Istio `http[].mirror` (istio-surface 1.1.1).

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body::{Body as _, SizeHint};
use tokio::time::{Instant, timeout_at};

use super::attempts::status_of;
use super::client::{SendError, Target};
use super::connect::{Connect, ConnectError};
use super::early::Early;
use super::engine::{ConnectionFacts, Engine};
use super::error::HttpError;
use super::form;
use super::incoming::IncomingError;
use super::outbound::Flow;
use super::plan::{Destination, named_service, upstream_version};
use super::replay::{Copied, Tap, copy};
use super::request_body::RequestBody;
use super::serve::HttpVersion;
use crate::balance::{Ask, Choice, Live};
use crate::model::Mirror;

/// Copies of one source's requests at one moment, on one worker.
const MOST: u32 = 64;
/// Time for a copy and its answer where the route has no time-out.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How many copies a source has under way; clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Rc<Cell<u32>>);

/// One copy's place among those of its source.
struct Place(Count);

/// The mirrors that get a copy of one request.
pub(super) struct Copies<C: Connect> {
    errand: Errand<C>,
    mirrors: Vec<(Mirror, Place)>,
}

/// What all copies of a request have in common.
struct Errand<C: Connect> {
    engine: Engine<C>,
    facts: ConnectionFacts,
    live: Arc<Live>,
    /// What the head was prepared for.
    version: HttpVersion,
    /// What the client speaks.
    client: HttpVersion,
    /// The service port that it addressed.
    addressed: u16,
    timeout: Duration,
}

impl Count {
    /// Whether a copy is under way, or somebody else counts here.
    pub(super) fn is_used(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

impl Place {
    fn take(count: &Count) -> Option<Self> {
        let now = count.0.get();
        (now < MOST).then(|| {
            count.0.set(now + 1);
            Self(count.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

impl<C: Connect> Copies<C> {
    /// Rolls which of the route's mirrors get a copy. `None`: none does.
    pub(super) fn of(flow: &Flow<'_, C>) -> Option<Self> {
        let shared = &flow.engine.shared;
        let facts = &flow.connection.facts;
        let mut rolled =
            flow.plan.mirrors.iter().filter(|one| one.share.takes(shared.draws.next()));
        let count = shared.copies(&facts.source.uid);
        let mirrors: Vec<_> =
            rolled.by_ref().map_while(|one| Some((one.clone(), Place::take(&count)?))).collect();
        if mirrors.is_empty() {
            return None;
        }
        let errand = Errand {
            engine: flow.engine.clone(),
            facts: facts.clone(),
            live: Arc::clone(flow.live),
            version: flow.plan.version,
            client: flow.connection.version,
            addressed: flow.plan.addressed,
            timeout: flow.plan.timeout.unwrap_or(TIMEOUT),
        };
        Some(Self { errand, mirrors })
    }

    /// Starts the copies of a head; a body of this size (`None`: without one) goes to them by the taps.
    pub(super) fn send(self, parts: &Parts, size: Option<&SizeHint>) -> Vec<Tap> {
        let mut taps = Vec::new();
        let errand = Rc::new(self.errand);
        for (mirror, place) in self.mirrors {
            let body = size.map(|size| {
                let (tap, copied) = copy(size, &errand.facts.quota);
                taps.push(tap);
                copied
            });
            let errand = Rc::clone(&errand);
            let parts = form::copied(parts);
            let tasks = errand.engine.shared.tasks.clone();
            tasks.spawn_local(async move {
                let _place = place;
                errand.carry(&mirror, parts, body).await;
            });
        }
        taps
    }
}

impl<C: Connect> Errand<C> {
    /// Sends one copy, and reads its answer to the end so that the connection can be used again.
    async fn carry(&self, mirror: &Mirror, mut parts: Parts, body: Option<Copied>) {
        let facts = &self.facts;
        let named = named_service(&self.live.snapshot, facts, &mirror.into(), self.addressed);
        let Ok(Destination::Service(target)) = named else { return };
        let version = upstream_version(&target, self.client, false);
        if form::revise(&mut parts, (self.version, version), facts.destination).is_none() {
            return;
        }
        let body = RequestBody::copied(body);
        let progress = body.progress();
        if version == HttpVersion::Http1 {
            body.frame(&mut parts.headers);
        }
        let balancer = self.live.upstream(Ask::new(&facts.source, &target, facts.destination));
        let Some(_in_flight) = balancer.admit() else { return };
        let draw = self.engine.shared.draws.next();
        let choice = Choice { tried: &[], leave: &[], hash: None, draw };
        let Some(picked) = balancer.pick(&choice) else { return };
        let limits = balancer.connections();
        let tls = form::tls(&parts, &target, version);
        let to = Target {
            source: &facts.source,
            endpoint: &picked.endpoint,
            version,
            pool: &target.policy.pool,
            limits: limits.as_ref(),
            tls: tls.as_ref(),
        };
        let request = Request::from_parts(parts, body);
        let end = Instant::now() + self.timeout;
        let early = Early::default();
        let sending = self.engine.shared.client.send(&to, request, &early);
        let (response, lease) = match timeout_at(end, sending).await {
            Ok(Ok(answer)) => answer,
            // Ours: no connection could be tried, or the copy broke off with its original.
            Ok(Err(
                SendError::Connect(ConnectError::Local(_) | ConnectError::Limit, _)
                | SendError::Failed(HttpError::Local),
            )) => return,
            Ok(Err(_)) => return picked.active.unanswered(),
            Err(_) => {
                tracing::debug!(mirror = %mirror.host, "copy of a request not answered in time");
                // As for any request, its time would begin with the body's end.
                if progress.is_done() {
                    picked.active.unanswered();
                }
                return;
            }
        };
        picked.active.answered(status_of(&response));
        let mut body = response.into_body();
        let read = async {
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                frame?;
            }
            Ok::<_, IncomingError>(())
        };
        if let Ok(Ok(())) = timeout_at(end, read).await {
            lease.release(progress.is_done());
        }
    }
}
