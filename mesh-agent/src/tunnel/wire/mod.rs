//! Lean HTTP/2 for CONNECT (RFC 9113, RFC 7541, RFC 8441): bytes in, events and bytes out.
//!
//! Pure: no I/O, no clock (`now` is a parameter), no async, no lock. It knows only what a tunnel
//! needs: CONNECT and its answer, DATA, END_STREAM, RST_STREAM, and the frames that every
//! connection must answer. No push, no priorities, no trailers beyond their END_STREAM.
//!
//! Invariants:
//! - The connection's window is given back on receipt, so only a stream's own window can hold a
//!   stream: a reader that does not read never stops its neighbours.
//! - What is held is bounded whatever a peer sends: at most [`limits::MAX_STREAMS`] streams of
//!   [`limits::STREAM_WINDOW`] received octets (more only out of the pod's memory), and
//!   [`limits::MAX_CONTROL`] of replies as long as the caller stops feeding it above that.
//! - However the input is cut, the result is the same.
//!
//! A caller feeds [`Wire::receive`], then takes every [`Wire::next_event`], then lets
//! [`Wire::transmit`] fill a [`Batch`] until it stays empty.

mod batch;
mod budget;
mod chunks;
mod control;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod head;
mod headers;
mod hpack;
mod huffman;
pub mod limits;
mod receive;
mod stream;
mod streams;
mod transmit;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

pub use batch::Batch;
pub use frame::Reason;
pub use head::ConnectHead;

use budget::Budget;
use frame::{Kind, setting};
use limits::{
    CONNECTION_WINDOW, DEFAULT_WINDOW, EARLY_RESETS, EARLY_RESETS_PER_SECOND, IDLE_FRAMES,
    IDLE_FRAMES_PER_SECOND, MAX_CONTROL, MAX_HEADER_LIST, MAX_STREAMS, STREAM_WINDOW,
    STREAMS_BEFORE_SETTINGS,
};
use receive::Parser;
use stream::Stream;

use super::quota::Quota;

/// A stream's number on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// Something the caller should act upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Server: a CONNECT came. Answer with [`Wire::respond`] or [`Wire::reset`].
    Request {
        /// The new stream; [`Wire::release`] must be called for it sooner or later.
        stream: StreamId,
        /// What it asks for.
        head: ConnectHead,
    },
    /// Client: the answer came; anything but 2xx is a refusal.
    Response {
        /// The stream that was opened.
        stream: StreamId,
        /// HTTP status.
        status: u16,
    },
    /// There is something to read, or END_STREAM came.
    Readable(StreamId),
    /// A writer that found the buffer full may go on.
    Writable(StreamId),
    /// The stream has ended in both directions by a reset.
    Reset(StreamId, Reason),
    /// The peer's SETTINGS came: it may take more or fewer streams than before.
    Settings,
    /// The peer takes no new streams on this connection.
    GoAway(Reason),
    /// The answer to [`Wire::ping`] came.
    Pong,
}

/// Why the connection is over: the peer broke a rule. GOAWAY with `reason` is in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Failure {
    /// What GOAWAY says.
    pub reason: Reason,
    /// Which rule.
    pub detail: &'static str,
}

/// Why no stream can be opened here. The caller should use another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The peer's limit of concurrent streams is reached.
    Full,
    /// GOAWAY was sent or received, or the connection failed.
    GoingAway,
    /// Stream numbers have run out.
    Exhausted,
}

/// What the peer's SETTINGS say, as far as it matters here.
struct PeerSettings {
    received: bool,
    initial_window: u32,
    max_streams: u32,
}

/// How far our own graceful end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    No,
    /// GOAWAY for every number was sent; streams that are on their way are still taken.
    Announced,
    /// GOAWAY with the last number was sent.
    Final,
}

/// One connection's state.
pub struct Wire {
    role: Role,
    quota: Arc<Quota>,
    now: Duration,
    parser: Parser,
    decoder: hpack::Decoder,
    sent_block: bool,
    streams: FxHashMap<u32, Stream>,
    events: VecDeque<Event>,
    /// Control frames and header blocks that wait to be sent.
    control: Vec<u8>,
    /// Streams that can send, in turn.
    ready: VecDeque<u32>,
    /// Streams that only the connection's window holds.
    starved: VecDeque<u32>,
    /// Streams whose window is to be given back.
    credits: VecDeque<u32>,
    send_window: i64,
    recv_window: u32,
    recv_credit: u32,
    peer: PeerSettings,
    next_stream: u32,
    last_remote: u32,
    open: u32,
    drain: Drain,
    peer_going: bool,
    failure: Option<Failure>,
    idle_frames: Budget,
    early_resets: Budget,
}

