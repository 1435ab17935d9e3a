//! The bytes on the runtime's socket: frames of a multiplexer, and ttrpc messages in them.
//!
//! Pure: bytes in, messages out. Nothing is kept of a frame but how much of it is still to come, and
//! of a message no more than [`MAX_MESSAGE`].

use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Octets of a frame's payload. The runtime's reader takes no longer ones
/// (`nri/pkg/net/multiplex/mux.go`, `Read`; ttrpc reads into 4096 octets).
const MAX_FRAME: usize = 4096;
const FRAME_HEADER: usize = 8;
const MESSAGE_HEADER: usize = 10;
/// As ttrpc's own limit (`channel.go`, `messageLengthMax`).
const MAX_MESSAGE: usize = 4 << 20;

/// What keeps a connection from being read any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// A length that the protocol does not allow.
    #[error("a message of {0} octets")]
    TooLong(usize),
    /// Neither request nor response.
    #[error("a message of type {0}")]
    Kind(u8),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request = 1,
    Response = 2,
}

/// One ttrpc message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) stream: u32,
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
}

/// Takes frames apart.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: Vec<u8>,
    connection: u32,
    left: usize,
}

/// Puts the messages of one connection together.
#[derive(Debug, Default)]
pub(super) struct Messages {
    buffer: BytesMut,
}

// === impl Frames ===

impl Frames {
    /// Gives each piece of `bytes` to the connection that it belongs to.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut give: impl FnMut(u32, &[u8])) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = FRAME_HEADER - self.header.len();
                let (some, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(some);
                bytes = rest;
                if self.header.len() == FRAME_HEADER {
                    let mut header = &self.header[..];
                    self.connection = header.get_u32();
                    self.left = header.get_u32() as usize;
                    self.header.clear();
                }
                continue;
            }
            let (some, rest) = bytes.split_at(self.left.min(bytes.len()));
            give(self.connection, some);
            self.left -= some.len();
            bytes = rest;
        }
    }
}

// === impl Messages ===

impl Messages {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message that is there as a whole. After an error there is no going on.
    pub(super) fn next(&mut self) -> Result<Option<Message>, WireError> {
        let mut header = &self.buffer[..];
        if header.len() < MESSAGE_HEADER {
            return Ok(None);
        }
        let length = header.get_u32() as usize;
        let stream = header.get_u32();
        let kind = match header.get_u8() {
            1 => Kind::Request,
            2 => Kind::Response,
            other => return Err(WireError::Kind(other)),
        };
        if length > MAX_MESSAGE {
            return Err(WireError::TooLong(length));
        }
        if self.buffer.len() < MESSAGE_HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(MESSAGE_HEADER);
        let payload = self.buffer.split_to(length).freeze();
        Ok(Some(Message { stream, kind, payload }))
    }
}

// === impl Message ===

impl Message {
    /// Appends it to `out` as frames of a connection. The payload must be below the limit, as
    /// everything is that this plugin says.
    pub(super) fn write(&self, connection: u32, out: &mut Vec<u8>) {
        let mut whole = Vec::with_capacity(MESSAGE_HEADER + self.payload.len());
        whole.put_u32(self.payload.len() as u32);
        whole.put_u32(self.stream);
        whole.put_u8(self.kind as u8);
        whole.put_u8(0);
        whole.extend_from_slice(&self.payload);
        for piece in whole.chunks(MAX_FRAME) {
            out.put_u32(connection);
            out.put_u32(piece.len() as u32);
            out.extend_from_slice(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads bytes in pieces, as two connections.
    fn read(pieces: &[&[u8]]) -> [Result<Vec<Message>, WireError>; 2] {
        let mut frames = Frames::default();
        let mut connections = [Messages::default(), Messages::default()];
        for piece in pieces {
            frames.push(piece, |connection, bytes| match connection {
                1 => connections[0].push(bytes),
                2 => connections[1].push(bytes),
                _ => {}
            });
        }
        connections.map(|mut messages| {
            let mut found = Vec::new();
            while let Some(message) = messages.next()? {
                found.push(message);
            }
            Ok(found)
        })
    }

    fn message() -> impl Strategy<Value = (u32, Message)> {
        let kind = prop_oneof![Just(Kind::Request), Just(Kind::Response)];
        let payload = proptest::collection::vec(any::<u8>(), 0..10_000);
        (1..3_u32, any::<u32>(), kind, payload).prop_map(|(connection, stream, kind, payload)| {
            (connection, Message { stream, kind, payload: payload.into() })
        })
    }

    proptest! {
        #[test]
        fn messages_come_back_however_they_are_split(
            messages in proptest::collection::vec(message(), 0..6),
            at in any::<prop::sample::Index>(),
            also in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            for (connection, message) in &messages {
                message.write(*connection, &mut bytes);
            }
            let (first, rest) = bytes.split_at(at.index(bytes.len() + 1));
            let (second, third) = rest.split_at(also.index(rest.len() + 1));
            let found = read(&[first, second, third]);
            for (index, found) in (1..).zip(found) {
                let sent = messages.iter().filter(|(connection, _)| *connection == index);
                let sent: Vec<Message> = sent.map(|(_, message)| message.clone()).collect();
                prop_assert_eq!(found.unwrap(), sent);
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
            let whole = format!("{:?}", read(&[&bytes]));
            prop_assert_eq!(whole, format!("{:?}", read(&[first, second])));
            // Also as a message.
            let mut messages = Messages::default();
            messages.push(&bytes);
            while let Ok(Some(_)) = messages.next() {}
        }
    }

    #[test]
    fn frames_are_short_enough_for_the_runtime() {
        let message = Message { stream: 1, kind: Kind::Request, payload: vec![7; 10_000].into() };
        let mut bytes = Vec::new();
        message.write(1, &mut bytes);
        let mut lengths = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = rest[4..8].try_into().map(u32::from_be_bytes).unwrap() as usize;
            lengths.push(length);
            rest = &rest[8 + length..];
        }
        assert_eq!(lengths, [4096, 4096, 10_010 - 8192]);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_by_its_header() {
        let mut messages = Messages::default();
        messages.push(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0]);
        assert!(matches!(messages.next(), Err(WireError::TooLong(_))));
        let mut messages = Messages::default();
        messages.push(&[0, 0, 0, 0, 0, 0, 0, 1, 3, 0]);
        assert!(matches!(messages.next(), Err(WireError::Kind(3))));
    }
}
