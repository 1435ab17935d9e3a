//! HEADERS and CONTINUATION: header blocks in and out.
//!
//! Invariant: every block is decoded, also for streams that have ended, or the table that both
//! sides share would drift apart.

use super::frame::{END_HEADERS, END_STREAM, Head, Kind, PADDED, PRIORITY, Reason};
use super::head::{Answer, ConnectHead, Refusal, Request, encode_status};
use super::limits::{MAX_BLOCK, MAX_CONTINUATIONS, MAX_FRAME, MAX_STREAMS};
use super::receive::{Block, Handled, fail};
use super::stream::Stream;
use super::{Drain, Event, OpenError, Role, StreamId, Wire, frame, hpack};

impl Wire {
    pub(super) fn on_headers(&mut self, head: Head, body: &[u8]) -> Handled {
        let fragment = strip(head, body)?;
        let ours = !head.stream.is_multiple_of(2);
        if !ours || (self.role == Role::Client && head.stream >= self.next_stream) {
            return fail(Reason::PROTOCOL_ERROR, "HEADERS on a stream that cannot be");
        }
        let end_stream = head.has(END_STREAM);
        if head.has(END_HEADERS) {
            return self.on_block(head.stream, end_stream, fragment);
        }
        let octets = fragment.to_vec();
        self.parser.block =
            Some(Block { stream: head.stream, end_stream, octets, continuations: 0 });
        Ok(())
    }

    pub(super) fn on_continuation(&mut self, head: Head, body: &[u8]) -> Handled {
        let Some(mut block) = self.parser.block.take() else {
            return fail(Reason::PROTOCOL_ERROR, "CONTINUATION without HEADERS");
        };
        block.continuations += 1;
        if block.continuations > MAX_CONTINUATIONS || block.octets.len() + body.len() > MAX_BLOCK {
            return fail(Reason::ENHANCE_YOUR_CALM, "header block too long");
        }
        block.octets.extend_from_slice(body);
        if head.has(END_HEADERS) {
            return self.on_block(block.stream, block.end_stream, &block.octets);
        }
        self.parser.block = Some(block);
        Ok(())
    }

