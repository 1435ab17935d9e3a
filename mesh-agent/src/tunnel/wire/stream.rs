//! The state of one stream: two queues, two windows, and how far either direction has come.
//!
//! Invariant: `recv` never holds more than `STREAM_WINDOW`, `send` never more than `SEND_BUFFER`.

use super::chunks::Chunks;
use super::frame::Reason;
use super::limits::STREAM_WINDOW;

/// One stream, from its HEADERS until both directions ended and the reader let go of it.
pub(super) struct Stream {
    /// Received and not yet read.
    pub(super) recv: Chunks,
    /// What the peer may still send.
    pub(super) recv_window: u32,
    /// Read, and not yet given back to the peer.
    pub(super) recv_credit: u32,
    /// END_STREAM was received.
    pub(super) recv_done: bool,
    /// Written and not yet sent.
    pub(super) send: Chunks,
    /// What we may still send; below zero after the peer lowered its initial window.
    pub(super) send_window: i64,
    /// END_STREAM follows what waits in `send`.
    pub(super) finishing: bool,
    /// END_STREAM was sent.
    pub(super) send_done: bool,
    /// The answer was sent (server) or received (client).
    pub(super) answered: bool,
    /// Ended by RST_STREAM or with the connection.
    pub(super) reset: Option<Reason>,
    /// Someone may still read or write: `release` was not called.
    pub(super) attached: bool,
    /// It counts as open (RFC 9113 section 5.1.2).
    pub(super) counted: bool,
    /// It stands in the queue of those that can send.
    pub(super) queued: bool,
    /// It stands in the queue of those whose window is to be given back.
    pub(super) credit_queued: bool,
    /// A reader was told, and has not read since.
    pub(super) told_readable: bool,
    /// A writer found the buffer full.
    pub(super) write_blocked: bool,
}

impl Stream {
    pub(super) fn new(send_window: u32) -> Self {
        Self {
            recv: Chunks::default(),
            recv_window: STREAM_WINDOW,
            recv_credit: 0,
            recv_done: false,
            send: Chunks::default(),
            send_window: i64::from(send_window),
            finishing: false,
            send_done: false,
            answered: false,
            reset: None,
            attached: true,
            counted: true,
            queued: false,
            credit_queued: false,
            told_readable: false,
            write_blocked: false,
        }
    }

    /// Both directions have ended.
    pub(super) fn is_closed(&self) -> bool {
        self.reset.is_some() || (self.recv_done && self.send_done)
    }

    /// There is a frame that this stream's own window lets go.
    pub(super) fn can_send(&self) -> bool {
        if self.reset.is_some() || self.send_done {
            return false;
        }
        if self.send.is_empty() { self.finishing } else { self.send_window > 0 }
    }

    /// Ends both directions. What was received before the peer's END_STREAM stays readable, as
    /// after a TCP connection's orderly end.
    pub(super) fn end(&mut self, reason: Reason) {
        self.reset.get_or_insert(reason);
        self.send.clear();
        if !self.recv_done {
            self.recv.clear();
        }
    }
}
