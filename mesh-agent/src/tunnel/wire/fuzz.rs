//! The body of the fuzz target `tunnel_wire`; its corpus also runs as a plain test.
//!
//! The first octet chooses the role and how the input is cut. The caller behaves as the driver
//! does: takes events, answers, reads, writes. What must hold is asserted.

use std::task::Poll;
use std::time::Duration;

use super::limits::{GROWN_WINDOW, MAX_CONTROL, MAX_STREAMS, SEND_BUFFER};
use super::{Batch, ConnectHead, Event, Quota, Role, StreamId, Wire};

/// Feeds `data` to one end.
///
/// # Panics
/// If a bound does not hold.
pub fn run(data: &[u8]) {
    let Some((choice, mut input)) = data.split_first() else { return };
    let role = if choice & 1 == 0 { Role::Server } else { Role::Client };
    let cut = usize::from(choice >> 1) + 1;
    let mut wire = Wire::new(role, Quota::unlimited());
    let mut ids = Vec::new();
    let mut batch = Batch::default();
    let head = ConnectHead { authority: "10.0.0.1:80".into(), ..Default::default() };
    if role == Role::Client {
        ids.extend((0..4).filter_map(|_| wire.open(&head).ok()));
    }
    while !input.is_empty() {
        let (part, rest) = input.split_at(cut.min(input.len()));
        input = rest;
        let failed = wire.receive(part, Duration::ZERO).is_err();
        assert_eq!(failed, wire.failure().is_some());
        while let Some(event) = wire.next_event() {
            on_event(&mut wire, event, &mut ids);
        }
        assert!(wire.control.len() <= 2 * MAX_CONTROL + 64 * cut);
        assert!(wire.open <= MAX_STREAMS);
        for stream in wire.streams.values() {
            assert!(stream.recv.len() <= GROWN_WINDOW as usize);
            assert!(stream.send.len() <= SEND_BUFFER);
        }
        if wire.is_congested() || failed {
            wire.transmit(1 << 20, &mut batch);
            batch.clear();
        }
    }
    for id in ids {
        wire.release(id);
    }
    while wire.wants_write() {
        wire.transmit(1 << 20, &mut batch);
        batch.clear();
    }
}

fn on_event(wire: &mut Wire, event: Event, ids: &mut Vec<StreamId>) {
    match event {
        Event::Request { stream, .. } => {
            ids.push(stream);
            match stream.number() % 8 {
                7 => wire.respond(stream, 503, true),
                5 => {}
                _ => wire.respond(stream, 200, false),
            }
        }
        Event::Readable(stream) => {
            let mut buffer = [0; 1000];
            if let Poll::Ready(Ok(read)) = wire.read(stream, &mut buffer) {
                let _ = wire.write(stream, buffer.get(..read).unwrap_or_default());
                if read == 0 {
                    wire.finish(stream);
                }
            }
        }
        Event::Reset(stream, _) => wire.release(stream),
        Event::Response { .. } | Event::Writable(_) => {}
        Event::Settings | Event::GoAway(_) | Event::Pong => {}
    }
}