    fn on_block(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Handled {
        let known = self.streams.get(&id).filter(|stream| stream.reset.is_none());
        let closed = known.is_none() && !self.is_idle(id);
        let trailers = known.is_some_and(|s| self.role == Role::Server || s.answered);
        if closed || trailers {
            self.decode(block, |_, _| ())?;
            return self.on_trailers(id, closed, end_stream);
        }
        match self.role {
            Role::Server => self.on_request(id, end_stream, block),
            Role::Client => self.on_answer(id, end_stream, block),
        }
    }

    fn on_trailers(&mut self, id: u32, closed: bool, end_stream: bool) -> Handled {
        if closed {
            return self.spend_idle("too many frames on closed streams");
        }
        if end_stream && self.streams.get(&id).is_some_and(|stream| !stream.recv_done) {
            self.on_end_stream(id);
            return Ok(());
        }
        let ended = self.streams.get(&id).is_some_and(|stream| stream.recv_done);
        let reason = if ended { Reason::STREAM_CLOSED } else { Reason::PROTOCOL_ERROR };
        self.reset_stream(id, reason)
    }

    fn on_request(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Handled {
        let mut request = Request::default();
        self.decode(block, |name, value| request.field(name, value))?;
        let late = self.drain == Drain::Final;
        self.last_remote = id;
        if late || self.open >= MAX_STREAMS {
            self.put_reset(id, Reason::REFUSED_STREAM);
            return self.spend_reset("too many streams above the limit");
        }
        match request.finish() {
            Ok(head) => {
                self.streams.insert(id, Stream::new(self.peer.initial_window));
                self.open += 1;
                self.events.push_back(Event::Request { stream: StreamId(id), head });
                if end_stream {
                    self.on_end_stream(id);
                }
            }
            Err(Refusal::Malformed) => {
                self.put_reset(id, Reason::PROTOCOL_ERROR);
                self.spend_idle("too many malformed requests")?;
            }
            Err(Refusal::Status(status)) => {
                self.put_status(id, status, true);
                self.put_reset(id, Reason::NO_ERROR);
                self.spend_idle("too many requests other than CONNECT")?;
            }
        }
        Ok(())
    }

    fn on_answer(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Handled {
        let mut answer = Answer::default();
        self.decode(block, |name, value| answer.field(name, value))?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match answer.finish() {
            Some(100..=199) if !end_stream => return self.spend_idle("too many interim answers"),
            None | Some(100..=199) => return self.reset_stream(id, Reason::PROTOCOL_ERROR),
            Some(status) => {
                stream.answered = true;
                self.events.push_back(Event::Response { stream: StreamId(id), status });
                if end_stream {
                    self.on_end_stream(id);
                }
            }
        }
        Ok(())
    }

    fn decode(&mut self, block: &[u8], field: impl FnMut(&[u8], &[u8])) -> Handled {
        match self.decoder.decode(block, field) {
            Ok(()) => Ok(()),
            Err(_) => fail(Reason::COMPRESSION_ERROR, "header block cannot be decoded"),
        }
    }

    /// Client: opens a stream. [`Event::Response`] or [`Event::Reset`] follows; what is written
    /// before goes out at once, as far as the peer's window allows.
    ///
    /// # Errors
    /// This connection takes no stream now; nothing was sent.
    pub fn open(&mut self, head: &ConnectHead) -> Result<StreamId, OpenError> {
        self.can_open()?;
        let id = self.next_stream;
        self.next_stream += 2;
        let mut block = Vec::with_capacity(64 + head.authority.len());
        self.begin_block(&mut block);
        head.encode(&mut block);
        self.put_block(id, false, &block);
        self.streams.insert(id, Stream::new(self.peer.initial_window));
        self.open += 1;
        Ok(StreamId(id))
    }

    /// Server: answers a stream. `end` adds END_STREAM, for a refusal. Does nothing if the
    /// stream has ended or was answered.
    pub fn respond(&mut self, id: StreamId, status: u16, end: bool) {
        let Some(stream) = self.streams.get_mut(&id.0).filter(|s| s.reset.is_none()) else {
            return;
        };
        if std::mem::replace(&mut stream.answered, true) {
            return;
        }
        if end {
            stream.finishing = true;
            stream.send_done = true;
        }
        self.put_status(id.0, status, end);
        self.settle(id.0);
    }

    fn put_status(&mut self, id: u32, status: u16, end: bool) {
        let mut block = Vec::with_capacity(8);
        self.begin_block(&mut block);
        encode_status(status, &mut block);
        self.put_block(id, end, &block);
    }

    fn begin_block(&mut self, block: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.sent_block, true) {
            hpack::encode_no_table(block);
        }
    }

    /// HEADERS, and CONTINUATION where the block is longer than a frame.
    fn put_block(&mut self, id: u32, end: bool, block: &[u8]) {
        let mut flags = if end { END_STREAM } else { 0 };
        let mut kind = Kind::Headers;
        let mut frames = block.chunks(MAX_FRAME as usize).peekable();
        while let Some(fragment) = frames.next() {
            if frames.peek().is_none() {
                flags |= END_HEADERS;
            }
            frame::put(&mut self.control, kind, flags, id, fragment);
            (kind, flags) = (Kind::Continuation, 0);
        }
    }
}

/// A HEADERS frame without padding and priority (RFC 9113 section 6.2).
fn strip(head: Head, mut body: &[u8]) -> Result<&[u8], super::Failure> {
    let error = |detail| super::Failure { reason: Reason::PROTOCOL_ERROR, detail };
    let mut padding = 0;
    if head.has(PADDED) {
        let (length, rest) = body.split_first().ok_or(error("padded HEADERS without length"))?;
        (padding, body) = (usize::from(*length), rest);
    }
    if head.has(PRIORITY) {
        body = body.get(5..).ok_or(error("HEADERS without the priority it announces"))?;
    }
    let kept = body.len().checked_sub(padding).ok_or(error("padding longer than its frame"))?;
    body.get(..kept).ok_or(error("padding longer than its frame"))
}
