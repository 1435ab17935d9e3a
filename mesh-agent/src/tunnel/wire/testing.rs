//! Helpers of the tests: two wires joined in memory, and frames by hand.

use std::task::Poll;
use std::time::Duration;

use super::frame::{self, Kind};
use super::{Batch, ConnectHead, Event, Failure, Quota, Role, StreamId, Wire};

/// Octets from hexadecimal digits.
pub(super) fn unhex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// One frame.
pub(super) fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    frame::put(&mut octets, kind, flags, stream, payload);
    octets
}

/// A valid CONNECT on `stream`.
pub(super) fn connect(stream: u32) -> Vec<u8> {
    let mut block = Vec::new();
    head().encode(&mut block);
    frame(Kind::Headers, frame::END_HEADERS, stream, &block)
}

pub(super) fn head() -> ConnectHead {
    ConnectHead {
        authority: "10.1.2.3:8080".into(),
        baggage: Some("k8s.namespace.name=shop".into()),
        traceparent: None,
    }
}

/// The client's preface and an empty SETTINGS.
pub(super) fn preface() -> Vec<u8> {
    [frame::PREFACE.to_vec(), frame(Kind::Settings, 0, 0, &[])].concat()
}

/// Octets that do not repeat at a frame's or a buffer's length.
pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + n / 251 + seed * 7) % 253) as u8).collect()
}

/// Everything that `wire` has to send.
pub(super) fn output(wire: &mut Wire) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut batch = Batch::default();
    while wire.wants_write() {
        batch.clear();
        wire.transmit(64 * 1024, &mut batch);
        octets.extend(batch.slices().flatten());
    }
    octets
}

/// The frames in `octets`, as (kind, flags, stream, payload).
pub(super) fn frames(mut octets: &[u8]) -> Vec<(Kind, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = octets.split_first_chunk() {
        let head = frame::Head::parse(*head);
        let (payload, rest) = rest.split_at(head.len as usize);
        frames.push((head.kind, head.flags, head.stream, payload.to_vec()));
        octets = rest;
    }
    frames
}

pub(super) fn events(wire: &mut Wire) -> Vec<Event> {
    std::iter::from_fn(|| wire.next_event()).collect()
}

/// Reads all that is there: the octets, and how it ended.
pub(super) fn read_all(
    wire: &mut Wire,
    id: StreamId,
) -> (Vec<u8>, Poll<Result<(), frame::Reason>>) {
    let (mut octets, mut buffer) = (Vec::new(), vec![0; 50_000]);
    loop {
        match wire.read(id, &mut buffer) {
            Poll::Ready(Ok(0)) => return (octets, Poll::Ready(Ok(()))),
            Poll::Ready(Ok(read)) => octets.extend_from_slice(&buffer[..read]),
            Poll::Ready(Err(reason)) => return (octets, Poll::Ready(Err(reason))),
            Poll::Pending => return (octets, Poll::Pending),
        }
    }
}

/// A client and a server.
pub(super) struct Pair {
    pub(super) client: Wire,
    pub(super) server: Wire,
    now: Duration,
}

impl Pair {
    pub(super) fn new() -> Self {
        let mut pair = Self {
            client: Wire::new(Role::Client, Quota::unlimited()),
            server: Wire::new(Role::Server, Quota::unlimited()),
            now: Duration::ZERO,
        };
        pair.pump().unwrap();
        assert_eq!(events(&mut pair.client), [Event::Settings]);
        assert_eq!(events(&mut pair.server), [Event::Settings]);
        pair
    }

    /// Carries octets both ways until there are none.
    pub(super) fn pump(&mut self) -> Result<(), Failure> {
        loop {
            let (up, down) = (output(&mut self.client), output(&mut self.server));
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
            self.now += Duration::from_millis(10);
            self.server.receive(&up, self.now)?;
            self.client.receive(&down, self.now)?;
        }
    }

    /// Opens a stream and accepts it.
    pub(super) fn open(&mut self) -> StreamId {
        let id = self.client.open(&head()).unwrap();
        self.pump().unwrap();
        assert_eq!(events(&mut self.server), [Event::Request { stream: id, head: head() }]);
        self.server.respond(id, 200, false);
        self.pump().unwrap();
        assert_eq!(events(&mut self.client), [Event::Response { stream: id, status: 200 }]);
        id
    }
}
