//! Our own two ends against each other: life of streams, windows, fairness, drain.

use std::task::Poll;
use std::time::Duration;

use proptest::prelude::*;

use super::super::frame::{Kind, Reason};
use super::super::limits::{MAX_DATA, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use super::super::testing::{Pair, events, frames, head, output, pattern, read_all};
use super::super::{Event, OpenError, Quota, Role, StreamId, Wire};

const WINDOW: usize = STREAM_WINDOW as usize;

fn write(wire: &mut Wire, id: StreamId, octets: &[u8]) -> usize {
    match wire.write(id, octets) {
        Poll::Ready(Ok(taken)) => taken,
        Poll::Pending => 0,
        Poll::Ready(Err(reason)) => panic!("{reason}"),
    }
}

#[test]
fn half_close_in_each_direction() {
    let mut pair = Pair::new();
    let id = pair.open();
    write(&mut pair.client, id, b"question");
    pair.client.finish(id);
    pair.pump().unwrap();
    assert_eq!(events(&mut pair.server), [Event::Readable(id), Event::Readable(id)]);
    assert_eq!(read_all(&mut pair.server, id), (b"question".to_vec(), Poll::Ready(Ok(()))));
    assert_eq!(pair.client.write(id, b"more"), Poll::Ready(Err(Reason::STREAM_CLOSED)));
    // The other direction still works, long after.
    let answer = pattern(1, 3 * WINDOW);
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < answer.len() {
        sent += write(&mut pair.server, id, &answer[sent..]);
        pair.pump().unwrap();
        let (octets, end) = read_all(&mut pair.client, id);
        assert_eq!(end, Poll::Pending);
        got.extend(octets);
    }
    assert!(got == answer);
    pair.server.finish(id);
    pair.pump().unwrap();
    assert_eq!(read_all(&mut pair.client, id), (vec![], Poll::Ready(Ok(()))));
    assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
    pair.client.release(id);
    pair.server.release(id);
    assert!(pair.client.streams.is_empty() && pair.server.streams.is_empty());
    assert!(output(&mut pair.client).is_empty() && output(&mut pair.server).is_empty());
}

#[test]
fn reset_from_each_side_reaches_the_other() {
    for by_client in [true, false] {
        let mut pair = Pair::new();
        let id = pair.open();
        write(&mut pair.client, id, b"lost");
        write(&mut pair.server, id, b"lost");
        pair.pump().unwrap();
        let Pair { client, server, .. } = &mut pair;
        let (near, far) = if by_client { (client, server) } else { (server, client) };
        events(far);
        near.reset(id, Reason::CONNECT_ERROR);
        assert_eq!(near.write(id, b"x"), Poll::Ready(Err(Reason::CONNECT_ERROR)));
        far.receive(&output(near), Duration::ZERO).unwrap();
        assert_eq!(events(far), [Event::Reset(id, Reason::CONNECT_ERROR)]);
        assert_eq!(read_all(far, id), (vec![], Poll::Ready(Err(Reason::CONNECT_ERROR))));
        assert_eq!(far.write(id, b"x"), Poll::Ready(Err(Reason::CONNECT_ERROR)));
        near.release(id);
        far.release(id);
        assert!(near.streams.is_empty() && far.streams.is_empty());
    }
}

#[test]
fn letting_go_of_an_unfinished_stream_resets_it() {
    let mut pair = Pair::new();
    let id = pair.open();
    write(&mut pair.client, id, b"half a");
    pair.client.release(id);
    pair.pump().unwrap();
    let events = events(&mut pair.server);
    assert!(events.contains(&Event::Reset(id, Reason::CANCEL)), "{events:?}");
}

#[test]
fn what_was_finished_is_delivered_after_letting_go() {
    let mut pair = Pair::new();
    let id = pair.open();
    let sent = pattern(2, 60_000);
    assert_eq!(write(&mut pair.server, id, &sent), sent.len());
    pair.server.finish(id);
    pair.server.release(id);
    pair.pump().unwrap();
    // The end and the reset that follows it do not take away what came before.
    let (got, end) = read_all(&mut pair.client, id);
    assert_eq!((got.len(), end), (sent.len(), Poll::Ready(Ok(()))));
    assert!(got == sent);
    assert_eq!(pair.client.write(id, b"x"), Poll::Ready(Err(Reason::NO_ERROR)));
    assert_eq!(pair.server.open_streams(), 0);
}

#[test]
fn sixty_readers_that_do_not_read_hold_nobody() {
    let mut pair = Pair::new();
    let stalled: Vec<_> = (0..60).map(|_| pair.open()).collect();
    let octets = pattern(3, SEND_BUFFER);
    // Far more than the 64 KiB that a connection's window is by default, many times over.
    for _ in 0..10 {
        for id in &stalled {
            write(&mut pair.client, *id, &octets);
        }
        pair.pump().unwrap();
    }
    for id in &stalled {
        let held = pair.server.streams[&id.0].recv.len();
        assert_eq!(held, WINDOW, "bounded by the stream's window, and filled");
        assert_eq!(pair.client.unsent(*id), SEND_BUFFER);
    }
    events(&mut pair.server);
    events(&mut pair.client);
    let id = pair.open();
    for n in 0..100 {
        let ping = pattern(n, 50_000);
        assert_eq!(write(&mut pair.client, id, &ping), ping.len());
        pair.pump().unwrap();
        assert!(read_all(&mut pair.server, id).0 == ping);
    }
}

#[test]
fn streams_take_turns_frame_by_frame() {
    let mut pair = Pair::new();
    let ids: Vec<_> = (0..3).map(|_| pair.open()).collect();
    for id in &ids {
        write(&mut pair.client, *id, &pattern(4, 3 * MAX_DATA));
    }
    let sent = frames(&output(&mut pair.client));
    assert!(
        sent.iter().all(|(kind, _, _, payload)| *kind == Kind::Data && payload.len() == MAX_DATA)
    );
    let order: Vec<u32> = sent.iter().map(|(_, _, stream, _)| *stream).collect();
    assert_eq!(order, [1, 3, 5, 1, 3, 5, 1, 3, 5]);
}

#[test]
fn a_full_buffer_wakes_its_writer_once_there_is_room() {
    let mut pair = Pair::new();
    let id = pair.open();
    assert_eq!(write(&mut pair.client, id, &pattern(5, 2 * SEND_BUFFER)), SEND_BUFFER);
    assert_eq!(pair.client.write(id, b"x"), Poll::Pending);
    assert!(events(&mut pair.client).is_empty());
    pair.pump().unwrap();
    assert!(events(&mut pair.client).is_empty(), "the window is full, more than half waits");
    assert_eq!(read_all(&mut pair.server, id).0.len(), WINDOW);
    pair.pump().unwrap();
    assert_eq!(events(&mut pair.client), [Event::Writable(id)]);
}

#[test]
fn optimistic_data_follows_the_request_at_once() {
    let mut pair = Pair::new();
    let id = pair.client.open(&head()).unwrap();
    write(&mut pair.client, id, b"early");
    pair.server.receive(&output(&mut pair.client), Duration::ZERO).unwrap();
    let request = Event::Request { stream: id, head: head() };
    assert_eq!(events(&mut pair.server), [request, Event::Readable(id)]);
    assert_eq!(read_all(&mut pair.server, id).0, b"early");
    pair.server.respond(id, 503, true);
    pair.server.release(id);
    pair.pump().unwrap();
    let response = Event::Response { stream: id, status: 503 };
    let reset = Event::Reset(id, Reason::NO_ERROR);
    assert_eq!(events(&mut pair.client), [response, Event::Readable(id), reset]);
    assert!(pair.server.streams.is_empty());
}

#[test]
fn the_peers_limit_of_streams_is_kept() {
    let mut pair = Pair::new();
    let ids: Vec<_> = (0..MAX_STREAMS).map(|_| pair.open()).collect();
    assert_eq!(pair.client.open(&head()), Err(OpenError::Full));
    pair.client.reset(ids[7], Reason::CANCEL);
    pair.client.release(ids[7]);
    assert!(pair.client.can_open().is_ok());
    let mut fresh = Wire::new(Role::Client, Quota::unlimited());
    for _ in 0..100 {
        fresh.open(&head()).unwrap();
    }
    assert_eq!(fresh.open(&head()), Err(OpenError::Full), "before SETTINGS");
}

#[test]
fn a_draining_server_takes_what_was_on_its_way() {
    let mut pair = Pair::new();
    let old = pair.open();
    pair.server.drain();
    let announced = output(&mut pair.server);
    // Opened before the announcement arrives.
    let late = pair.client.open(&head()).unwrap();
    pair.server.receive(&output(&mut pair.client), Duration::ZERO).unwrap();
    pair.client.receive(&announced, Duration::ZERO).unwrap();
    assert_eq!(events(&mut pair.client), [Event::GoAway(Reason::NO_ERROR)]);
    assert_eq!(pair.client.open(&head()), Err(OpenError::GoingAway));
    pair.pump().unwrap();
    assert_eq!(events(&mut pair.server), [Event::Request { stream: late, head: head() }]);
    assert!(!pair.client.is_finished() && !pair.server.is_finished());
    for id in [old, late] {
        pair.server.respond(id, 200, false);
        pair.client.finish(id);
        pair.server.finish(id);
    }
    pair.pump().unwrap();
    assert!(pair.client.is_finished() && pair.server.is_finished());
}

#[test]
fn streams_above_the_last_one_of_goaway_are_refused() {
    let mut pair = Pair::new();
    let kept = pair.open();
    let refused = pair.client.open(&head()).unwrap();
    let mut goaway = Vec::new();
    super::super::control::put_goaway(&mut goaway, kept.0, Reason::NO_ERROR);
    pair.client.receive(&goaway, Duration::ZERO).unwrap();
    let expected = [Event::Reset(refused, Reason::REFUSED_STREAM), Event::GoAway(Reason::NO_ERROR)];
    assert_eq!(events(&mut pair.client), expected);
    assert_eq!(pair.client.open_streams(), 1);
}

#[test]
fn pings_are_answered() {
    let mut pair = Pair::new();
    pair.client.ping();
    pair.pump().unwrap();
    assert_eq!(events(&mut pair.client), [Event::Pong]);
    assert!(events(&mut pair.server).is_empty());
}

/// What a server saw, independent of how the input was cut.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    events: Vec<Event>,
    octets: Vec<(u32, Vec<u8>)>,
    output: Vec<u8>,
    failed: bool,
}

