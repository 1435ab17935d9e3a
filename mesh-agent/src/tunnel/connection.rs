//! One connection: what its streams share, and the driver, which alone touches the socket.
//!
//! The driver reads all that is there, wakes whom it concerns, and writes once what they had to
//! say. Streams change the shared state and wake the driver; neither ever waits for the other
//! while it holds the state.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::quota::Permit;
use super::stream::TunnelStream;
use super::tls::{TlsSocket, WRITE_BATCH};
use super::wire::{ConnectHead, Event, OpenError, Reason, StreamId, Wire};

/// How often a connection looks at itself. A peer from which nothing came for one such time is
/// asked for a sign of life; after another the connection is dead.
pub(super) const TICK: Duration = Duration::from_secs(10);

/// A client's connection without streams is closed after this many ticks: one minute.
pub(super) const IDLE_TICKS: u32 = 6;

/// Reads and writes of one connection before the worker's other tasks have their turn.
const ROUNDS: u32 = 2;

/// What a stream's user waits for.
#[derive(Default)]
pub(super) struct Waiter {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
    pub(super) status: Option<u16>,
}

/// The state that the driver and the streams share.
pub(super) struct Shared {
    pub(super) wire: Wire,
    pub(super) waiters: FxHashMap<StreamId, Waiter>,
    driver: Option<Waker>,
    /// Cancelled when one side has announced the end.
    pub(super) retired: CancellationToken,
}

/// A connection's state, held by its driver and by each of its streams.
pub(super) type SharedRef = Rc<RefCell<Shared>>;

/// How reading went on.
enum Input {
    /// There may be more.
    More,
    /// There is no more for now.
    Drained,
    /// Replies have to leave first.
    Congested,
    /// There will never be more.
    Ended,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(wire: Wire) -> SharedRef {
        let (waiters, retired) = (FxHashMap::default(), CancellationToken::new());
        Rc::new(RefCell::new(Self { wire, waiters, driver: None, retired }))
    }

    /// Lets the driver write what the caller has just added.
    pub(super) fn wake_driver(&mut self) {
        if (self.wire.wants_write() || self.wire.is_finished())
            && let Some(driver) = self.driver.take()
        {
            driver.wake();
        }
    }

    /// Takes no new streams; ends when the present ones have.
    pub(super) fn drain(&mut self) {
        self.wire.drain();
        self.retired.cancel();
        self.wake_driver();
    }

    /// What the connection ended with, in words.
    pub(super) fn end(&self) -> String {
        self.wire.failure().map_or_else(|| "closed".to_owned(), |failure| failure.to_string())
    }

    fn wake(&mut self, event: &Event) {
        let (id, read, write) = match event {
            Event::Readable(id) => (id, true, false),
            Event::Writable(id) => (id, false, true),
            Event::Reset(id, _) => (id, true, true),
            Event::Response { stream, status } => {
                if let Some(waiter) = self.waiters.get_mut(stream) {
                    waiter.status = Some(*status);
                }
                (stream, true, false)
            }
            Event::GoAway(_) => return self.retired.cancel(),
            Event::Request { .. } | Event::Settings | Event::Pong => return,
        };
        let Some(waiter) = self.waiters.get_mut(id) else { return };
        if read && let Some(waker) = waiter.read.take() {
            waker.wake();
        }
        if write && let Some(waker) = waiter.write.take() {
            waker.wake();
        }
    }

    fn close(&mut self, detail: &'static str) {
        self.wire.close(Reason::INTERNAL_ERROR, detail);
        while let Some(event) = self.wire.next_event() {
            self.wake(&event);
        }
    }
}

/// Opens a stream on a client's connection.
pub(super) fn open(shared: &SharedRef, head: &ConnectHead) -> Result<TunnelStream, OpenError> {
    let mut state = shared.borrow_mut();
    let id = state.wire.open(head)?;
    state.waiters.insert(id, Waiter::default());
    state.wake_driver();
    Ok(TunnelStream::new(Rc::clone(shared), id))
}

/// The task of one connection. Dropping it ends every stream.
pub(super) struct Driver<H> {
    io: TlsSocket,
    shared: SharedRef,
    on_request: H,
    started: Instant,
    tick: Interval,
    /// Something came since the last tick.
    heard: bool,
    asked: bool,
    idle_ticks: u32,
    /// Idle connections are the client's to close: it knows whether they may be needed.
    closes_idle: bool,
    shutdown: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    closing: bool,
    /// Set aside for a batch that the socket has not taken yet.
    batch: Option<Permit>,
}

// === impl Driver ===

impl<H: FnMut(TunnelStream, ConnectHead)> Driver<H> {
    /// A driver for `io`, whose handshake is over. `on_request` is called for each stream that
    /// the peer opens. `shutdown` begins a graceful end.
    pub(super) fn new(
        io: TlsSocket,
        shared: SharedRef,
        on_request: H,
        shutdown: Option<WaitForCancellationFutureOwned>,
    ) -> Self {
        let started = Instant::now();
        let mut tick = tokio::time::interval_at(started + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            io,
            shared,
            on_request,
            started,
            tick,
            heard: false,
            asked: false,
            idle_ticks: 0,
            closes_idle: shutdown.is_none(),
            shutdown: shutdown.map(Box::pin),
            closing: false,
            batch: None,
        }
    }

