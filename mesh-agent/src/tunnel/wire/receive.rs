//! Octets in: cuts the input into frames and hands each to its handler.
//!
//! DATA goes to its stream as it arrives, whatever part of the frame that is; every other frame
//! is handled whole, from the input itself if it lies there in one piece.
//!
//! Invariant: at most one frame, one header block and one frame head are buffered here.

use std::time::Duration;

use super::frame::{END_STREAM, HEAD_LEN, Head, Kind, PADDED, PREFACE, Reason, word};
use super::limits::{CONNECTION_CREDIT, MAX_FRAME};
use super::{Event, Failure, Role, Wire};

/// Where in the input the connection stands.
pub(super) struct Parser {
    state: State,
    /// The part of the present head or body that has come.
    partial: Vec<u8>,
    /// The header block that waits for CONTINUATION.
    pub(super) block: Option<Block>,
}

enum State {
    Preface,
    Head,
    Body(Head),
    PadLength(Head),
    Data(DataLeft),
}

/// The rest of a DATA frame.
#[derive(Clone, Copy)]
struct DataLeft {
    stream: u32,
    octets: u32,
    padding: u32,
    end: bool,
}

/// A header block under way.
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) octets: Vec<u8>,
    pub(super) continuations: u32,
}

pub(super) type Handled = Result<(), Failure>;

/// Shorthand for a rule that the peer broke.
pub(super) fn fail(reason: Reason, detail: &'static str) -> Handled {
    Err(Failure { reason, detail })
}

impl Parser {
    pub(super) fn new(role: Role) -> Self {
        let state = match role {
            Role::Client => State::Head,
            Role::Server => State::Preface,
        };
        Self { state, partial: Vec::new(), block: None }
    }
}

impl Wire {
    /// Takes what came from the peer, cut anywhere. `now` is the time since the connection began.
    ///
    /// # Errors
    /// The peer broke a rule that ends the connection; GOAWAY is in the output, every stream has
    /// ended, and further input is ignored.
    pub fn receive(&mut self, input: &[u8], now: Duration) -> Result<(), Failure> {
        self.now = now;
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.consume(input).inspect_err(|failure| self.abort(*failure))
    }

    fn consume(&mut self, mut input: &[u8]) -> Handled {
        loop {
            match self.parser.state {
                State::Preface => {
                    let Some(octets) = self.gather(&mut input, PREFACE.len()) else { break };
                    if octets != PREFACE {
                        return fail(Reason::PROTOCOL_ERROR, "no HTTP/2 preface");
                    }
                    self.parser.state = State::Head;
                }
                State::Head => {
                    if self.parser.partial.is_empty()
                        && let Some((octets, rest)) = input.split_first_chunk()
                    {
                        input = rest;
                        self.on_head(Head::parse(*octets))?;
                        continue;
                    }
                    let Some(octets) = self.gather(&mut input, HEAD_LEN) else { break };
                    let octets = octets.first_chunk().copied().unwrap_or_default();
                    self.on_head(Head::parse(octets))?;
                }
                State::PadLength(head) => {
                    let Some(octets) = self.gather(&mut input, 1) else { break };
                    let padding = octets.first().copied().unwrap_or_default();
                    self.on_data(head, Some(padding))?;
                }
                State::Body(head) => {
                    let whole = head.len as usize;
                    if self.parser.partial.is_empty()
                        && let Some((body, rest)) = input.split_at_checked(whole)
                    {
                        input = rest;
                        self.parser.state = State::Head;
                        self.on_frame(head, body)?;
                        continue;
                    }
                    let Some(body) = self.gather(&mut input, whole) else { break };
                    self.parser.state = State::Head;
                    self.on_frame(head, &body)?;
                }
                State::Data(left) => {
                    if input.is_empty() {
                        break;
                    }
                    self.on_octets(left, &mut input);
                }
            }
        }
        Ok(())
    }

