//! Peers that break the rules: each ends in the right code, and memory stays bounded.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::super::control::put_goaway;
use super::super::frame::{ACK, END_HEADERS, END_STREAM, Kind, PADDED, Reason};
use super::super::limits::{
    EARLY_RESETS, GROWN_WINDOW, GROWTH, IDLE_FRAMES, MAX_BLOCK, MAX_CONTROL, MAX_STREAMS,
    MAX_WINDOW, SEND_BUFFER, SMALL_SEND_BUFFER, STREAM_WINDOW,
};
use super::super::testing::{Pair, connect, events, frame, frames, output, preface, read_all};
use super::super::{Event, Failure, Quota, Role, StreamId, Wire};
use crate::tunnel::{Budget, Usage};

/// A server that has seen the preface.
fn server() -> Wire {
    let mut wire = Wire::new(Role::Server, Quota::unlimited());
    wire.receive(&preface(), Duration::ZERO).unwrap();
    events(&mut wire);
    output(&mut wire);
    wire
}

fn feed(wire: &mut Wire, input: &[u8]) -> Result<(), Failure> {
    wire.receive(input, Duration::ZERO)
}

/// The input ends the connection with `reason`, said in GOAWAY; nothing more is taken.
fn ends_with(wire: &mut Wire, input: &[u8], reason: Reason) {
    let failure = feed(wire, input).expect_err("must end the connection");
    assert_eq!(failure.reason, reason, "{failure}");
    let last = frames(&output(wire)).pop().expect("GOAWAY");
    assert_eq!((last.0, &last.3[4..]), (Kind::GoAway, reason.0.to_be_bytes().as_slice()));
    events(wire);
    assert!(feed(wire, &connect(101)).is_err() && wire.is_finished());
    assert!(!events(wire).iter().any(|event| matches!(event, Event::Request { .. })));
}

/// The input ends only stream `id`.
fn resets(wire: &mut Wire, input: &[u8], id: u32, reason: Reason) {
    feed(wire, input).unwrap();
    let sent = frames(&output(wire));
    let reset = (Kind::ResetStream, 0, id, reason.0.to_be_bytes().to_vec());
    assert!(sent.contains(&reset), "{sent:?}");
    feed(wire, &connect(1001)).unwrap();
    let request = |event: &Event| matches!(event, Event::Request { stream: StreamId(1001), .. });
    assert!(events(wire).iter().any(request), "neighbours go on");
}

