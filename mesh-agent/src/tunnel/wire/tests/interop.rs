//! The `h2` crate as peer, in both directions, over a duplex in memory.

use std::collections::HashMap;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::{JoinSet, LocalSet};

use super::super::frame::Reason;
use super::super::limits::SEND_BUFFER;
use super::super::testing::{head, output, pattern};
use super::super::{Event, Quota, Role, StreamId, Wire};

/// Larger than all that is under way in a test: the loops below write without reading.
const DUPLEX: usize = 256 << 20;

/// Authorities on this port are never read by our server.
const STALLED_PORT: &str = ":1";

/// Drives our end until the peer closes or `app` says that it is done.
async fn drive(
    mut wire: Wire,
    mut io: DuplexStream,
    mut app: impl FnMut(&mut Wire, Option<Event>) -> bool,
) -> Wire {
    let mut buffer = vec![0; 64 * 1024];
    app(&mut wire, None);
    let mut done = false;
    loop {
        let out = output(&mut wire);
        io.write_all(&out).await.unwrap();
        while let Some(event) = wire.next_event() {
            done |= app(&mut wire, Some(event));
        }
        if wire.wants_write() {
            continue;
        }
        if done {
            return wire;
        }
        match io.read(&mut buffer).await.unwrap() {
            0 => return wire,
            read => wire.receive(&buffer[..read], Duration::ZERO).unwrap(),
        }
        while let Some(event) = wire.next_event() {
            done |= app(&mut wire, Some(event));
        }
    }
}

/// Moves what came back out, as far as there is room.
fn echo(wire: &mut Wire, id: StreamId) {
    let mut buffer = vec![0; SEND_BUFFER];
    loop {
        let room = SEND_BUFFER - wire.unsent(id);
        if room == 0 {
            assert_eq!(wire.write(id, b"?"), Poll::Pending);
            return;
        }
        match wire.read(id, &mut buffer[..room]) {
            Poll::Ready(Ok(0)) => return wire.finish(id),
            Poll::Ready(Ok(read)) => {
                assert_eq!(wire.write(id, &buffer[..read]), Poll::Ready(Ok(read)));
            }
            Poll::Ready(Err(_)) => return wire.release(id),
            Poll::Pending => return,
        }
    }
}

/// Our server: echoes, except on [`STALLED_PORT`], and resets what asks for port 2.
fn echo_app(seen: &mut Vec<Event>) -> impl FnMut(&mut Wire, Option<Event>) -> bool {
    let mut stalled = Vec::new();
    move |wire, event| {
        let Some(event) = event else { return false };
        match &event {
            Event::Request { stream, head } => {
                wire.respond(*stream, 200, false);
                if head.authority.ends_with(STALLED_PORT) {
                    stalled.push(*stream);
                } else if head.authority.ends_with(":2") {
                    wire.reset(*stream, Reason::CONNECT_ERROR);
                }
            }
            Event::Readable(id) | Event::Writable(id) if !stalled.contains(id) => echo(wire, *id),
            _ => {}
        }
        seen.push(event);
        false
    }
}

async fn h2_client(io: DuplexStream, tasks: &mut JoinSet<()>) -> h2::client::SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(io).await.unwrap();
    tasks.spawn_local(async move {
        // Ends with an error where our end is dropped first.
        let _ = connection.await;
    });
    client.ready().await.unwrap()
}

/// Opens a stream with the `h2` crate.
async fn h2_connect(
    client: &h2::client::SendRequest<Bytes>,
    authority: &str,
) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    let mut client = client.clone().ready().await.unwrap();
    let request = http::Request::connect(authority).header("baggage", "a=b").body(()).unwrap();
    let (answer, send) = client.send_request(request, false).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    (send, answer.into_body())
}

async fn h2_send(send: &mut h2::SendStream<Bytes>, mut octets: Bytes) {
    while !octets.is_empty() {
        send.reserve_capacity(octets.len());
        let granted = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(octets.split_to(granted.min(octets.len())), false).unwrap();
    }
}

async fn h2_read(recv: &mut h2::RecvStream, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        let Some(octets) = recv.data().await else { break };
        let octets = octets.unwrap();
        recv.flow_control().release_capacity(octets.len()).unwrap();
        got.extend_from_slice(&octets);
    }
    got
}

async fn h2_round_trip(client: h2::client::SendRequest<Bytes>, seed: usize, len: usize) {
    let (mut send, mut recv) = h2_connect(&client, "10.0.0.1:80").await;
    let sent = pattern(seed, len);
    let octets = Bytes::from(sent.clone());
    let (got, ()) = tokio::join!(h2_read(&mut recv, usize::MAX), async {
        h2_send(&mut send, octets).await;
        send.send_data(Bytes::new(), true).unwrap();
    });
    assert!(got == sent, "stream {seed}: {} of {len}", got.len());
}