    /// `len` octets, once they have all come.
    fn gather(&mut self, input: &mut &[u8], len: usize) -> Option<Vec<u8>> {
        let missing = len.saturating_sub(self.parser.partial.len());
        let (part, rest) = input.split_at(missing.min(input.len()));
        self.parser.partial.extend_from_slice(part);
        *input = rest;
        (self.parser.partial.len() == len).then(|| std::mem::take(&mut self.parser.partial))
    }

    /// Checks what can be known from a frame's head, before its body is waited for.
    fn on_head(&mut self, head: Head) -> Handled {
        if head.len > MAX_FRAME {
            return fail(Reason::FRAME_SIZE_ERROR, "frame above 16384 octets");
        }
        if !self.peer.received && (head.kind != Kind::Settings || head.has(super::frame::ACK)) {
            return fail(Reason::PROTOCOL_ERROR, "first frame is not SETTINGS");
        }
        if let Some(block) = &self.parser.block
            && (head.kind != Kind::Continuation || head.stream != block.stream)
        {
            return fail(Reason::PROTOCOL_ERROR, "header block interrupted");
        }
        self.parser.state = match head.kind {
            Kind::Data if head.has(PADDED) && head.len > 0 => State::PadLength(head),
            Kind::Data => return self.on_data(head, None),
            _ => State::Body(head),
        };
        Ok(())
    }

    /// A DATA frame begins: windows are checked for the whole of it.
    fn on_data(&mut self, head: Head, padding: Option<u8>) -> Handled {
        if head.has(PADDED) && padding.is_none() {
            return fail(Reason::FRAME_SIZE_ERROR, "padded DATA without its length");
        }
        let overhead = padding.map_or(0, |padding| u32::from(padding) + 1);
        let Some(octets) = head.len.checked_sub(overhead) else {
            return fail(Reason::PROTOCOL_ERROR, "padding longer than its frame");
        };
        if self.is_idle(head.stream) {
            return fail(Reason::PROTOCOL_ERROR, "DATA on a stream that was never opened");
        }
        let Some(window) = self.recv_window.checked_sub(head.len) else {
            return fail(Reason::FLOW_CONTROL_ERROR, "connection window overrun");
        };
        self.recv_window = window;
        self.recv_credit += head.len;
        let end = head.has(END_STREAM);
        if octets == 0 && !end {
            self.spend_idle("too many empty DATA frames")?;
        }
        self.admit_data(head, overhead)?;
        let padding = u32::from(padding.unwrap_or_default());
        let left = DataLeft { stream: head.stream, octets, padding, end };
        self.continue_data(left);
        Ok(())
    }

    /// Charges the frame to its stream's window; ends the stream if it may not have it.
    fn admit_data(&mut self, head: Head, overhead: u32) -> Handled {
        let Some(stream) = self.streams.get_mut(&head.stream).filter(|s| s.reset.is_none()) else {
            // Sent before our RST_STREAM arrived: dropped, and paid for by the connection only.
            return Ok(());
        };
        if stream.recv_done {
            return self.reset_stream(head.stream, Reason::STREAM_CLOSED);
        }
        if self.role == Role::Client && !stream.answered {
            return self.reset_stream(head.stream, Reason::PROTOCOL_ERROR);
        }
        let Some(window) = stream.recv_window.checked_sub(head.len) else {
            return self.reset_stream(head.stream, Reason::FLOW_CONTROL_ERROR);
        };
        stream.recv_window = window;
        self.credit(head.stream, overhead);
        Ok(())
    }

    /// Some octets of a DATA frame.
    fn on_octets(&mut self, mut left: DataLeft, input: &mut &[u8]) {
        let (data, rest) = input.split_at(input.len().min(left.octets as usize));
        left.octets -= u32::try_from(data.len()).unwrap_or(left.octets);
        if !data.is_empty()
            && let Some(stream) = self.streams.get_mut(&left.stream)
            && stream.reset.is_none()
        {
            if stream.attached {
                stream.recv.push(data);
                self.tell_readable(left.stream);
            } else {
                self.credit(left.stream, u32::try_from(data.len()).unwrap_or_default());
            }
        }
        let (padding, rest) = rest.split_at(rest.len().min(left.padding as usize));
        left.padding -= u32::try_from(padding.len()).unwrap_or(left.padding);
        *input = rest;
        self.continue_data(left);
    }

