//! A request's body that goes to several: to each attempt in turn, from its beginning, and to mirrors
//! while it is first read.
//!
//! Invariant: the client's body is read once, only as fast as the latest attempt takes it. What is
//! kept of it for a further attempt never exceeds [`KEPT`]; a longer body is sent once. A mirror that
//! falls behind by [`BEHIND`], or by more than its pod has memory for, loses its copy, and holds up
//! nobody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::body::BodyError;
use super::request_body::ClientBody;
use crate::tunnel::{Permit, Quota};

/// Bytes of a body that are kept for further attempts; above it there are none. Envoy keeps 1 MiB;
/// a node's agent does so for all of its pods.
pub(super) const KEPT: usize = 64 * 1024;
/// Bytes that a mirror may be behind the original: [`STEP`], and further ones out of what the pod may
/// hold.
const BEHIND: usize = 8 * 1024 * 1024;
/// Bytes that are set aside at once.
const STEP: usize = 64 * 1024;
/// What a frame costs beside its bytes, so that many small ones are bounded, too.
const OF_FRAME: usize = 64;

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// A client's body for several readers.
#[derive(Debug)]
pub(super) struct Source {
    client: RefCell<ClientBody>,
    kept: RefCell<Kept>,
    taps: Vec<Tap>,
    /// The attempt that reads; those before it have been given up.
    reader: Cell<u32>,
}

/// What has been read of the body.
#[derive(Debug)]
struct Kept {
    pieces: VecDeque<Piece>,
    /// Number of the first one: those before it were let go.
    first: usize,
    cost: usize,
    /// Whether all of it is here; not once it was too large, or no further attempt is to come.
    whole: bool,
    ended: bool,
}

/// One attempt's place in the body.
#[derive(Debug)]
pub(super) struct Reading {
    source: Rc<Source>,
    attempt: u32,
    at: usize,
}

/// Where a mirror's copy comes from. Dropped before the end, it breaks the copy off.
#[derive(Debug)]
pub(super) struct Tap(Rc<Channel>);

/// A mirror's copy.
#[derive(Debug)]
pub(super) struct Copied(Rc<Channel>);

#[derive(Debug)]
struct Channel {
    pieces: RefCell<VecDeque<Piece>>,
    cost: Cell<usize>,
    quota: Arc<Quota>,
    /// Memory set aside beside the first step.
    room: RefCell<Vec<Permit>>,
    state: Cell<State>,
    waker: RefCell<Option<Waker>>,
    /// Bytes to come, if that is known.
    left: Cell<Option<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    /// Too far behind, or the original broke off, or nobody reads.
    Broken,
}

// === impl Piece ===

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Some(Self::Data(data.clone())),
            (_, Some(trailers)) => Some(Self::Trailers(trailers.clone())),
            _ => None,
        }
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn cost(&self) -> usize {
        OF_FRAME
            + match self {
                Self::Data(data) => data.len(),
                Self::Trailers(trailers) => {
                    trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
                }
            }
    }
}

// === impl Source ===

impl Source {
    pub(super) fn new(client: ClientBody, keep: bool, taps: Vec<Tap>) -> Rc<Self> {
        let kept = Kept { pieces: VecDeque::new(), first: 0, cost: 0, whole: keep, ended: false };
        let (client, kept, reader) = (RefCell::new(client), RefCell::new(kept), Cell::new(0));
        Rc::new(Self { client, kept, taps, reader })
    }

    /// The first attempt's body.
    pub(super) fn read(source: &Rc<Self>) -> Reading {
        Reading { source: Rc::clone(source), attempt: 0, at: 0 }
    }

    /// The body once more, in place of the one that was given out before. `None`: too large.
    pub(super) fn again(self: &Rc<Self>) -> Option<Reading> {
        if !self.kept.borrow().whole {
            return None;
        }
        let attempt = self.reader.get() + 1;
        self.reader.set(attempt);
        Some(Reading { source: Rc::clone(self), attempt, at: 0 })
    }

    /// No further attempt is to come: what was sent is let go.
    pub(super) fn forget(&self) {
        self.kept.borrow_mut().whole = false;
    }

    fn took(&self, frame: &Frame<Bytes>, at: &mut usize) {
        let Some(piece) = Piece::of(frame) else { return };
        *at += 1;
        for tap in &self.taps {
            tap.put(&piece);
        }
        let mut kept = self.kept.borrow_mut();
        if kept.whole {
            kept.cost += piece.cost();
            kept.whole = kept.cost <= KEPT;
            kept.pieces.push_back(piece);
        }
        kept.let_go(*at);
    }

