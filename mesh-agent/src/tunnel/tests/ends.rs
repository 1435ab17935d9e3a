//! Our client against our server.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinSet, LocalSet};

use super::super::client::HANDSHAKE_TIMEOUT;
use super::super::connection::{IDLE_TICKS, TICK};
use super::super::wire::limits::{MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use super::*;

async fn echo(incoming: Incoming) {
    let (mut read, mut write) = tokio::io::split(incoming.accept());
    // A reset ends the copy with an error, and the stream with it.
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        write.shutdown().await.unwrap();
    }
}

async fn round_trip(stream: TunnelStream, seed: usize, len: usize) {
    let sent = pattern(seed, len);
    let (mut read, mut write) = tokio::io::split(stream);
    let mut got = Vec::new();
    let (read, written) = tokio::join!(read.read_to_end(&mut got), async {
        write.write_all(&sent).await?;
        write.shutdown().await
    });
    written.unwrap();
    assert_eq!(read.unwrap(), len);
    assert!(got == sent, "stream {seed}");
}

#[tokio::test]
async fn fifty_streams_share_one_handshake() {
    let run = async {
        let mesh = Rc::new(Mesh::new(echo).await);
        let tls = mesh.ca.client(&id("client"));
        let mut transfers = JoinSet::new();
        for n in 0..50 {
            let (mesh, tls) = (Rc::clone(&mesh), tls.clone());
            transfers.spawn_local(async move {
                let stream = mesh.connect(&tls).await.unwrap();
                round_trip(stream, n, (1 << 20) + 1_001 * n).await;
            });
        }
        transfers.join_all().await;
        assert_eq!(mesh.dials.get(), 1);
        assert_eq!(mesh.pool.counts(), (1, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn what_the_source_says_arrives() {
    let run = async {
        let mesh = Mesh::new(|incoming| async move {
            let said = format!(
                "{} {} {:?} {:?}",
                incoming.peer, incoming.authority, incoming.baggage, incoming.traceparent
            );
            let mut stream = incoming.accept();
            stream.write_all(said.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
        let mut stream = mesh.connect(&mesh.ca.client(&id("client"))).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        let expected = "spiffe://cluster.local/ns/shop/sa/client 127.0.0.1:8080 \
                        Some(\"k8s.pod.name=a\") None";
        assert_eq!(said, expected);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn half_close_both_ways() {
    let run = async {
        // Answers after the client's end only, and the other way round on the second stream.
        let mesh = Mesh::new(|incoming| async move {
            let mut stream = incoming.accept();
            stream.write_all(b"first").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).await.unwrap();
            assert_eq!(heard, "after your end");
        })
        .await;
        let mut stream = mesh.connect(&mesh.ca.client(&id("client"))).await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "first");
        stream.write_all(b"after your end").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(
            stream.write(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe,
            "after shutdown"
        );
        drop(stream);
        eventually("the stream's end", || mesh.pool.counts() == (1, 0)).await;

        let mesh = Mesh::new(|incoming| async move {
            let mut stream = incoming.accept();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            stream.write_all(&heard).await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .await;
        let stream = mesh.connect(&mesh.ca.client(&id("client"))).await.unwrap();
        round_trip(stream, 3, SEND_BUFFER * 5).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn resets_both_ways() {
    let run = async {
        let seen = Rc::new(RefCell::new(None));
        let seen_by_server = Rc::clone(&seen);
        let mesh = Mesh::new(move |incoming| {
            let seen = Rc::clone(&seen_by_server);
            async move {
                let by_server = incoming.authority.port() == 1;
                let mut stream = incoming.accept();
                if by_server {
                    stream.write_all(b"lost").await.unwrap();
                    return stream.reset();
                }
                let error = stream.read_u8().await.unwrap_err();
                let write = stream.write(b"x").await.unwrap_err();
                seen.replace(Some((error.kind(), write.kind())));
            }
        })
        .await;
        let tls = mesh.ca.client(&id("client"));
        let mut stream = mesh.connect(&tls).await.unwrap();
        stream.reset();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let reset = io::ErrorKind::ConnectionReset;
        eventually("the server's reset", || *seen.borrow() == Some((reset, reset))).await;
        seen.replace(None);
        // A stream that is dropped without shutdown is reset too.
        drop(mesh.connect(&tls).await.unwrap());
        eventually("the second reset", || *seen.borrow() == Some((reset, reset))).await;

        let head = ConnectHead { authority: "127.0.0.1:1".into(), ..mesh.head() };
        let stream = mesh.pool.connect(&mesh.key(), &head, &tls, mesh.dial()).await;
        let error = stream.unwrap().read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), reset);
        assert_eq!(mesh.dials.get(), 1, "none of it cost the connection");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_far_writer() {
    let run = async {
        let written = Rc::new(Cell::new(0));
        let counter = Rc::clone(&written);
        let mesh = Mesh::new(move |incoming| {
            let written = Rc::clone(&counter);
            async move {
                let mut stream = incoming.accept();
                let octets = pattern(1, 8 << 20);
                while written.get() < octets.len() {
                    written
                        .set(written.get() + stream.write(&octets[written.get()..]).await.unwrap());
                }
                stream.shutdown().await.unwrap();
            }
        })
        .await;
        let mut stream = mesh.connect(&mesh.ca.client(&id("client"))).await.unwrap();
        let bound = STREAM_WINDOW as usize + SEND_BUFFER;
        eventually("the writer fills its buffer", || written.get() >= SEND_BUFFER).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(written.get() <= bound, "{} bytes", written.get());
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert!(got == pattern(1, 8 << 20));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn sixty_stalled_streams_and_a_ping() {
    let run = async {
        let mesh = Mesh::new(|incoming| async move {
            if incoming.authority.port() == 1 {
                let _held = incoming.accept();
                std::future::pending::<()>().await;
            } else {
                echo(incoming).await;
            }
        })
        .await;
        let tls = mesh.ca.client(&id("client"));
        let head = ConnectHead { authority: "127.0.0.1:1".into(), ..mesh.head() };
        let mut stalled = JoinSet::new();
        for n in 0..60 {
            let stream = mesh.pool.connect(&mesh.key(), &head, &tls, mesh.dial()).await;
            let mut stream = stream.unwrap();
            stalled.spawn_local(async move {
                stream.write_all(&pattern(n, 4 << 20)).await.unwrap();
            });
        }
        let mut ping = mesh.connect(&tls).await.unwrap();
        for n in 0..200 {
            let sent = pattern(n, 1000);
            let mut got = vec![0; sent.len()];
            ping.write_all(&sent).await.unwrap();
            ping.read_exact(&mut got).await.unwrap();
            assert!(got == sent);
        }
        assert!(stalled.try_join_next().is_none(), "none of them could finish");
        assert_eq!(mesh.dials.get(), 1, "all on one connection");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn wrong_identities_are_refused() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        // A valid certificate, but of another service account than expected.
        let key = PoolKey { destination: id("other"), ..mesh.key() };
        let error = mesh.pool.connect(&key, &mesh.head(), &tls, mesh.dial()).await.unwrap_err();
        let TunnelError::Identity { expected, got } = &error else { panic!("{error}") };
        assert_eq!((expected, got.as_ref()), (&id("other"), Some(&id("server"))));
        // A client that another authority vouches for: the server's alert comes after the
        // client's own handshake, so it ends the connection.
        let stranger = Ca::new();
        let mut foreign = stranger.client(&id("client"));
        let trusting = mesh.ca.client(&id("client"));
        let chain = stranger.issue(&id("client"));
        let config =
            ClientConfig::builder_with_provider(Arc::clone(trusting.config.crypto_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(mesh.ca.roots())
                .with_client_auth_cert(chain.0, chain.1)
                .unwrap();
        foreign.config = Arc::new(config);
        let key = PoolKey { source: id("foreign"), ..mesh.key() };
        let error = mesh.pool.connect(&key, &mesh.head(), &foreign, mesh.dial()).await.unwrap_err();
        assert!(matches!(error, TunnelError::Closed(_) | TunnelError::Handshake(_)), "{error}");
        eventually("the server's refusal", || {
            let served = mesh.served.borrow();
            served.iter().any(|ended| matches!(ended, Err(TunnelError::Handshake(_))))
        })
        .await;
        assert_eq!(mesh.pool.counts(), (0, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn refusals_carry_their_status() {
    let run = async {
        let mesh = Mesh::new(|incoming| async move { incoming.refuse(503) }).await;
        let tls = mesh.ca.client(&id("client"));
        let error = mesh.connect(&tls).await.unwrap_err();
        assert!(matches!(error, TunnelError::Refused(503)), "{error}");
        let head = ConnectHead { authority: "127.0.0.2:80".into(), ..mesh.head() };
        let error = mesh.pool.connect(&mesh.key(), &head, &tls, mesh.dial()).await.unwrap_err();
        assert!(matches!(error, TunnelError::Refused(400)), "another pod's address: {error}");
        assert_eq!((mesh.dials.get(), mesh.pool.counts()), (1, (1, 0)));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn what_is_written_early_arrives() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let (key, head) = (mesh.key(), mesh.head());
        let stream = mesh.pool.connect_optimistic(&key, &head, &tls, mesh.dial()).await;
        round_trip(stream.unwrap(), 1, 300_000).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn keys_do_not_share_connections_and_limits_open_more() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let mut held = Vec::new();
        for _ in 0..=MAX_STREAMS {
            held.push(mesh.connect(&tls).await.unwrap());
        }
        assert_eq!(mesh.pool.counts(), (2, held.len()), "one more than a connection takes");
        let key = PoolKey { source_uid: "uid-b".into(), ..mesh.key() };
        held.push(mesh.pool.connect(&key, &mesh.head(), &tls, mesh.dial()).await.unwrap());
        assert_eq!(mesh.pool.counts(), (3, held.len()));
        assert_eq!(mesh.dials.get(), 3);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn everybody_who_waits_hears_of_the_failure() {
    let run = async {
        let mesh = Rc::new(Mesh::new(echo).await);
        let tls = mesh.ca.client(&id("client"));
        let dials = Rc::new(Cell::new(0));
        let mut waiting = JoinSet::new();
        for _ in 0..20 {
            let (mesh, tls, dials) = (Rc::clone(&mesh), tls.clone(), Rc::clone(&dials));
            waiting.spawn_local(async move {
                let dial = async || {
                    dials.set(dials.get() + 1);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                };
                let connected = mesh.pool.connect(&mesh.key(), &mesh.head(), &tls, dial).await;
                assert!(matches!(connected.unwrap_err(), TunnelError::Dial(_)));
            });
        }
        waiting.join_all().await;
        assert_eq!(dials.get(), 1);
        // One who gives up leaves it to the next.
        let slow = async || std::future::pending().await;
        let (key, head) = (mesh.key(), mesh.head());
        let first = mesh.pool.connect(&key, &head, &tls, slow);
        let gave_up = tokio::time::timeout(Duration::from_millis(20), first);
        let (gave_up, second) = tokio::join!(gave_up, mesh.connect(&tls));
        assert!(gave_up.is_err());
        round_trip(second.unwrap(), 1, 1000).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_lost_connection_resets_its_streams_and_is_replaced() {
    let run = async {
        // Counts: the first stream's connection is cut below the tunnel, by a relay that stops.
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let relay = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let relay_address = relay.local_addr().unwrap();
        let cut = CancellationToken::new();
        let (target, cut_by_relay) = (mesh.address, cut.clone());
        mesh.tracker.spawn_local(async move {
            let (mut near, _) = relay.accept().await.unwrap();
            let mut far = TcpStream::connect(target).await.unwrap();
            let copy = tokio::io::copy_bidirectional(&mut near, &mut far);
            cut_by_relay.run_until_cancelled(copy).await;
        });
        let first = async || dial_to(relay_address).await;
        let stream = mesh.pool.connect(&mesh.key(), &mesh.head(), &tls, first).await;
        let mut stream = stream.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).await.unwrap();
        cut.cancel();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(stream.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        round_trip(mesh.connect(&tls).await.unwrap(), 1, 1000).await;
        assert_eq!((mesh.dials.get(), mesh.pool.counts()), (1, (1, 0)));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_draining_server_lets_streams_finish_and_new_ones_go_elsewhere() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let old = mesh.connect(&tls).await.unwrap();
        assert!(!old.retired().is_cancelled());
        mesh.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), old.retired().cancelled())
            .await
            .expect("its user is told");
        assert!(mesh.served.borrow().is_empty(), "it has a stream");
        round_trip(old, 1, 500_000).await;
        eventually("the end", || matches!(mesh.served.borrow().as_slice(), [Ok(())])).await;
        eventually("its removal", || mesh.pool.counts() == (0, 0)).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_retired_connection_takes_no_new_streams() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let old = mesh.connect(&tls).await.unwrap();
        mesh.pool.retire(|key| key.source == id("client"));
        assert!(old.retired().is_cancelled());
        let new = mesh.connect(&tls).await.unwrap();
        assert_eq!(mesh.dials.get(), 2);
        round_trip(old, 1, 100_000).await;
        round_trip(new, 2, 100_000).await;
        eventually("the old one's end", || mesh.pool.counts() == (1, 0)).await;
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn idle_connections_are_closed_and_live_ones_are_asked() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        let mut stream = mesh.connect(&tls).await.unwrap();
        tokio::time::pause();
        // With a stream on it the connection stays, and PING shows that the peer lives.
        for _ in 0..3 * IDLE_TICKS {
            pass(TICK).await;
        }
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        drop(stream);
        for _ in 0..IDLE_TICKS {
            assert_eq!(mesh.pool.counts().0, 1);
            pass(TICK).await;
        }
        assert_eq!(mesh.pool.counts(), (0, 0));
        assert!(matches!(mesh.served.borrow().as_slice(), [Ok(())]));
    };
    LocalSet::new().run_until(run).await;
}

/// Lets paused time pass: a moment more than `time`, as timers are rounded up.
async fn pass(time: Duration) {
    tokio::time::advance(time + Duration::from_millis(2)).await;
    settle().await;
}

/// Lets sockets carry what they have, while time stands still.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_dead_peer_is_noticed() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let tls = mesh.ca.client(&id("client"));
        // Between the two: a relay that stops carrying, but keeps both connections open.
        let relay = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let relay_address = relay.local_addr().unwrap();
        let freeze = CancellationToken::new();
        let (target, frozen) = (mesh.address, freeze.clone());
        mesh.tracker.spawn_local(async move {
            let (mut near, _) = relay.accept().await.unwrap();
            let mut far = TcpStream::connect(target).await.unwrap();
            let copy = tokio::io::copy_bidirectional(&mut near, &mut far);
            frozen.run_until_cancelled(copy).await;
            std::future::pending::<()>().await;
        });
        let dial = async || dial_to(relay_address).await;
        let stream = mesh.pool.connect(&mesh.key(), &mesh.head(), &tls, dial).await;
        let mut stream = stream.unwrap();
        freeze.cancel();
        settle().await;
        tokio::time::pause();
        for _ in 0..3 {
            pass(TICK).await;
        }
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(mesh.pool.counts(), (0, 0));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_peer_that_does_not_shake_hands_is_dropped() {
    let run = async {
        let mesh = Mesh::new(echo).await;
        let _silent = TcpStream::connect(mesh.address).await.unwrap();
        settle().await;
        tokio::time::pause();
        pass(HANDSHAKE_TIMEOUT).await;
        tokio::time::resume();
        let served = |n: usize| mesh.served.borrow().get(n).cloned();
        assert!(matches!(served(0), Some(Err(TunnelError::HandshakeTimeout))));
        let mut plain = TcpStream::connect(mesh.address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        eventually("the refusal of plaintext", || served(1).is_some()).await;
        assert!(matches!(served(1), Some(Err(TunnelError::Handshake(_)))));
    };
    LocalSet::new().run_until(run).await;
}
