//! Octets out: control frames first, then windows, then DATA, one frame per stream in turn.
//!
//! Invariant: within one call no stream sends a second frame before every other stream that can
//! send has sent its first.

use super::frame::{END_STREAM, HEAD_LEN, Head, Kind, put};
use super::limits::MAX_DATA;
use super::stream::Stream;
use super::{Batch, Event, StreamId, Wire};

impl Wire {
    /// True if [`Wire::transmit`] would add something.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.control.is_empty()
            || !self.ready.is_empty()
            || !self.credits.is_empty()
            || self.owes_connection_credit()
    }

    /// Adds frames to `batch` until it holds about `budget` octets. Events may follow from it.
    pub fn transmit(&mut self, budget: usize, batch: &mut Batch) {
        self.put_credits();
        if !self.control.is_empty() {
            batch.copy(&self.control);
            self.control.clear();
            if self.control.capacity() > CONTROL_KEPT {
                self.control.shrink_to(CONTROL_KEPT);
            }
        }
        while batch.len() < budget {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            if !stream.can_send() {
                continue;
            }
            if !stream.send.is_empty() && self.send_window <= 0 {
                stream.queued = true;
                self.starved.push_back(id);
                continue;
            }
            let sent = send_frame(id, stream, self.send_window, batch);
            self.send_window -= i64::try_from(sent).unwrap_or_default();
            if stream.can_send() {
                stream.queued = true;
                self.ready.push_back(id);
            }
            if stream.write_blocked && stream.send.len() <= stream.send_buffer() / 2 {
                stream.write_blocked = false;
                self.events.push_back(Event::Writable(StreamId(id)));
            }
            if stream.send_done {
                self.settle(id);
                self.put_late_control(batch);
            }
        }
    }

    /// What the end of a stream added (RST_STREAM of one that nobody reads) follows at once.
    fn put_late_control(&mut self, batch: &mut Batch) {
        if !self.control.is_empty() {
            batch.copy(&self.control);
            self.control.clear();
        }
    }

    fn put_credits(&mut self) {
        if self.owes_connection_credit() {
            self.recv_window += self.recv_credit;
            put(&mut self.control, Kind::WindowUpdate, 0, 0, &self.recv_credit.to_be_bytes());
            self.recv_credit = 0;
        }
        while let Some(id) = self.credits.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.credit_queued = false;
            let credit = std::mem::take(&mut stream.recv_credit);
            if !stream.recv_done && stream.reset.is_none() {
                stream.recv_window += credit;
                put(&mut self.control, Kind::WindowUpdate, 0, id, &credit.to_be_bytes());
            }
        }
    }

    /// Puts a stream in the queue if it has something to send and is not there.
    pub(super) fn enqueue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
            && stream.can_send()
        {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }
}

/// Memory that the queue of control frames keeps while it is empty.
const CONTROL_KEPT: usize = 4096;

/// Sends one DATA frame; returns what it takes from the connection's window.
fn send_frame(id: u32, stream: &mut Stream, connection: i64, batch: &mut Batch) -> usize {
    let window = usize::try_from(stream.send_window.min(connection)).unwrap_or_default();
    let len = stream.send.len().min(window).min(MAX_DATA);
    let end = stream.finishing && len == stream.send.len();
    let flags = if end { END_STREAM } else { 0 };
    let head: [u8; HEAD_LEN] = Head::new(Kind::Data, flags, id, len).encode();
    batch.copy(&head);
    let mut left = len;
    while left > 0 {
        let Some(piece) = stream.send.pop(left) else { break };
        left -= piece.len();
        batch.push(piece);
    }
    stream.send_window -= i64::try_from(len).unwrap_or_default();
    stream.send_done = end;
    len
}
