//! Frames of the connection itself: SETTINGS, PING, GOAWAY, WINDOW_UPDATE; and its abrupt end.

use super::frame::{self, ACK, Head, Kind, Reason, setting, word};
use super::limits::{MAX_FRAME, MAX_WINDOW};
use super::receive::{Handled, fail};
use super::{Drain, Event, Failure, Role, StreamId, Wire};

/// The PING whose answer shows that the peer has seen our announced GOAWAY.
pub(super) const DRAIN_PING: [u8; 8] = *b"mlhdrain";

/// The PING that asks for a sign of life.
pub(super) const KEEPALIVE_PING: [u8; 8] = *b"mlhalive";

impl Wire {
    pub(super) fn on_settings(&mut self, head: Head, body: &[u8]) -> Handled {
        if head.stream != 0 {
            return fail(Reason::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        self.spend_idle("too many SETTINGS")?;
        if head.has(ACK) {
            return if body.is_empty() {
                Ok(())
            } else {
                fail(Reason::FRAME_SIZE_ERROR, "SETTINGS acknowledgement with content")
            };
        }
        let (entries, rest) = body.as_chunks::<6>();
        if !rest.is_empty() {
            return fail(Reason::FRAME_SIZE_ERROR, "SETTINGS of a wrong length");
        }
        if !self.peer.received {
            self.peer.received = true;
            self.peer.max_streams = u32::MAX;
        }
        for [i0, i1, v0, v1, v2, v3] in entries {
            let id = u16::from_be_bytes([*i0, *i1]);
            self.on_setting(id, u32::from_be_bytes([*v0, *v1, *v2, *v3]))?;
        }
        frame::put(&mut self.control, Kind::Settings, ACK, 0, &[]);
        self.events.push_back(Event::Settings);
        Ok(())
    }

    fn on_setting(&mut self, id: u16, value: u32) -> Handled {
        match id {
            setting::ENABLE_PUSH if value > 1 => {
                fail(Reason::PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            }
            setting::MAX_CONCURRENT_STREAMS => {
                self.peer.max_streams = value;
                Ok(())
            }
            setting::INITIAL_WINDOW_SIZE => self.on_initial_window(value),
            setting::MAX_FRAME_SIZE if !(MAX_FRAME..=0x00ff_ffff).contains(&value) => {
                fail(Reason::PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
            }
            // Ours are never longer than the smallest allowed, our table is always empty.
            _ => Ok(()),
        }
    }

    /// The difference applies to every stream that is open (RFC 9113 section 6.9.2).
    fn on_initial_window(&mut self, value: u32) -> Handled {
        if value > MAX_WINDOW {
            return fail(Reason::FLOW_CONTROL_ERROR, "initial window above 2^31-1");
        }
        let change = i64::from(value) - i64::from(self.peer.initial_window);
        self.peer.initial_window = value;
        let mut woken = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.send_window += change;
            if stream.send_window > i64::from(MAX_WINDOW) {
                return fail(Reason::FLOW_CONTROL_ERROR, "stream window above 2^31-1");
            }
            if change > 0 && stream.can_send() {
                woken.push(*id);
            }
        }
        woken.sort_unstable();
        for id in woken {
            self.enqueue(id);
        }
        Ok(())
    }

    pub(super) fn on_ping(&mut self, head: Head, body: &[u8]) -> Handled {
        if body.len() != 8 {
            return fail(Reason::FRAME_SIZE_ERROR, "PING of a wrong length");
        }
        if head.stream != 0 {
            return fail(Reason::PROTOCOL_ERROR, "PING on a stream");
        }
        self.spend_idle("too many PING")?;
        if !head.has(ACK) {
            frame::put(&mut self.control, Kind::Ping, ACK, 0, body);
        } else if body == DRAIN_PING && self.drain == Drain::Announced {
            self.put_final_goaway();
        } else if body == KEEPALIVE_PING {
            self.events.push_back(Event::Pong);
        }
        Ok(())
    }

    pub(super) fn on_goaway(&mut self, head: Head, body: &[u8]) -> Handled {
        let (Some(last), Some(reason)) = (word(body), body.get(4..).and_then(word)) else {
            return fail(Reason::FRAME_SIZE_ERROR, "GOAWAY of a wrong length");
        };
        if head.stream != 0 {
            return fail(Reason::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        self.spend_idle("too many GOAWAY")?;
        self.peer_going = true;
        if self.role == Role::Client {
            let last = last & MAX_WINDOW;
            let mut refused: Vec<u32> =
                self.streams.keys().copied().filter(|id| *id > last).collect();
            refused.sort_unstable();
            for id in refused {
                self.end_stream_by(id, Reason::REFUSED_STREAM);
            }
        }
        self.events.push_back(Event::GoAway(Reason(reason)));
        Ok(())
    }

    pub(super) fn on_window_update(&mut self, head: Head, body: &[u8]) -> Handled {
        let Some(increment) = word(body).filter(|_| body.len() == 4) else {
            return fail(Reason::FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length");
        };
        let increment = increment & MAX_WINDOW;
        if head.stream == 0 {
            self.send_window += i64::from(increment);
            if increment == 0 {
                return fail(Reason::PROTOCOL_ERROR, "WINDOW_UPDATE of 0");
            }
            if self.send_window > i64::from(MAX_WINDOW) {
                return fail(Reason::FLOW_CONTROL_ERROR, "connection window above 2^31-1");
            }
            self.ready.append(&mut self.starved);
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return fail(Reason::PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that was never opened");
        }
        let Some(stream) = self.streams.get_mut(&head.stream).filter(|s| s.reset.is_none()) else {
            return Ok(());
        };
        stream.send_window += i64::from(increment);
        if increment == 0 {
            return self.reset_stream(head.stream, Reason::PROTOCOL_ERROR);
        }
        if stream.send_window > i64::from(MAX_WINDOW) {
            return self.reset_stream(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        if stream.can_send() {
            self.enqueue(head.stream);
        }
        Ok(())
    }

    pub(super) fn put_final_goaway(&mut self) {
        self.drain = Drain::Final;
        put_goaway(&mut self.control, self.last_remote, Reason::NO_ERROR);
    }

    /// The connection ends at once: GOAWAY goes out, every stream is over.
    pub(super) fn abort(&mut self, failure: Failure) {
        self.failure = Some(failure);
        put_goaway(&mut self.control, self.last_remote, failure.reason);
        self.ready.clear();
        self.starved.clear();
        self.credits.clear();
        for (id, stream) in &mut self.streams {
            if stream.reset.is_none() {
                stream.end(failure.reason);
                self.events.push_back(Event::Reset(StreamId(*id), failure.reason));
            }
        }
        self.streams.retain(|_, stream| stream.attached);
        self.open = 0;
    }

    /// Ends the connection for a reason of the caller's, such as a lost socket.
    pub fn close(&mut self, reason: Reason, detail: &'static str) {
        if self.failure.is_none() {
            self.abort(Failure { reason, detail });
        }
    }
}

pub(super) fn put_goaway(output: &mut Vec<u8>, last: u32, reason: Reason) {
    let mut payload = [0; 8];
    let (head, tail) = payload.split_at_mut(4);
    head.copy_from_slice(&last.to_be_bytes());
    tail.copy_from_slice(&reason.0.to_be_bytes());
    frame::put(output, Kind::GoAway, 0, 0, &payload);
}
