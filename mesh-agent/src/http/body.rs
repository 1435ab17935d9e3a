//! The two bodies that cross the engine: the request's on its way up, the response's on its way
//! down. Both stream; each frame is passed on as it comes.
//!
//! Invariant: what a response holds (the record, the endpoint's active count, the pooled
//! connection) is let go when its last frame has passed, or when it is dropped, whichever is first.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::error::HttpError;
use super::incoming::{Incoming, IncomingError};
use super::pool::Lease;
use crate::balance::ActiveGuard;
use crate::telemetry::{RequestRecord, ResponseFlag};
use crate::tunnel::Permit;

/// How long a client that asked `Expect: 100-continue` is left waiting for the endpoint's word. A
/// server need not answer; curl, too, sends its body after a second (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

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

/// A request's body on its way to an endpoint.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// None: empty.
    inner: Option<Incoming>,
    expect: Option<(Arc<Gate>, Pin<Box<Sleep>>)>,
    progress: Rc<Progress>,
    /// Ends the client's connection after this request; none without a body.
    last: Option<CancellationToken>,
}

/// How far a request's body has got; outlives the body.
#[derive(Debug, Default)]
pub(super) struct Progress {
    done: Cell<bool>,
    /// The client's body broke off, or was no legal one.
    broken: Cell<bool>,
    bytes: Cell<u64>,
    /// Wakes the one who waits for the end.
    ended: Notify,
}

/// Holds a body back until the endpoint says `100 Continue`.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const OPEN: u8 = 1;
const REFUSED: u8 = 2;

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
}

/// Resolves when a route's time-out has passed.
pub(super) type Deadline = Pin<Box<dyn Future<Output = ()>>>;

// === impl RequestBody ===

impl RequestBody {
    /// Wraps a client's body; with a gate it waits for `100 Continue`. `last` ends the client's
    /// connection after the request.
    pub(super) fn new(inner: Incoming, gate: Option<Arc<Gate>>, last: &CancellationToken) -> Self {
        let progress = Rc::new(Progress::default());
        if inner.is_end_stream() {
            progress.end();
            return Self { inner: None, expect: None, progress, last: None };
        }
        let expect = gate.map(|gate| (gate, Box::pin(tokio::time::sleep(CONTINUE_WAIT))));
        Self { inner: Some(inner), expect, progress, last: Some(last.clone()) }
    }

    /// hyper sends no body with some methods unless it is told to.
    pub(super) fn frame(&self, headers: &mut HeaderMap) {
        if !self.is_end_stream() && self.size_hint().exact().is_none() {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    /// The same request's body once more, if it has none: then it can be sent again.
    pub(super) fn again(&self) -> Option<Self> {
        let progress = Rc::clone(&self.progress);
        self.inner.is_none().then_some(Self { inner: None, expect: None, progress, last: None })
    }

    pub(super) fn progress(&self) -> Rc<Progress> {
        Rc::clone(&self.progress)
    }

    /// The gate, while the body waits behind it.
    pub(super) fn gate(&self) -> Option<Arc<Gate>> {
        self.expect.as_ref().map(|(gate, _)| Arc::clone(gate))
    }

    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let Some((gate, wait)) = &mut self.expect else { return Poll::Ready(Ok(())) };
        gate.waker.register(cx.waker());
        match gate.state.load(Ordering::Acquire) {
            REFUSED => return Poll::Ready(Err(BodyError::Unwanted)),
            WAITING => ready!(wait.as_mut().poll(cx)),
            _ => {}
        }
        self.expect = None;
        Poll::Ready(Ok(()))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.poll_gate(cx))?;
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        let ended = frame.is_none() || inner.is_end_stream();
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + length);
                if let Some(last) = self.last.as_ref().filter(|_| frame.is_trailers()) {
                    // hyper reads them up to CR LF CR LF, but takes LF LF for their end: what is
                    // between may be a request to who sent them here, and gets no answer.
                    last.cancel();
                }
            }
            Some(Err(_)) => self.progress.broken.set(true),
            None => {}
        }
        if ended {
            self.progress.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

// === impl Progress ===

impl Progress {
    fn end(&self) {
        if !self.done.replace(true) {
            self.ended.notify_one();
        }
    }

    /// Whether the whole body has been handed on.
    pub(super) fn is_done(&self) -> bool {
        self.done.get()
    }

    /// Whether the client's body failed.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Bytes handed on so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// A route's time-out counts from the end of the request (istio-surface 2.2).
    pub(super) fn deadline(self: &Rc<Self>, timeout: Duration) -> Deadline {
        let progress = Rc::clone(self);
        Box::pin(async move {
            if !progress.done.get() {
                progress.ended.notified().await;
            }
            tokio::time::sleep(timeout).await;
        })
    }
}

// === impl Gate ===

impl Gate {
    /// The endpoint wants the body.
    pub(super) fn open(&self) {
        self.set(OPEN);
    }

    /// The request is over: a body that still waits must not be sent on a connection that is done.
    pub(super) fn refuse(&self) {
        self.set(REFUSED);
    }

    fn set(&self, state: u8) {
        let _ = self.state.compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }
}

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