    fn continue_data(&mut self, left: DataLeft) {
        if left.octets > 0 || left.padding > 0 {
            self.parser.state = State::Data(left);
            return;
        }
        self.parser.state = State::Head;
        if left.end {
            self.on_end_stream(left.stream);
        }
    }

    fn on_frame(&mut self, head: Head, body: &[u8]) -> Handled {
        match head.kind {
            Kind::Headers => self.on_headers(head, body),
            Kind::Continuation => self.on_continuation(head, body),
            Kind::ResetStream => self.on_reset(head, body),
            Kind::Settings => self.on_settings(head, body),
            Kind::Ping => self.on_ping(head, body),
            Kind::GoAway => self.on_goaway(head, body),
            Kind::WindowUpdate => self.on_window_update(head, body),
            Kind::PushPromise => fail(Reason::PROTOCOL_ERROR, "PUSH_PROMISE was not allowed"),
            Kind::Priority if body.len() != 5 => {
                fail(Reason::FRAME_SIZE_ERROR, "PRIORITY of a wrong length")
            }
            Kind::Priority if head.stream == 0 => {
                fail(Reason::PROTOCOL_ERROR, "PRIORITY on the connection")
            }
            Kind::Priority | Kind::Unknown => self.spend_idle("too many frames to be ignored"),
            // DATA never comes here: it is handled as it arrives.
            Kind::Data => Ok(()),
        }
    }

    fn on_reset(&mut self, head: Head, body: &[u8]) -> Handled {
        let Some(reason) = word(body).filter(|_| body.len() == 4) else {
            return fail(Reason::FRAME_SIZE_ERROR, "RST_STREAM of a wrong length");
        };
        if self.is_idle(head.stream) {
            return fail(Reason::PROTOCOL_ERROR, "RST_STREAM on a stream that was never opened");
        }
        let Some(stream) = self.streams.get_mut(&head.stream).filter(|s| s.reset.is_none()) else {
            return self.spend_idle("too many frames on closed streams");
        };
        let early = self.role == Role::Server && !stream.answered;
        self.end_stream_by(head.stream, Reason(reason));
        if early { self.spend_reset("too many streams reset before an answer") } else { Ok(()) }
    }

    /// END_STREAM came, on DATA or HEADERS.
    pub(super) fn on_end_stream(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|s| s.reset.is_none()) else { return };
        if !stream.recv_done {
            stream.recv_done = true;
            stream.told_readable = false;
            self.tell_readable(id);
            self.settle(id);
        }
    }

    fn tell_readable(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.attached
            && !std::mem::replace(&mut stream.told_readable, true)
        {
            self.events.push_back(Event::Readable(super::StreamId(id)));
        }
    }

    /// No HEADERS ever opened this number (RFC 9113 section 5.1.1).
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Client => id.is_multiple_of(2) || id >= self.next_stream,
            Role::Server => id.is_multiple_of(2) || id > self.last_remote,
        }
    }

    pub(super) fn spend_idle(&mut self, detail: &'static str) -> Handled {
        if self.idle_frames.spend(self.now) {
            Ok(())
        } else {
            fail(Reason::ENHANCE_YOUR_CALM, detail)
        }
    }

    pub(super) fn spend_reset(&mut self, detail: &'static str) -> Handled {
        if self.early_resets.spend(self.now) {
            Ok(())
        } else {
            fail(Reason::ENHANCE_YOUR_CALM, detail)
        }
    }

    /// The connection's window is due to be given back.
    pub(super) fn owes_connection_credit(&self) -> bool {
        self.recv_credit >= CONNECTION_CREDIT && self.failure.is_none()
    }
}