    fn ended(&self) {
        if !std::mem::replace(&mut self.kept.borrow_mut().ended, true) {
            for tap in &self.taps {
                tap.end();
            }
        }
    }
}

impl Kept {
    fn get(&self, at: usize) -> Option<&Piece> {
        self.pieces.get(at.checked_sub(self.first)?)
    }

    /// Drops what the reader at `at` has behind it, unless somebody may begin anew.
    fn let_go(&mut self, at: usize) {
        if self.whole {
            return;
        }
        while self.first < at && self.pieces.pop_front().is_some() {
            self.first += 1;
        }
        self.first = self.first.max(at.saturating_sub(self.pieces.len()));
    }
}

// === impl Reading ===

impl Reading {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let source = &self.source;
        if source.reader.get() != self.attempt {
            return Poll::Ready(Some(Err(BodyError::Unwanted)));
        }
        let before = source.kept.borrow().get(self.at).cloned();
        if let Some(piece) = before {
            self.at += 1;
            source.kept.borrow_mut().let_go(self.at);
            return Poll::Ready(Some(Ok(piece.into_frame())));
        }
        if source.kept.borrow().ended {
            return Poll::Ready(None);
        }
        let mut client = source.client.borrow_mut();
        let frame = ready!(client.poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            source.took(frame, &mut self.at);
        }
        if frame.is_none() || client.is_end_stream() {
            source.ended();
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let kept = self.source.kept.borrow();
        kept.get(self.at).is_none() && (kept.ended || self.source.client.borrow().is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let kept = self.source.kept.borrow();
        let behind = self.at.saturating_sub(kept.first);
        let here: usize = kept.pieces.iter().skip(behind).map(Piece::length).sum();
        let to_come = match kept.ended {
            true => SizeHint::with_exact(0),
            false => self.source.client.borrow().size_hint(),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(here as u64 + to_come.lower());
        if let Some(upper) = to_come.upper() {
            hint.set_upper(here as u64 + upper);
        }
        hint
    }
}

// === impl Tap ===

/// Both ends of a copy of a body of this size, for a pod with this quota.
pub(super) fn copy(size: &SizeHint, quota: &Arc<Quota>) -> (Tap, Copied) {
    let channel = Rc::new(Channel {
        pieces: RefCell::default(),
        cost: Cell::new(0),
        quota: Arc::clone(quota),
        room: RefCell::default(),
        state: Cell::new(State::Open),
        waker: RefCell::default(),
        left: Cell::new(size.exact()),
    });
    (Tap(Rc::clone(&channel)), Copied(channel))
}

impl Tap {
    fn put(&self, piece: &Piece) {
        let cost = self.0.cost.get() + piece.cost();
        if self.0.state.get() != State::Open {
            return;
        }
        if !self.0.has_room(cost) {
            return self.0.end(State::Broken);
        }
        self.0.cost.set(cost);
        self.0.pieces.borrow_mut().push_back(piece.clone());
        self.0.wake();
    }

    fn end(&self) {
        self.0.end(State::Ended);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.0.end(State::Broken);
    }
}

// === impl Channel ===

impl Channel {
    /// Whether so much may be held; sets memory aside for it.
    fn has_room(&self, cost: usize) -> bool {
        let mut room = self.room.borrow_mut();
        while cost > STEP * (room.len() + 1) {
            match self.quota.room(STEP) {
                Some(permit) if cost <= BEHIND => room.push(permit),
                _ => return false,
            }
        }
        true
    }

    /// The first end counts.
    fn end(&self, state: State) {
        if self.state.get() == State::Open {
            self.state.set(state);
            if state == State::Broken {
                self.pieces.borrow_mut().clear();
                self.room.borrow_mut().clear();
            }
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

// === impl Copied ===

impl Copied {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let channel = &self.0;
        let piece = channel.pieces.borrow_mut().pop_front();
        if let Some(piece) = piece {
            let cost = channel.cost.get().saturating_sub(piece.cost());
            channel.cost.set(cost);
            channel.room.borrow_mut().truncate(cost / STEP);
            let left = channel.left.get().map(|left| left.saturating_sub(piece.length() as u64));
            channel.left.set(left);
            return Poll::Ready(Some(Ok(piece.into_frame())));
        }
        match channel.state.get() {
            State::Open => {
                *channel.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            State::Ended => Poll::Ready(None),
            State::Broken => Poll::Ready(Some(Err(BodyError::Unwanted))),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.0.state.get() == State::Ended && self.0.pieces.borrow().is_empty()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.0.left.get().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.0.end(State::Broken);
        self.0.pieces.borrow_mut().clear();
    }
}
