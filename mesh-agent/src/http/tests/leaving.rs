//! HTTP/1 clients that go away in the middle: noticed at once, and nobody's failure.

use std::time::Duration;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{
    ConnectionPool, Forward, LoadBalancer, OutlierDetection, Protocol, TrafficPolicy,
};
use crate::tunnel::{Budget, Usage};

const HOST: &str = "web.shop.svc.cluster.local";
const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// One endpoint, at A, that is left out after one failure, and may have one request at a time.
fn mesh(protocol: Protocol, timeout: Option<Duration>) -> World {
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), vec![endpoint(A, "v1")]);
    let outlier = OutlierDetection { consecutive_5xx: 1, ..OutlierDetection::default() };
    let pool = ConnectionPool { max_requests: 1, ..ConnectionPool::default() };
    let mut destination = rule(HOST, &[], LoadBalancer::RoundRobin);
    destination.policy =
        TrafficPolicy { outlier: Some(Arc::new(outlier)), pool, ..TrafficPolicy::default() };
    let routes = forwarding(Forward { timeout, ..forward(&[("web", None, 1)]) });
    let routes = virtual_service("web", &[HOST], vec![routes]);
    World::new(snapshot(&[client()], vec![web], vec![routes], vec![destination]))
}

/// An endpoint that answers 504 after four seconds.
fn late(world: &World, version: HttpVersion) {
    let answer = |request: Request<Incoming>| async move {
        // Broken off with its client.
        let _ = request.into_body().collect().await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        Response::builder().status(504).body(full("")).unwrap()
    };
    world.listen(A, hyper(version, answer));
}

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// It ends its half, and waits for the rest.
    Half,
    Wholly,
}

impl Leaves {
    /// What it still got.
    async fn go(self, mut io: DuplexStream) -> String {
        let mut rest = String::new();
        if matches!(self, Self::Half) {
            io.shutdown().await.unwrap();
            io.read_to_string(&mut rest).await.unwrap();
        }
        rest
    }
}

#[test]
fn a_client_that_goes_while_it_waits_is_noticed_and_counts_for_nobody() {
    let whole = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\n\r\nbody";
    for (leaves, protocol, request) in [
        (Leaves::Wholly, Protocol::Http, GET),
        (Leaves::Half, Protocol::Http, GET),
        (Leaves::Wholly, Protocol::Http, whole),
        (Leaves::Half, Protocol::Http2, whole),
        (Leaves::Wholly, Protocol::Http2, GET),
    ] {
        run(async {
            // Its route's time-out would pass after it has gone.
            let mut world = mesh(protocol, Some(Duration::from_secs(5)));
            let budget = Budget::new(Usage { requests: 3, ..Usage::default() });
            world.quota = Quota::new("p".into(), budget, 100);
            let http1 = protocol == Protocol::Http;
            late(&world, if http1 { HttpVersion::Http1 } else { HttpVersion::Http2 });
            for _ in 0..3 {
                let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
                write(&mut io, request).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                assert_eq!(world.quota.held().requests, 1);
                assert_eq!(leaves.go(io).await, "", "{leaves:?} {protocol:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                // Its place among those of the upstream is free too, or the next one met a limit.
                assert_eq!(world.quota.held().requests, 0, "{leaves:?} {protocol:?}");
            }
            assert_eq!(world.counted(), ["0 DC 3"]);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(world.get(VIP, "web", "/").await.0, 504, "it was not left out");
            assert_eq!(world.counted(), ["0 DC 3", "504 - 1"]);
        });
    }
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_body_is_no_malformed_request() {
    let length = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\nhalf";
    let chunks = "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf";
    for (leaves, protocol, request) in [
        (Leaves::Half, Protocol::Http, length),
        (Leaves::Wholly, Protocol::Http, chunks),
        (Leaves::Half, Protocol::Http2, chunks),
        (Leaves::Wholly, Protocol::Http2, length),
    ] {
        run(async {
            let world = mesh(protocol, None);
            let http1 = protocol == Protocol::Http;
            late(&world, if http1 { HttpVersion::Http1 } else { HttpVersion::Http2 });
            let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
            write(&mut io, request).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(leaves.go(io).await, "", "{leaves:?} {protocol:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(world.counted(), ["0 DC 1"], "{leaves:?} {protocol:?}");
            assert_eq!(world.get(VIP, "web", "/").await.0, 504, "it was not left out");
        });
    }
}

/// The head is out: the endpoint's connection must not stay either.
#[test]
fn a_client_that_goes_while_its_answer_comes_ends_it() {
    run(async {
        let world = mesh(Protocol::Http, None);
        let (gone, heard) = tokio::sync::oneshot::channel::<()>();
        let gone = Rc::new(RefCell::new(Some(gone)));
        world.listen(
            A,
            raw(move |mut io| {
                let gone = gone.borrow_mut().take();
                async move {
                    read_until(&mut io, "\r\n\r\n").await;
                    write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
                    assert_eq!(io.read(&mut [0]).await.unwrap_or(0), 0);
                    drop(gone);
                }
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        write(&mut io, GET).await;
        read_until(&mut io, "half").await;
        drop(io);
        assert!(heard.await.is_err());
        assert_eq!(world.counted(), ["200 DC 1"]);
    });
}

/// The look for a client's end takes nothing from what it sends ahead.
#[test]
fn what_a_client_sends_while_it_waits_is_kept() {
    run(async {
        let world = mesh(Protocol::Http, None);
        let second = Duration::from_secs(1);
        world.listen(
            A,
            raw(move |mut io| async move {
                let path = |head: &str| head.split(' ').nth(1).unwrap().to_owned();
                for _ in 0..2 {
                    let path = path(&read_until(&mut io, "\r\n\r\n").await);
                    tokio::time::sleep(second).await;
                    write(&mut io, &format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{path}"))
                        .await;
                }
                read_until(&mut io, "\r\n\r\n").await;
                tokio::time::sleep(second).await;
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: x\r\n\r\n";
                write(&mut io, switch).await;
                assert_eq!(read_until(&mut io, "ahead").await, "sent ahead");
                write(&mut io, "heard").await;
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let upgrade = "GET /c HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        let pieces =
            ["GET /a HTTP/1.1\r\nhost: web\r\n\r\n", "GE", "T /b HTTP/1.1\r\nhost: web\r\n\r\n"];
        for piece in pieces {
            write(&mut io, piece).await;
            tokio::time::sleep(second / 10).await;
        }
        assert!(read_until(&mut io, "/a").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(read_until(&mut io, "/b").await.starts_with("HTTP/1.1 200 OK\r\n"));
        for piece in [upgrade, "sent ", "ahead"] {
            write(&mut io, piece).await;
            tokio::time::sleep(second / 10).await;
        }
        assert!(read_until(&mut io, "heard").await.starts_with("HTTP/1.1 101 "));
    });
}
