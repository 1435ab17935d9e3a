//! The response's body on its way down: each frame is passed on as it comes. The request's on its way
//! up is `request_body`.
//!
//! Invariant: what a response holds (the record, the endpoint's active count, the pooled
//! connection) is let go when its last frame has passed, or when it is dropped, whichever is first.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use super::error::HttpError;
use super::incoming::{Incoming, IncomingError};
use super::pool::Lease;
use super::request_body::{Gate, Progress};
use crate::balance::{ActiveGuard, InFlight};
use crate::telemetry::{RequestRecord, ResponseFlag};
use crate::tunnel::Permit;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The other side's body failed.
    #[error("the body was cut off")]
    Peer(#[from] IncomingError),
    /// The route's time-out passed while the response was under way.
    #[error("upstream request timeout")]
    Timeout,
    /// The endpoint gave its final answer without asking for the body.
    #[error("the endpoint did not ask for the body")]
    Unwanted,
}

impl BodyError {
    /// How a stream with such a body is reset.
    pub(super) fn reason(&self) -> h2::Reason {
        match self {
            Self::Peer(error) => error.reason(),
            Self::Timeout => h2::Reason::INTERNAL_ERROR,
            Self::Unwanted => h2::Reason::CANCEL,
        }
    }
}

/// A response's body on its way to the client.
#[derive(Debug)]
pub(super) struct ResponseBody {
    content: Content,
    held: Option<Box<Held>>,
}

#[derive(Debug)]
enum Content {
    Here(Option<Bytes>),
    Upstream(Incoming),
}

/// What a response holds until it is complete.
pub(super) struct Held {
    pub(super) record: RequestRecord,
    pub(super) progress: Rc<Progress>,
    pub(super) active: Option<ActiveGuard>,
    pub(super) lease: Option<Lease>,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) deadline: Option<Deadline>,
    /// Its place among those that its pod may have going on.
    pub(super) _room: Option<Permit>,
    /// Its place among the upstream's requests.
    pub(super) _in_flight: Option<InFlight>,
}

/// Resolves when a route's time-out has passed.
pub(super) type Deadline = Pin<Box<dyn Future<Output = ()>>>;

// === impl ResponseBody ===

impl ResponseBody {
    /// A body made here.
    pub(super) fn here(content: impl Into<Bytes>, mut record: RequestRecord) -> Self {
        let content: Bytes = content.into();
        record.sent(content.len() as u64);
        record.finish();
        Self { content: Content::Here(Some(content).filter(|body| !body.is_empty())), held: None }
    }

    /// A body without anything to let go.
    pub(super) fn empty() -> Self {
        Self { content: Content::Here(None), held: None }
    }

    /// An endpoint's body.
    pub(super) fn upstream(body: Incoming, held: Held) -> Self {
        let mut this = Self { content: Content::Upstream(body), held: Some(Box::new(held)) };
        if this.is_end_stream() {
            this.complete();
        }
        this
    }

    /// The last frame has passed: the connection may serve the next request.
    fn complete(&mut self) {
        if let Some(mut held) = self.held.take() {
            held.record.finish();
            if let Some(lease) = held.lease.take() {
                lease.release(held.progress.is_done());
            }
        }
    }

    /// The body cannot be completed, for a reason that is not the client's.
    fn fail(&mut self, flag: ResponseFlag) {
        if let Some(mut held) = self.held.take() {
            held.record.flag(flag);
            held.record.finish();
        }
    }

    fn passed(&mut self, frame: &Frame<Bytes>) {
        let Some(held) = &mut self.held else { return };
        if let Some(data) = frame.data_ref() {
            held.record.sent(data.len() as u64);
        }
        if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
            held.record.grpc_status(status);
        }
    }
}

/// `grpc-status`, from a head or from trailers.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get("grpc-status")
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let body = match &mut this.content {
            Content::Here(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Upstream(body) => body,
        };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.passed(&frame);
                if this.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.fail(HttpError::from(&error).flag());
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Pending => {
                let deadline = this.held.as_mut().and_then(|held| held.deadline.as_mut());
                if let Some(deadline) = deadline {
                    ready!(deadline.as_mut().poll(cx));
                    this.fail(ResponseFlag::UpstreamTimeout);
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Here(bytes) => bytes.is_none(),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Here(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Upstream(body) => body.size_hint(),
        }
    }
}

// === impl Held ===

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.active.take());
        self.record.received(self.progress.bytes());
        if let Some(gate) = &self.gate {
            gate.refuse();
        }
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("record", &self.record).finish_non_exhaustive()
    }
}