    /// Runs until the connection has ended. `Ok` if no stream was cut short by it.
    pub(super) async fn run(mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Registered before anything is looked at, so that no wake-up falls in between.
        self.register(cx);
        self.poll_shutdown(cx);
        self.dispatch();
        let input = self.poll_input(cx)?;
        if matches!(input, Input::Ended) {
            return Poll::Ready(Ok(()));
        }
        self.poll_tick(cx)?;
        let more_to_write = self.poll_output(cx)?;
        if self.closing && !more_to_write && !self.io.tls.wants_write() {
            let failure = self.shared.borrow().wire.failure();
            return Poll::Ready(failure.map_or(Ok(()), |failure| Err(io::Error::other(failure))));
        }
        let again = match input {
            Input::More => true,
            // The socket's readiness was not asked for. If writing is what holds it up, that
            // wakes this task; if nothing does any more, nobody else would.
            Input::Congested => !self.io.tls.wants_write(),
            Input::Drained | Input::Ended => false,
        };
        if again || more_to_write {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn register(&mut self, cx: &Context<'_>) {
        let driver = &mut self.shared.borrow_mut().driver;
        if !driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) {
        if let Some(shutdown) = &mut self.shutdown
            && shutdown.as_mut().poll(cx).is_ready()
        {
            self.shutdown = None;
            self.shared.borrow_mut().wire.drain();
        }
    }

    /// Reads until there is nothing more, or others have their turn.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> io::Result<Input> {
        for _ in 0..ROUNDS {
            let now = self.started.elapsed();
            let read = {
                let wire = &mut self.shared.borrow_mut().wire;
                if wire.failure().is_some() {
                    return Ok(Input::Drained);
                }
                if wire.is_congested() {
                    return Ok(Input::Congested);
                }
                // A failure stays in `wire`; GOAWAY goes out before the connection ends.
                self.io.poll_read(cx, |octets| {
                    let _ = wire.receive(octets, now);
                })
            };
            match read {
                Poll::Pending => return Ok(Input::Drained),
                Poll::Ready(Ok(0)) => return self.on_peers_end(),
                Poll::Ready(Ok(_)) => self.heard = true,
                Poll::Ready(Err(error)) => return Err(self.lost(error)),
            }
            self.dispatch();
        }
        Ok(Input::More)
    }

    /// Orderly, if no stream is cut short by it.
    fn on_peers_end(&mut self) -> io::Result<Input> {
        self.dispatch();
        if self.shared.borrow().wire.open_streams() == 0 {
            return Ok(Input::Ended);
        }
        Err(self.lost(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Writes until there is nothing more or the socket is full. True if there is more, but
    /// others have their turn.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            match self.io.poll_flush(cx) {
                Ok(Poll::Pending) => {
                    let held = self.batch.take();
                    let quota = self.shared.borrow().wire.quota().clone();
                    self.batch = held.or_else(|| quota.room(WRITE_BATCH));
                    return Ok(false);
                }
                Ok(Poll::Ready(())) => self.batch = None,
                Err(error) => return Err(self.lost(error)),
            }
            if self.shared.borrow().wire.wants_write() {
                let written = self.io.encrypt(&mut self.shared.borrow_mut().wire);
                self.dispatch();
                written.map_err(|error| self.lost(error))?;
            } else if self.shared.borrow().wire.is_finished() && !self.closing {
                self.closing = true;
                self.io.tls.send_close_notify();
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Wakes whom the events concern, and hands on new streams.
    fn dispatch(&mut self) {
        loop {
            let request = {
                let mut shared = self.shared.borrow_mut();
                match shared.wire.next_event() {
                    None => return,
                    Some(Event::Request { stream, head }) => {
                        shared.waiters.insert(stream, Waiter::default());
                        (stream, head)
                    }
                    Some(event) => {
                        shared.wake(&event);
                        continue;
                    }
                }
            };
            let (id, head) = request;
            (self.on_request)(TunnelStream::new(Rc::clone(&self.shared), id), head);
        }
    }

    fn poll_tick(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.tick.poll_tick(cx).is_ready() {
            let mut shared = self.shared.borrow_mut();
            let idle = shared.wire.open_streams() == 0;
            self.idle_ticks = if idle { self.idle_ticks + 1 } else { 0 };
            if self.closes_idle && self.idle_ticks >= IDLE_TICKS {
                shared.wire.drain();
            }
            if std::mem::take(&mut self.heard) {
                self.asked = false;
            } else if std::mem::replace(&mut self.asked, true) {
                drop(shared);
                return Err(self.lost(io::ErrorKind::TimedOut.into()));
            } else {
                shared.wire.ping();
            }
        }
        Ok(())
    }

    fn lost(&mut self, error: io::Error) -> io::Error {
        self.shared.borrow_mut().close("connection lost");
        error
    }
}

impl<H> Drop for Driver<H> {
    fn drop(&mut self) {
        self.shared.borrow_mut().close("connection ended");
    }
}
