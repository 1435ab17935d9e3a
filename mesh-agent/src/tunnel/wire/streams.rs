//! What a stream's user does: read, write, finish, reset, let go. And the book-keeping of ends.

use std::task::Poll;

use bytes::Bytes;

use super::frame::{Kind, Reason, put};
use super::receive::Handled;
use super::stream::Stream;
use super::{Event, StreamId, Wire};

impl Wire {
    /// Reads what has come. `Ready(Ok(0))` is the peer's END_STREAM (or an empty `buffer`);
    /// `Pending` ends with [`Event::Readable`] or [`Event::Reset`].
    ///
    /// # Errors
    /// The stream was reset.
    pub fn read(&mut self, id: StreamId, buffer: &mut [u8]) -> Poll<Result<usize, Reason>> {
        self.read_with(id, |stream| {
            let read = stream.recv.read(buffer);
            (read, read)
        })
    }

    /// As [`Wire::read`], without a copy: up to `max` octets in one piece, empty at the end.
    ///
    /// # Errors
    /// The stream was reset.
    pub fn read_bytes(&mut self, id: StreamId, max: usize) -> Poll<Result<Bytes, Reason>> {
        self.read_with(id, |stream| {
            let piece = stream.recv.pop(max).unwrap_or_default();
            let read = piece.len();
            (piece, read)
        })
    }

    fn read_with<T: Default>(
        &mut self,
        id: StreamId,
        take: impl FnOnce(&mut Stream) -> (T, usize),
    ) -> Poll<Result<T, Reason>> {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return Poll::Ready(Err(Reason::STREAM_CLOSED));
        };
        stream.told_readable = false;
        if !stream.recv.is_empty() {
            let (taken, read) = take(stream);
            self.credit(id.0, u32::try_from(read).unwrap_or_default());
            return Poll::Ready(Ok(taken));
        }
        match stream.reset {
            _ if stream.recv_done => Poll::Ready(Ok(T::default())),
            Some(reason) => Poll::Ready(Err(reason)),
            None => Poll::Pending,
        }
    }

    /// Takes octets to send, as many as there is room for. `Pending` ends with
    /// [`Event::Writable`] or [`Event::Reset`].
    ///
    /// # Errors
    /// The stream was reset, or [`Wire::finish`] was called (`STREAM_CLOSED`).
    pub fn write(&mut self, id: StreamId, octets: &[u8]) -> Poll<Result<usize, Reason>> {
        let room = match self.room(id, octets.len()) {
            Poll::Ready(Ok(room)) => room,
            other => return other,
        };
        let taken = octets.get(..room).unwrap_or(octets);
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.send.push(taken);
        }
        self.enqueue(id.0);
        Poll::Ready(Ok(taken.len()))
    }

    /// As [`Wire::write`], without a copy; takes what there is room for off `octets`.
    ///
    /// # Errors
    /// As [`Wire::write`].
    pub fn write_bytes(&mut self, id: StreamId, octets: &mut Bytes) -> Poll<Result<usize, Reason>> {
        let room = match self.room(id, octets.len()) {
            Poll::Ready(Ok(room)) => room,
            other => return other,
        };
        let taken = octets.split_to(room.min(octets.len()));
        let len = taken.len();
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.send.push_bytes(taken);
        }
        self.enqueue(id.0);
        Poll::Ready(Ok(len))
    }

    /// Room for some of `wanted` octets.
    fn room(&mut self, id: StreamId, wanted: usize) -> Poll<Result<usize, Reason>> {
        let Some(stream) = self.streams.get_mut(&id.0) else {
            return Poll::Ready(Err(Reason::STREAM_CLOSED));
        };
        if let Some(reason) = stream.reset {
            return Poll::Ready(Err(reason));
        }
        if stream.finishing {
            return Poll::Ready(Err(Reason::STREAM_CLOSED));
        }
        let room = |stream: &Stream| stream.send_buffer().saturating_sub(stream.send.len());
        if room(stream) < wanted {
            stream.grow(&self.quota);
        }
        let room = room(stream);
        stream.write_blocked = room == 0;
        if room == 0 { Poll::Pending } else { Poll::Ready(Ok(room)) }
    }

    /// Octets that were written and have not left yet.
    #[must_use]
    pub fn unsent(&self, id: StreamId) -> usize {
        self.streams.get(&id.0).map_or(0, |stream| stream.send.len())
    }

    /// What the stream was reset with, if it was.
    #[must_use]
    pub fn stream_reset(&self, id: StreamId) -> Option<Reason> {
        self.streams.get(&id.0).and_then(|stream| stream.reset)
    }

    /// Half-close: END_STREAM follows what was written.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.0) {
            stream.finishing = true;
            self.enqueue(id.0);
        }
    }

    /// Ends both directions at once; what waits to be sent is dropped.
    pub fn reset(&mut self, id: StreamId, reason: Reason) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        if !stream.is_closed() {
            stream.end(reason);
            self.put_reset(id.0, reason);
        }
        self.settle(id.0);
    }

    /// The user lets go of the stream. Unless it has finished writing it is reset; if it has,
    /// what waits is still sent, and only then the peer is told that nobody reads.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        stream.attached = false;
        if !stream.finishing && !stream.is_closed() {
            stream.end(Reason::CANCEL);
            self.put_reset(id.0, Reason::CANCEL);
        } else {
            let unread = u32::try_from(stream.recv.len()).unwrap_or_default();
            stream.recv.clear();
            self.credit(id.0, unread);
        }
        self.settle(id.0);
    }

    /// The wire itself ends a stream over a rule that the peer broke on it. A peer that asks for
    /// it again and again makes us open and close as rapid reset does (CVE-2025-8671).
    pub(super) fn reset_stream(&mut self, id: u32, reason: Reason) -> Handled {
        self.put_reset(id, reason);
        self.end_stream_by(id, reason);
        self.spend_reset("too many streams that had to be reset")
    }

    /// A stream has ended abruptly, at the peer's wish or ours.
    pub(super) fn end_stream_by(&mut self, id: u32, reason: Reason) {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.reset.is_none()) else { return };
        stream.end(reason);
        if stream.attached {
            self.events.push_back(Event::Reset(StreamId(id), reason));
        }
        self.settle(id);
    }

    pub(super) fn put_reset(&mut self, id: u32, reason: Reason) {
        put(&mut self.control, Kind::ResetStream, 0, id, &reason.0.to_be_bytes());
    }

    /// Draws the consequences of a direction's end: a closed stream no longer counts, and one
    /// that nobody holds is forgotten.
    pub(super) fn settle(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.attached && stream.send_done && !stream.recv_done && stream.reset.is_none() {
            // RFC 9113 section 8.1: the code of one who has said all there was to say.
            stream.end(Reason::NO_ERROR);
            self.put_reset(id, Reason::NO_ERROR);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.is_closed() {
            return;
        }
        if std::mem::replace(&mut stream.counted, false) {
            self.open = self.open.saturating_sub(1);
        }
        if !stream.attached {
            self.streams.remove(&id);
        }
    }

    /// Octets of a stream's window were used up and are free again.
    pub(super) fn credit(&mut self, id: u32, octets: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.credit(octets, &self.quota) {
            self.credits.push_back(id);
        }
    }
}