#[tokio::test]
async fn h2_client_to_our_server() {
    let run = async {
        let (near, far) = tokio::io::duplex(DUPLEX);
        let mut seen = Vec::new();
        let server = drive(Wire::new(Role::Server, Quota::unlimited()), far, echo_app(&mut seen));
        let client = async {
            let mut tasks = JoinSet::new();
            let client = h2_client(near, &mut tasks).await;
            let mut transfers = JoinSet::new();
            for n in 0..50 {
                transfers.spawn_local(h2_round_trip(client.clone(), n, 300_000 + 1_001 * n));
            }
            transfers.join_all().await;
        };
        let (wire, ()) = tokio::join!(server, client);
        assert_eq!(wire.open_streams(), 0);
        let baggage = |event: &Event| {
            matches!(event, Event::Request { head, .. }
            if head.baggage.as_deref() == Some("a=b"))
        };
        assert_eq!(seen.iter().filter(|event| baggage(event)).count(), 50);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn resets_between_h2_client_and_our_server() {
    let run = async {
        let (near, far) = tokio::io::duplex(DUPLEX);
        let mut seen = Vec::new();
        let server = drive(Wire::new(Role::Server, Quota::unlimited()), far, echo_app(&mut seen));
        let client = async {
            let mut tasks = JoinSet::new();
            let client = h2_client(near, &mut tasks).await;
            let (mut send, mut recv) = h2_connect(&client, "10.0.0.1:80").await;
            h2_send(&mut send, Bytes::from_static(b"ping")).await;
            assert_eq!(h2_read(&mut recv, 4).await, b"ping");
            send.send_reset(h2::Reason::CONNECT_ERROR);
            let (_send, mut recv) = h2_connect(&client, "10.0.0.1:2").await;
            let error = recv.data().await.unwrap().unwrap_err();
            assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
        };
        tokio::join!(server, client);
        assert!(seen.contains(&Event::Reset(StreamId(1), Reason::CONNECT_ERROR)), "{seen:?}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn sixty_stalled_streams_of_an_h2_client_hold_nobody() {
    let run = async {
        let (near, far) = tokio::io::duplex(DUPLEX);
        let mut seen = Vec::new();
        let server = drive(Wire::new(Role::Server, Quota::unlimited()), far, echo_app(&mut seen));
        let client = async {
            let mut tasks = JoinSet::new();
            let client = h2_client(near, &mut tasks).await;
            let mut stalled = JoinSet::new();
            for n in 0..60 {
                let client = client.clone();
                stalled.spawn_local(async move {
                    let (mut send, _recv) = h2_connect(&client, "10.0.0.1:1").await;
                    h2_send(&mut send, pattern(n, 2 << 20).into()).await;
                });
            }
            h2_round_trip(client.clone(), 99, 5 << 20).await;
            assert_eq!(stalled.len(), 60);
            assert!(stalled.try_join_next().is_none(), "none of them could finish");
        };
        let (wire, ()) = tokio::join!(server, client);
        let held: Vec<usize> = wire.streams.values().map(|stream| stream.recv.len()).collect();
        assert!(held.iter().all(|held| *held <= 256 * 1024), "{held:?}");
    };
    LocalSet::new().run_until(run).await;
}

/// An echo server of the `h2` crate.
async fn h2_server(io: DuplexStream) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    let mut tasks = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let Ok((request, mut respond)) = accepted else { return };
        assert_eq!(request.method(), "CONNECT");
        assert_eq!(request.uri().authority().unwrap(), "10.1.2.3:8080");
        assert_eq!(request.headers()["baggage"], "k8s.namespace.name=shop");
        tasks.spawn_local(async move {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            let mut recv = request.into_body();
            while let Some(octets) = recv.data().await {
                let Ok(octets) = octets else { return };
                recv.flow_control().release_capacity(octets.len()).unwrap();
                h2_send(&mut send, octets).await;
            }
            send.send_data(Bytes::new(), true).unwrap();
        });
    }
}

/// One transfer of our client's.
struct Transfer {
    octets: Vec<u8>,
    sent: usize,
    got: Vec<u8>,
}

impl Transfer {
    fn write(&mut self, wire: &mut Wire, id: StreamId) {
        while self.sent < self.octets.len() {
            match wire.write(id, &self.octets[self.sent..]) {
                Poll::Ready(Ok(taken)) => self.sent += taken,
                Poll::Pending => return,
                Poll::Ready(Err(reason)) => panic!("{reason}"),
            }
        }
        wire.finish(id);
    }

    /// True once the whole echo has come.
    fn read(&mut self, wire: &mut Wire, id: StreamId) -> bool {
        let (octets, end) = super::super::testing::read_all(wire, id);
        self.got.extend(octets);
        match end {
            Poll::Pending => false,
            Poll::Ready(end) => {
                end.unwrap();
                assert!(self.got == self.octets, "{id:?}: {}", self.got.len());
                wire.release(id);
                true
            }
        }
    }
}

#[tokio::test]
async fn our_client_to_h2_server() {
    let run = async {
        let (near, far) = tokio::io::duplex(DUPLEX);
        let mut transfers: HashMap<StreamId, Transfer> = HashMap::new();
        let client = drive(Wire::new(Role::Client, Quota::unlimited()), near, |wire, event| {
            match event {
                None => {
                    for n in 0..50 {
                        let id = wire.open(&head()).unwrap();
                        let octets = pattern(n, 300_000 + 1_001 * n);
                        transfers.insert(id, Transfer { octets, sent: 0, got: Vec::new() });
                    }
                }
                Some(Event::Response { stream, status }) => {
                    assert_eq!(status, 200);
                    transfers.get_mut(&stream).unwrap().write(wire, stream);
                }
                Some(Event::Writable(id)) => {
                    transfers.get_mut(&id).into_iter().for_each(|t| t.write(wire, id));
                }
                Some(Event::Readable(id)) => {
                    if transfers.get_mut(&id).is_some_and(|t| t.read(wire, id)) {
                        transfers.remove(&id);
                    }
                }
                Some(Event::Reset(id, reason)) => panic!("{id:?} {reason}"),
                Some(Event::Settings | Event::GoAway(_) | Event::Pong | Event::Request { .. }) => {}
            }
            transfers.is_empty()
        });
        let server = tokio::task::spawn_local(h2_server(far));
        let wire = client.await;
        assert_eq!(wire.open_streams(), 0);
        assert!(wire.streams.is_empty());
        server.await.unwrap();
    };
    LocalSet::new().run_until(run).await;
}
