//! The state of one stream: two queues, two windows, and how far either direction has come.
//!
//! Invariant: `recv` never holds more than `STREAM_WINDOW` and `send` never more than
//! `SMALL_SEND_BUFFER`, unless the stream has set more aside of its pod's memory: then
//! `GROWN_WINDOW` and `SEND_BUFFER`.

use std::sync::Arc;

use super::chunks::Chunks;
use super::frame::Reason;
use super::limits::{GROWN_WINDOW, GROWTH, SEND_BUFFER, SMALL_SEND_BUFFER, STREAM_WINDOW};
use crate::tunnel::quota::{Permit, Quota};

/// One stream, from its HEADERS until both directions ended and the reader let go of it.
pub(super) struct Stream {
    /// Received and not yet read.
    pub(super) recv: Chunks,
    /// What the peer may send ahead of the reader.
    window: u32,
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
    /// What it has set aside of its pod's memory, until it is forgotten: a window that was given
    /// cannot be taken back (RFC 9113 section 6.9.2).
    room: Option<Permit>,
}

impl Stream {
    pub(super) fn new(send_window: u32) -> Self {
        Self {
            recv: Chunks::default(),
            window: STREAM_WINDOW,
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
            room: None,
        }
    }

    /// Sets memory aside for more than the little that each stream may hold, if there is some.
    pub(super) fn grow(&mut self, quota: &Arc<Quota>) {
        if self.room.is_none() {
            self.room = quota.room(GROWTH);
        }
    }

    /// Octets of its window were used up and are free again: true if they are due to be given
    /// back. The reader of so many is worth a larger window.
    pub(super) fn credit(&mut self, octets: u32, quota: &Arc<Quota>) -> bool {
        self.recv_credit += octets;
        if self.recv_credit < self.window / 2 || self.recv_done || self.reset.is_some() {
            return false;
        }
        if self.attached && self.window < GROWN_WINDOW {
            self.grow(quota);
            if self.room.is_some() {
                self.recv_credit += GROWN_WINDOW - self.window;
                self.window = GROWN_WINDOW;
            }
        }
        !std::mem::replace(&mut self.credit_queued, true)
    }

    /// What may wait to be sent.
    pub(super) fn send_buffer(&self) -> usize {
        if self.room.is_some() { SEND_BUFFER } else { SMALL_SEND_BUFFER }
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
