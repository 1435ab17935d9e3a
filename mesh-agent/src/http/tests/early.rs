//! Informational responses: both versions of HTTP on both sides, in order, before the final one.

use std::future::poll_fn;
use std::time::Duration;

use super::*;
use crate::balance::fixture::{endpoint, service, snapshot};
use crate::model::Protocol;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nlink: </b.css>\r\n\
                     connection: x-hop\r\nx-hop: 1\r\n\r\n";
const PROCESSING: &str = "HTTP/1.1 102 Processing\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn mesh(protocol: Protocol) -> World {
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), vec![endpoint(A, "v1")]);
    World::new(snapshot(&[client()], vec![web], vec![], vec![]))
}

/// Says what it will say soon, then, a second later, says it.
fn http1_endpoint(world: &World) {
    world.listen(
        A,
        raw(|mut io| async move {
            loop {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, HINTS).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                // In one piece with the final one: it must not be overtaken.
                write(&mut io, &[PROCESSING, FINAL].concat()).await;
            }
        }),
    );
}

/// The same over HTTP/2.
fn http2_endpoint(world: &World) {
    world.listen(
        A,
        raw(|io| async move {
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                tokio::task::spawn_local(async move {
                    let hints = Response::builder().status(103).header("link", "</a.css>");
                    let hints = hints.header("link", "</b.css>").body(()).unwrap();
                    reply.send_informational(hints).unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let processing = Response::builder().status(102).body(()).unwrap();
                    reply.send_informational(processing).unwrap();
                    let last = Response::builder().header("content-length", "2");
                    let last = last.body(()).unwrap();
                    let mut stream = reply.send_response(last, false).unwrap();
                    stream.send_data(Bytes::from("ok"), true).unwrap();
                });
            }
        }),
    );
}

/// What an HTTP/1 client reads for one request, the milliseconds until the hints, and until all.
async fn ask_http1(io: &mut DuplexStream) -> (String, u128, u128) {
    let start = tokio::time::Instant::now();
    write(io, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    let hints = read_until(io, "\r\n\r\n").await;
    let first = start.elapsed().as_millis();
    let rest = read_until(io, "\r\n\r\nok").await;
    (hints + &rest, first, start.elapsed().as_millis())
}

fn assert_told_http1((text, first, all): (String, u128, u128)) {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nlink: </b.css>\r\n\r\n";
    let text = text.strip_prefix(hints).unwrap_or_else(|| panic!("hints first: {text}"));
    let text = text.strip_prefix(PROCESSING).unwrap_or_else(|| panic!("then 102: {text}"));
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\nok"), "{text}");
    assert_eq!((first, all), (0, 1000), "hints come at once");
}

/// Statuses and number of links that an HTTP/2 client gets for one request.
async fn ask_http2(world: &World) -> Vec<(u16, usize)> {
    let io = world.open(&world.client, VIP, HttpVersion::Http2);
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    let connection = tokio::task::spawn_local(connection);
    let request = Request::get("http://web/").body(()).unwrap();
    let (mut response, _) = sender.send_request(request, true).unwrap();
    let mut told = Vec::new();
    let links = |headers: &http::HeaderMap| headers.get_all("link").iter().count();
    let last = poll_fn(|cx| {
        while let std::task::Poll::Ready(Some(informational)) = response.poll_informational(cx) {
            let informational = informational.unwrap();
            assert!(!informational.headers().contains_key("x-hop"));
            told.push((informational.status().as_u16(), links(informational.headers())));
        }
        std::pin::Pin::new(&mut response).poll(cx)
    });
    let last = last.await.unwrap();
    told.push((last.status().as_u16(), links(last.headers())));
    let mut body = last.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "ok");
    connection.abort();
    told
}

#[test]
fn http1_to_http1_again_and_again_on_one_connection() {
    run(async {
        let world = mesh(Protocol::Http);
        http1_endpoint(&world);
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        for _ in 0..3 {
            assert_told_http1(ask_http1(&mut io).await);
        }
        assert_eq!(world.dials(), 1);
    });
}

#[test]
fn http1_to_http2() {
    run(async {
        let world = mesh(Protocol::Http2);
        http2_endpoint(&world);
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        for _ in 0..2 {
            assert_told_http1(ask_http1(&mut io).await);
        }
    });
}

#[test]
fn http2_to_either_version() {
    for (protocol, endpoint) in [
        (Protocol::Http, http1_endpoint as fn(&World)),
        (Protocol::Http2, http2_endpoint as fn(&World)),
    ] {
        run(async {
            let world = mesh(protocol);
            endpoint(&world);
            assert_eq!(ask_http2(&world).await, [(103, 2), (102, 0), (200, 0)], "{protocol:?}");
        });
    }
}

#[test]
fn an_http10_client_gets_none() {
    run(async {
        let world = mesh(Protocol::Http);
        http1_endpoint(&world);
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        write(&mut io, "GET / HTTP/1.0\r\nhost: web\r\n\r\n").await;
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        assert!(all.starts_with("HTTP/1.0 200 OK") || all.starts_with("HTTP/1.1 200 OK"), "{all}");
    });
}

#[test]
fn a_pipelined_request_keeps_its_own() {
    run(async {
        let world = mesh(Protocol::Http);
        http1_endpoint(&world);
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let request = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        write(&mut io, &request.repeat(2)).await;
        let all = [read_until(&mut io, "ok").await, read_until(&mut io, "ok").await].concat();
        let one = ["HTTP/1.1 103 Early Hints", "HTTP/1.1 102 Processing", "HTTP/1.1 200 OK"];
        let answers: Vec<&str> =
            all.split("ok").flat_map(str::lines).filter(|line| line.contains("HTTP/1.1")).collect();
        assert_eq!(answers, [one, one].concat(), "{all}");
    });
}

#[test]
fn an_http2_client_that_waits_for_continue_is_told() {
    for (protocol, version) in
        [(Protocol::Http, HttpVersion::Http1), (Protocol::Http2, HttpVersion::Http2)]
    {
        run(async {
            let world = mesh(protocol);
            let handler = |request: Request<Incoming>| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                Response::new(full(body))
            };
            world.listen(A, hyper(version, handler));
            let io = world.open(&world.client, VIP, HttpVersion::Http2);
            let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
            let connection = tokio::task::spawn_local(connection);
            let request = Request::post("http://web/").header("expect", "100-continue");
            let (mut response, mut body) =
                sender.send_request(request.body(()).unwrap(), false).unwrap();
            let told = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(told.status(), 100);
            body.send_data(Bytes::from("body"), true).unwrap();
            let mut echoed = response.await.unwrap().into_body();
            assert_eq!(echoed.data().await.unwrap().unwrap(), "body");
            connection.abort();
        });
    }
}