// === impl StreamId ===

impl StreamId {
    /// The number, for logs.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

// === impl Wire ===

impl Wire {
    /// A connection before its first octet; our preface and SETTINGS are in the output. Its
    /// streams draw on the memory of `quota`'s pod.
    #[must_use]
    pub fn new(role: Role, quota: Arc<Quota>) -> Self {
        let mut wire = Self {
            role,
            quota,
            now: Duration::ZERO,
            parser: Parser::new(role),
            decoder: hpack::Decoder::new(),
            sent_block: false,
            streams: FxHashMap::default(),
            events: VecDeque::new(),
            control: Vec::new(),
            ready: VecDeque::new(),
            starved: VecDeque::new(),
            credits: VecDeque::new(),
            send_window: i64::from(DEFAULT_WINDOW),
            recv_window: DEFAULT_WINDOW,
            recv_credit: CONNECTION_WINDOW - DEFAULT_WINDOW,
            peer: PeerSettings {
                received: false,
                initial_window: DEFAULT_WINDOW,
                max_streams: STREAMS_BEFORE_SETTINGS,
            },
            next_stream: 1,
            last_remote: 0,
            open: 0,
            drain: Drain::No,
            peer_going: false,
            failure: None,
            idle_frames: Budget::new(IDLE_FRAMES, IDLE_FRAMES_PER_SECOND),
            early_resets: Budget::new(EARLY_RESETS, EARLY_RESETS_PER_SECOND),
        };
        wire.put_preface();
        wire
    }

    fn put_preface(&mut self) {
        let mut settings = Vec::with_capacity(24);
        match self.role {
            Role::Client => {
                self.control.extend_from_slice(frame::PREFACE);
                frame::put_setting(&mut settings, setting::ENABLE_PUSH, 0);
            }
            Role::Server => {
                frame::put_setting(&mut settings, setting::MAX_CONCURRENT_STREAMS, MAX_STREAMS);
                frame::put_setting(&mut settings, setting::ENABLE_CONNECT_PROTOCOL, 1);
            }
        }
        frame::put_setting(&mut settings, setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW);
        let list = u32::try_from(MAX_HEADER_LIST).unwrap_or(u32::MAX);
        frame::put_setting(&mut settings, setting::MAX_HEADER_LIST_SIZE, list);
        frame::put(&mut self.control, Kind::Settings, 0, 0, &settings);
    }

    /// Whose memory it draws on.
    #[must_use]
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// The next thing that happened, in order.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Streams that are open, as far as the peer's limit counts them.
    #[must_use]
    pub fn open_streams(&self) -> u32 {
        self.open
    }

    /// Nothing will happen on this connection any more that a stream still waits for: it failed,
    /// or either side is going away and the last stream has ended and was flushed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let going = self.peer_going || self.drain == Drain::Final;
        self.failure.is_some() || (going && self.open == 0)
    }

    /// Why the connection failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Above [`limits::MAX_CONTROL`] of replies wait: the caller must write before it reads on.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.control.len() > MAX_CONTROL
    }

    /// Client: whether [`Wire::open`] would succeed.
    pub fn can_open(&self) -> Result<(), OpenError> {
        if self.failure.is_some() || self.peer_going || self.drain != Drain::No {
            return Err(OpenError::GoingAway);
        }
        if self.next_stream > limits::MAX_WINDOW {
            return Err(OpenError::Exhausted);
        }
        if self.open >= self.peer.max_streams.min(MAX_STREAMS) {
            Err(OpenError::Full)
        } else {
            Ok(())
        }
    }

    /// Ends the connection gracefully: no new streams, open ones run to their end. A server
    /// first announces it and takes what is already on its way (RFC 9113 section 6.8).
    pub fn drain(&mut self) {
        if self.drain != Drain::No || self.failure.is_some() {
            return;
        }
        match self.role {
            Role::Client => self.put_final_goaway(),
            Role::Server => {
                self.drain = Drain::Announced;
                control::put_goaway(&mut self.control, limits::MAX_WINDOW, Reason::NO_ERROR);
                frame::put(&mut self.control, Kind::Ping, 0, 0, &control::DRAIN_PING);
            }
        }
    }

    /// Asks the peer for a sign of life; [`Event::Pong`] is the answer.
    pub fn ping(&mut self) {
        if self.failure.is_none() {
            frame::put(&mut self.control, Kind::Ping, 0, 0, &control::KEEPALIVE_PING);
        }
    }
}