#[test]
fn connection_errors() {
    use Kind::*;
    let word = |value: u32| value.to_be_bytes();
    let cases: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("DATA before HEADERS", frame(Data, 0, 1, b"x"), Reason::PROTOCOL_ERROR),
        ("DATA on stream 0", frame(Data, 0, 0, b"x"), Reason::PROTOCOL_ERROR),
        ("even stream", connect(2), Reason::PROTOCOL_ERROR),
        ("HEADERS on stream 0", connect(0), Reason::PROTOCOL_ERROR),
        ("RST before HEADERS", frame(ResetStream, 0, 1, &word(8)), Reason::PROTOCOL_ERROR),
        ("short RST", frame(ResetStream, 0, 1, b"x"), Reason::FRAME_SIZE_ERROR),
        ("window of idle", frame(WindowUpdate, 0, 1, &word(8)), Reason::PROTOCOL_ERROR),
        ("window of 0", frame(WindowUpdate, 0, 0, &word(0)), Reason::PROTOCOL_ERROR),
        ("short window", frame(WindowUpdate, 0, 0, b"x"), Reason::FRAME_SIZE_ERROR),
        (
            "window overflow",
            frame(WindowUpdate, 0, 0, &word(0x7fff_ffff)),
            Reason::FLOW_CONTROL_ERROR,
        ),
        ("push", frame(PushPromise, END_HEADERS, 1, &word(2)), Reason::PROTOCOL_ERROR),
        ("short ping", frame(Ping, 0, 0, b"x"), Reason::FRAME_SIZE_ERROR),
        ("ping on a stream", frame(Ping, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR),
        ("short goaway", frame(GoAway, 0, 0, b"x"), Reason::FRAME_SIZE_ERROR),
        ("goaway on a stream", frame(GoAway, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR),
        ("short priority", frame(Priority, 0, 1, b"x"), Reason::FRAME_SIZE_ERROR),
        ("settings on a stream", frame(Settings, 0, 1, &[]), Reason::PROTOCOL_ERROR),
        ("odd settings", frame(Settings, 0, 0, b"x"), Reason::FRAME_SIZE_ERROR),
        ("ack with content", frame(Settings, ACK, 0, &[0; 6]), Reason::FRAME_SIZE_ERROR),
        ("push 2", frame(Settings, 0, 0, &[0, 2, 0, 0, 0, 2]), Reason::PROTOCOL_ERROR),
        (
            "initial window",
            frame(Settings, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            Reason::FLOW_CONTROL_ERROR,
        ),
        ("frame size", frame(Settings, 0, 0, &[0, 5, 0, 0, 0, 1]), Reason::PROTOCOL_ERROR),
        ("long frame", frame(Unknown, 0, 0, &[0; 16_385]), Reason::FRAME_SIZE_ERROR),
        ("lone continuation", frame(Continuation, 4, 1, b""), Reason::PROTOCOL_ERROR),
        (
            "interrupted block",
            [frame(Headers, 0, 1, b""), frame(Ping, 0, 0, &[0; 8])].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        (
            "block of another stream",
            [frame(Headers, 0, 1, b""), frame(Continuation, 4, 3, b"")].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        ("bad hpack", frame(Headers, END_HEADERS, 1, &[0x80]), Reason::COMPRESSION_ERROR),
        ("padding", frame(Headers, END_HEADERS | PADDED, 1, &[9]), Reason::PROTOCOL_ERROR),
        (
            "padding of data",
            [connect(1), frame(Data, PADDED, 1, &[2, 0])].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        ("priority of nothing", frame(Priority, 0, 0, &[0; 5]), Reason::PROTOCOL_ERROR),
        (
            "padded data of nothing",
            [connect(1), frame(Data, PADDED, 1, &[])].concat(),
            Reason::FRAME_SIZE_ERROR,
        ),
    ];
    for (name, input, reason) in cases {
        println!("{name}");
        ends_with(&mut server(), &input, reason);
    }
}

#[test]
fn the_preface_is_required() {
    let mut wire = Wire::new(Role::Server, Quota::unlimited());
    ends_with(&mut wire, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Reason::PROTOCOL_ERROR);
    let mut wire = Wire::new(Role::Server, Quota::unlimited());
    let input = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), connect(1)].concat();
    ends_with(&mut wire, &input, Reason::PROTOCOL_ERROR);
    let mut wire = Wire::new(Role::Client, Quota::unlimited());
    output(&mut wire);
    ends_with(&mut wire, b"HTTP/1.1 400 Bad Request\r\n\r\n", Reason::FRAME_SIZE_ERROR);
}

#[test]
fn stream_errors() {
    let get = frame(Kind::Headers, END_HEADERS, 1, &[0x82, 0x84, 0x86]);
    let mut wire = server();
    resets(&mut wire, &get, 1, Reason::NO_ERROR);
    let malformed = frame(Kind::Headers, END_HEADERS, 1, &[0x82, 0x82]);
    resets(&mut server(), &malformed, 1, Reason::PROTOCOL_ERROR);
    let zero = [connect(1), frame(Kind::WindowUpdate, 0, 1, &[0; 4])].concat();
    resets(&mut server(), &zero, 1, Reason::PROTOCOL_ERROR);
    let overflow = frame(Kind::WindowUpdate, 0, 1, &0x7fff_ffff_u32.to_be_bytes());
    resets(&mut server(), &[connect(1), overflow].concat(), 1, Reason::FLOW_CONTROL_ERROR);
    let after_end =
        [connect(1), frame(Kind::Data, END_STREAM, 1, b"x"), frame(Kind::Data, 0, 1, b"y")];
    resets(&mut server(), &after_end.concat(), 1, Reason::STREAM_CLOSED);
    let trailers = [connect(1), frame(Kind::Headers, END_HEADERS, 1, &[])].concat();
    resets(&mut server(), &trailers, 1, Reason::PROTOCOL_ERROR);
    let after_end = [
        connect(1),
        frame(Kind::Data, END_STREAM, 1, b"x"),
        frame(Kind::Headers, END_HEADERS | END_STREAM, 1, &[]),
    ];
    resets(&mut server(), &after_end.concat(), 1, Reason::STREAM_CLOSED);
    // What a request other than CONNECT needs: :path, :scheme, each once, and no TE but "trailers".
    let te = [&[0x82, 0x84, 0x86, 0, 2][..], b"te", &[4], b"gzip"].concat();
    let odd: [&[u8]; 4] = [&[0x82, 0x86], &[0x82, 0x84], &[0x82, 0x84, 0x84, 0x86], &te];
    for block in odd {
        let odd = frame(Kind::Headers, END_HEADERS, 1, block);
        resets(&mut server(), &odd, 1, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn a_stream_window_overrun_ends_the_stream_and_frees_its_memory() {
    let mut wire = server();
    let mut input = connect(1);
    for _ in 0..5 {
        input.extend(frame(Kind::Data, 0, 1, &[0; STREAM_WINDOW as usize / 5]));
    }
    feed(&mut wire, &input).unwrap();
    assert_eq!(wire.streams[&1].recv.len(), STREAM_WINDOW as usize);
    resets(&mut wire, &frame(Kind::Data, 0, 1, b"x"), 1, Reason::FLOW_CONTROL_ERROR);
    assert_eq!(wire.streams[&1].recv.len(), 0);
}

/// A server whose pod has `memory` octets to draw on (two thirds of what its node has).
fn server_of(memory: usize) -> (Arc<Quota>, Wire) {
    let quota = Quota::new(
        "p".into(),
        Budget::new(Usage { memory: memory.div_ceil(2) * 3, ..Usage::default() }),
        100,
    );
    let mut wire = Wire::new(Role::Server, Arc::clone(&quota));
    output(&mut wire);
    feed(&mut wire, &preface()).unwrap();
    events(&mut wire);
    output(&mut wire);
    (quota, wire)
}

/// What the stream's reader gives back to a peer that has filled its window, over and above it.
fn grown_by(wire: &mut Wire, stream: u32) -> u32 {
    feed(wire, &connect(stream)).unwrap();
    let fifth = frame(Kind::Data, 0, stream, &[0; STREAM_WINDOW as usize / 5]);
    feed(wire, &fifth.repeat(5)).unwrap();
    assert_eq!(read_all(wire, StreamId(stream)).0.len(), STREAM_WINDOW as usize);
    let updates = frames(&output(wire))
        .into_iter()
        .filter(|(kind, _, id, _)| (*kind, *id) == (Kind::WindowUpdate, stream));
    let given: u32 = updates.map(|(.., word)| u32::from_be_bytes(word.try_into().unwrap())).sum();
    given - STREAM_WINDOW
}

#[test]
fn windows_grow_out_of_the_pods_memory_and_only_while_there_is_some() {
    let (quota, mut wire) = server_of(GROWTH);
    assert_eq!(grown_by(&mut wire, 1), GROWN_WINDOW - STREAM_WINDOW);
    assert_eq!(quota.held().memory, GROWTH);
    assert_eq!(grown_by(&mut wire, 3), 0, "there is none left");
    let write = |wire: &mut Wire, id| wire.write(StreamId(id), &[0; 2 * SEND_BUFFER]);
    assert_eq!(write(&mut wire, 3), Poll::Ready(Ok(SMALL_SEND_BUFFER)));
    assert_eq!(write(&mut wire, 3), Poll::Pending);
    assert_eq!(write(&mut wire, 1), Poll::Ready(Ok(SEND_BUFFER)));
    wire.release(StreamId(1));
    assert_eq!(quota.held().memory, 0);
    assert_eq!(write(&mut wire, 3), Poll::Ready(Ok(SEND_BUFFER - SMALL_SEND_BUFFER)), "its turn");
    // A reader that is content with little leaves the memory to others.
    let (quota, mut wire) = server_of(GROWTH);
    feed(&mut wire, &[connect(1), frame(Kind::Data, 0, 1, b"question")].concat()).unwrap();
    assert_eq!(read_all(&mut wire, StreamId(1)).0, b"question");
    assert_eq!(wire.write(StreamId(1), b"answer"), Poll::Ready(Ok(6)));
    assert_eq!(quota.held().memory, 0);
}

#[test]
fn padding_is_given_back() {
    // Padding counts against both windows; a peer that sends only padding must not run dry.
    let mut wire = server();
    feed(&mut wire, &connect(1)).unwrap();
    let padded = frame(Kind::Data, PADDED, 1, &[&[255], [0; 256].as_slice()].concat());
    for _ in 0..10 * STREAM_WINDOW / 257 {
        feed(&mut wire, &padded).unwrap();
        assert_eq!(read_all(&mut wire, StreamId(1)).0.len(), 1);
        output(&mut wire);
    }
    assert!(wire.streams[&1].reset.is_none());
}

/// Sends `input` again and again, reading our answers, until the connection ends.
fn flood(wire: &mut Wire, input: impl Fn(u32) -> Vec<u8>, at_most: u32) -> u32 {
    for n in 0..=at_most {
        if let Err(failure) = feed(wire, &input(n)) {
            assert_eq!(failure.reason, Reason::ENHANCE_YOUR_CALM, "{failure}");
            return n;
        }
        events(wire);
        output(wire);
    }
    panic!("{at_most} were taken");
}

#[test]
fn floods_of_frames_that_carry_nothing() {
    let with_stream = || {
        let mut wire = server();
        feed(&mut wire, &connect(1)).unwrap();
        wire.respond(StreamId(1), 200, false);
        wire
    };
    let floods = [
        frame(Kind::Settings, 0, 0, &[]),
        frame(Kind::Settings, ACK, 0, &[]),
        frame(Kind::Ping, 0, 0, &[0; 8]),
        frame(Kind::Priority, 0, 1, &[0; 5]),
        frame(Kind::Unknown, 0, 0, &[]),
        frame(Kind::Data, 0, 1, &[]),
        frame(Kind::GoAway, 0, 0, &[0; 8]),
    ];
    for input in floods {
        let taken = flood(&mut with_stream(), |_| input.clone(), IDLE_FRAMES);
        assert!(taken >= IDLE_FRAMES - 2, "{taken}");
    }
    // Spread over time the same frames are no flood.
    let mut wire = with_stream();
    for n in 0..3 * IDLE_FRAMES {
        wire.receive(&frame(Kind::Ping, 0, 0, &[0; 8]), Duration::from_millis(2 * u64::from(n)))
            .unwrap();
        output(&mut wire);
    }
}

#[test]
fn rapid_reset() {
    let reset = |n: u32| {
        let id = 2 * n + 1;
        [connect(id), frame(Kind::ResetStream, 0, id, &[0, 0, 0, 8])].concat()
    };
    let mut wire = server();
    assert_eq!(flood(&mut wire, reset, EARLY_RESETS), EARLY_RESETS);
    // Streams that were answered may be reset as often as one likes.
    let mut wire = server();
    for n in 0..2 * EARLY_RESETS {
        let id = 2 * n + 1;
        feed(&mut wire, &connect(id)).unwrap();
        wire.respond(StreamId(id), 200, false);
        feed(&mut wire, &frame(Kind::ResetStream, 0, id, &[0, 0, 0, 8])).unwrap();
        wire.release(StreamId(id));
        events(&mut wire);
        output(&mut wire);
    }
    assert!(wire.streams.is_empty());
}

/// The peer breaks a rule on each stream and leaves the reset to us (CVE-2025-8671).
#[test]
fn made_you_reset() {
    let after_end = |n: u32| {
        let id = 2 * n + 1;
        let data = frame(Kind::Data, 0, id, b"more");
        [connect(id), frame(Kind::Data, END_STREAM, id, b""), data].concat()
    };
    let update = |n: u32, by: u32| frame(Kind::WindowUpdate, 0, 2 * n + 1, &by.to_be_bytes());
    let trailers = |n: u32| [connect(2 * n + 1), connect(2 * n + 1)].concat();
    assert_eq!(flood(&mut server(), after_end, EARLY_RESETS), EARLY_RESETS);
    assert_eq!(flood(&mut server(), trailers, EARLY_RESETS), EARLY_RESETS);
    for by in [0, MAX_WINDOW] {
        let piece = |n: u32| [connect(2 * n + 1), update(n, by)].concat();
        assert_eq!(flood(&mut server(), piece, EARLY_RESETS), EARLY_RESETS);
    }
}

#[test]
fn streams_above_the_limit_are_refused_then_punished() {
    let mut wire = server();
    for n in 0..MAX_STREAMS {
        feed(&mut wire, &connect(2 * n + 1)).unwrap();
    }
    output(&mut wire);
    feed(&mut wire, &connect(2 * MAX_STREAMS + 1)).unwrap();
    let sent = frames(&output(&mut wire));
    assert_eq!(sent[0].3, Reason::REFUSED_STREAM.0.to_be_bytes());
    assert_eq!(wire.streams.len(), MAX_STREAMS as usize);
    let taken = flood(&mut wire, |n| connect(2 * (MAX_STREAMS + n) + 3), EARLY_RESETS);
    assert_eq!(taken, EARLY_RESETS - 1);
}

#[test]
fn continuation_floods() {
    let mut wire = server();
    let empty = [frame(Kind::Headers, 0, 1, &[]), frame(Kind::Continuation, 0, 1, &[]).repeat(17)];
    ends_with(&mut wire, &empty.concat(), Reason::ENHANCE_YOUR_CALM);
    let mut wire = server();
    let full = [
        frame(Kind::Headers, 0, 1, &[0x82; MAX_BLOCK]),
        frame(Kind::Continuation, END_HEADERS, 1, &[0x82]),
    ];
    ends_with(&mut wire, &full.concat(), Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn a_header_bomb_is_not_unpacked() {
    // One long value in the table, then 16,000 references to it: 60 MB if it were kept.
    let mut block = vec![0x40, 1, b'x', 0x7f, 0x81, 0x1e];
    block.extend([b'y'; 127 + 0x1e * 128 + 1]);
    let mut wire = server();
    feed(&mut wire, &frame(Kind::Headers, END_HEADERS, 1, &block)).unwrap();
    resets(
        &mut wire,
        &frame(Kind::Headers, END_HEADERS, 3, &[0xbe; 16_000]),
        3,
        Reason::PROTOCOL_ERROR,
    );
}

#[test]
fn a_peer_that_only_asks_congests_only_itself() {
    let mut wire = server();
    let ping = frame(Kind::Ping, 0, 0, &[0; 8]);
    let mut fed = 0;
    while !wire.is_congested() {
        feed(&mut wire, &ping).unwrap();
        fed += ping.len();
        assert!(fed < 2 * MAX_CONTROL);
    }
    output(&mut wire);
    assert!(!wire.is_congested());
}

#[test]
fn a_client_refuses_answers_to_what_it_did_not_ask() {
    for input in [connect(1), frame(Kind::Data, 0, 1, b"x"), connect(2)] {
        ends_with(&mut Pair::new().client, &input, Reason::PROTOCOL_ERROR);
    }
    let mut pair = Pair::new();
    let id = pair.client.open(&super::super::testing::head()).unwrap();
    feed(&mut pair.client, &frame(Kind::Data, 0, id.0, b"x")).unwrap();
    assert_eq!(events(&mut pair.client), [Event::Reset(id, Reason::PROTOCOL_ERROR)], "unanswered");
}

#[test]
fn interim_answers_are_skipped_but_not_for_ever() {
    let mut pair = Pair::new();
    let id = pair.client.open(&super::super::testing::head()).unwrap();
    // :status 103 as a literal.
    let interim = frame(Kind::Headers, END_HEADERS, id.0, &[0x08, 3, b'1', b'0', b'3']);
    feed(&mut pair.client, &interim).unwrap();
    assert!(events(&mut pair.client).is_empty());
    feed(&mut pair.client, &frame(Kind::Headers, END_HEADERS, id.0, &[0x88])).unwrap();
    assert_eq!(events(&mut pair.client), [Event::Response { stream: id, status: 200 }]);
    let id = pair.client.open(&super::super::testing::head()).unwrap();
    let interim = frame(Kind::Headers, END_HEADERS, id.0, &[0x08, 3, b'1', b'0', b'3']);
    flood(&mut pair.client, |_| interim.clone(), IDLE_FRAMES);
}

#[test]
fn a_peers_failure_ends_every_stream() {
    let mut pair = Pair::new();
    let ids = [pair.open(), pair.open()];
    let mut goaway = Vec::new();
    put_goaway(&mut goaway, 1, Reason::ENHANCE_YOUR_CALM);
    feed(&mut pair.client, &goaway).unwrap();
    let seen = events(&mut pair.client);
    assert!(seen.contains(&Event::GoAway(Reason::ENHANCE_YOUR_CALM)), "{seen:?}");
    pair.client.close(Reason::INTERNAL_ERROR, "socket lost");
    assert_eq!(events(&mut pair.client), [Event::Reset(ids[0], Reason::INTERNAL_ERROR)]);
}
