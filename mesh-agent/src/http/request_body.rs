//! The request's body on its way up: streamed, played again for a further attempt, or a mirror's copy.
//!
//! Invariant: the client's body is read once, by whoever is the latest to send it (`replay`).

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

use super::body::{BodyError, Deadline};
use super::incoming::Incoming;
use super::replay::{Copied, Reading, Source, Tap};
use super::serve::Ending;

/// How long a client that asked `Expect: 100-continue` is left waiting for the endpoint's word. A
/// server need not answer; curl, too, sends its body after a second (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A request's body on its way to an endpoint.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Inner,
    expect: Option<(Arc<Gate>, Pin<Box<Sleep>>)>,
    progress: Rc<Progress>,
}

#[derive(Debug)]
enum Inner {
    Empty,
    /// Straight from the client.
    Client(ClientBody),
    /// From the client, kept for a further attempt or copied for mirrors.
    Shared(Reading),
    /// What a mirror gets.
    Copy(Copied),
}

/// The client's body, and who is told of its end.
#[derive(Debug)]
pub(super) struct ClientBody {
    incoming: Incoming,
    progress: Rc<Progress>,
    /// Of the client's connection.
    ending: Ending,
}

/// How far a request's body has got; outlives the body.
#[derive(Debug, Default)]
pub(super) struct Progress {
    done: Cell<bool>,
    /// The client's body broke off, or was no legal one.
    broken: Cell<bool>,
    bytes: Cell<u64>,
    /// Wakes all who wait for the end: the deadlines of the route and of the try.
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

// === impl RequestBody ===

impl RequestBody {
    /// Wraps a client's body; with a gate it waits for `100 Continue`. `ending` is how its connection
    /// ends.
    pub(super) fn new(incoming: Incoming, gate: Option<Arc<Gate>>, ending: &Ending) -> Self {
        let progress = Rc::new(Progress::default());
        if incoming.is_end_stream() {
            progress.end();
            return Self { inner: Inner::Empty, expect: None, progress };
        }
        let (told, ending) = (Rc::clone(&progress), ending.clone());
        let client = ClientBody { incoming, progress: told, ending };
        Self { inner: Inner::Client(client), expect: gate.map(waiting), progress }
    }

    /// A mirror's copy; `None` for a request without a body.
    pub(super) fn copied(copy: Option<Copied>) -> Self {
        let progress = Rc::new(Progress::default());
        if copy.is_none() {
            progress.end();
        }
        Self { inner: copy.map_or(Inner::Empty, Inner::Copy), expect: None, progress }
    }

    /// Has what is read of it kept for further attempts (`keep`) and given to `taps`. `None`: there is
    /// no body, and nothing to keep.
    pub(super) fn share(&mut self, keep: bool, taps: Vec<Tap>) -> Option<Rc<Source>> {
        match std::mem::replace(&mut self.inner, Inner::Empty) {
            Inner::Client(client) => {
                let source = Source::new(client, keep, taps);
                self.inner = Inner::Shared(Source::read(&source));
                Some(source)
            }
            other => {
                self.inner = other;
                None
            }
        }
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
        matches!(self.inner, Inner::Empty).then_some(Self {
            inner: Inner::Empty,
            expect: None,
            progress,
        })
    }

    /// The body of a further attempt, from its beginning. `None`: it was too large to be kept.
    pub(super) fn anew(
        source: Option<&Rc<Source>>,
        gate: Option<&Arc<Gate>>,
        progress: &Rc<Progress>,
    ) -> Option<Self> {
        let progress = Rc::clone(progress);
        let Some(source) = source else {
            return Some(Self { inner: Inner::Empty, expect: None, progress });
        };
        let inner = Inner::Shared(source.again()?);
        let expect = gate.filter(|gate| gate.is_waiting()).cloned().map(waiting);
        Some(Self { inner, expect, progress })
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

fn waiting(gate: Arc<Gate>) -> (Arc<Gate>, Pin<Box<Sleep>>) {
    (gate, Box::pin(tokio::time::sleep(CONTINUE_WAIT)))
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.poll_gate(cx))?;
        match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Client(client) => client.poll_frame(cx),
            Inner::Shared(reading) => reading.poll_frame(cx),
            Inner::Copy(copy) => {
                let frame = ready!(copy.poll_frame(cx));
                if copy.is_end_stream() {
                    self.progress.end();
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Client(client) => client.is_end_stream(),
            Inner::Shared(reading) => reading.is_end_stream(),
            Inner::Copy(copy) => copy.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Client(client) => client.size_hint(),
            Inner::Shared(reading) => reading.size_hint(),
            Inner::Copy(copy) => copy.size_hint(),
        }
    }
}

// === impl ClientBody ===

impl ClientBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let ended = frame.is_none() || self.incoming.is_end_stream();
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + length);
                if frame.is_trailers() {
                    // hyper reads them up to CR LF CR LF, but takes LF LF for their end: what is
                    // between may be a request to who sent them here, and gets no answer.
                    self.ending.last.cancel();
                }
            }
            Some(Err(error)) => {
                self.progress.broken.set(true);
                if error.is_end_of_connection() {
                    self.ending.gone.cancel();
                }
            }
            None => {}
        }
        if ended {
            self.progress.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

// === impl Progress ===

impl Progress {
    fn end(&self) {
        if !self.done.replace(true) {
            self.ended.notify_waiters();
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

    /// Nothing was decided yet.
    fn is_waiting(&self) -> bool {
        self.state.load(Ordering::Acquire) == WAITING
    }

    fn set(&self, state: u8) {
        let _ = self.state.compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }
}