fn observe(input: &[u8], cuts: &[usize]) -> Seen {
    let mut wire = Wire::new(Role::Server, Quota::unlimited());
    let mut seen = Seen::default();
    let mut ids = Vec::new();
    let mut rest = input;
    let mut cuts = cuts.iter().copied().cycle();
    while !rest.is_empty() && !seen.failed {
        let (part, later) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
        rest = later;
        seen.failed = wire.receive(part, Duration::ZERO).is_err();
        for event in events(&mut wire) {
            if let Event::Request { stream, .. } = &event {
                ids.push(*stream);
            }
            // How many times a reader is told depends on when it reads; all else does not.
            if !matches!(event, Event::Readable(_)) {
                seen.events.push(event);
            }
        }
    }
    // Control frames only: no stream's window is given back before it is read.
    seen.output = output(&mut wire);
    for id in ids {
        seen.octets.push((id.0, read_all(&mut wire, id).0));
    }
    seen
}

/// A client's side of a conversation, with some of everything in it.
fn conversation(actions: &[(u8, usize)]) -> Vec<u8> {
    let mut client = Wire::new(Role::Client, Quota::unlimited());
    let mut octets = output(&mut client);
    octets.extend(super::super::testing::frame(Kind::Settings, 1, 0, &[]));
    let settings = super::super::testing::frame(Kind::Settings, 0, 0, &[0, 4, 0, 1, 0, 0]);
    client.receive(&settings, Duration::ZERO).unwrap();
    let mut ids: Vec<StreamId> = Vec::new();
    for (action, value) in actions {
        let id = ids.get(value % ids.len().max(1)).copied();
        match (action % 6, id) {
            (0, _) | (_, None) => ids.extend(client.open(&head()).ok()),
            (1 | 2, Some(id)) => {
                let _ = client.write(id, &pattern(*value, value * 37 % 40_000));
            }
            (3, Some(id)) => client.finish(id),
            (4, Some(id)) => client.reset(id, Reason::CANCEL),
            (_, Some(_)) => client.ping(),
        }
        octets.extend(output(&mut client));
    }
    octets
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a valid conversation is cut, the same things are seen.
    #[test]
    fn cuts_do_not_matter(
        actions in prop::collection::vec((any::<u8>(), 0..2000_usize), 0..40),
        cuts in prop::collection::vec(1..400_usize, 1..20),
    ) {
        let input = conversation(&actions);
        let whole = observe(&input, &[usize::MAX]);
        prop_assert!(!whole.failed);
        prop_assert_eq!(&whole, &observe(&input, &cuts));
        prop_assert_eq!(&whole, &observe(&input, &[1]));
    }

    /// However a damaged conversation is cut, it fails alike; it never panics.
    #[test]
    fn damage_is_found_alike(
        actions in prop::collection::vec((any::<u8>(), 0..2000_usize), 1..20),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cuts in prop::collection::vec(1..400_usize, 1..20),
    ) {
        let mut input = conversation(&actions);
        for (index, value) in damage {
            let at = index.index(input.len());
            input[at] = value;
        }
        prop_assert_eq!(observe(&input, &[usize::MAX]), observe(&input, &cuts));
    }
}
