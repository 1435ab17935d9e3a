//! What must pass through unchanged: versions, trailers, streaming, upgrades, odd messages.

use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;

use super::*;
use crate::balance::fixture::{endpoint, service, snapshot};
use crate::model::Protocol;

fn mesh(protocol: Protocol) -> World {
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), vec![endpoint(A, "v1")]);
    World::new(snapshot(&[client(), pod("other", &["10.0.0.8"], "")], vec![web], vec![], vec![]))
}

/// A body that is written by hand.
fn channel() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (send, mut receive) = mpsc::unbounded_channel();
    let frames = futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx).map(|f| f.map(Ok)));
    (send, StreamBody::new(frames).boxed_unsync())
}

#[test]
fn a_request_arrives_with_what_a_sidecar_adds() {
    run(async {
        let world = mesh(Protocol::Http);
        let heads = world.answers(A, HttpVersion::Http1, "hello");
        let mut sender = world.http1(VIP).await;
        let mut request = get("web:80", "/path?q=1");
        for (name, value) in [("connection", "x-hop"), ("x-hop", "1"), ("x-own", "2")] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(response.headers()["server"], "envoy");
        assert_eq!(response.headers()["x-envoy-upstream-service-time"], "0");
        assert_eq!(response.headers()["content-length"], "5");
        assert_eq!(text(response).await, "hello");
        let head = heads.borrow_mut().pop().unwrap();
        assert_eq!((head.uri.to_string().as_str(), &head.method), ("/path?q=1", &Method::GET));
        assert_eq!(head.headers["host"], "web:80");
        assert_eq!(head.headers["x-own"], "2");
        assert_eq!(head.headers["x-envoy-attempt-count"], "1");
        assert_eq!(head.headers["x-forwarded-proto"], "http");
        assert_eq!(head.headers["x-request-id"].len(), 36);
        assert!(!head.headers.contains_key("x-hop") && !head.headers.contains_key("connection"));
    });
}

#[test]
fn connections_are_kept_but_never_shared_between_pods() {
    run(async {
        let world = mesh(Protocol::Http);
        world.answers(A, HttpVersion::Http1, "x");
        for _ in 0..3 {
            world.get(VIP, "web", "/").await;
        }
        assert_eq!(world.dials(), 1, "one connection for three client connections");
        let other = pod("other", &["10.0.0.8"], "");
        let mut sender = world.http1_of(&other, VIP).await;
        text(sender.send_request(get("web", "/")).await.unwrap()).await;
        let dialled: Vec<_> =
            world.net.dialled.borrow().iter().map(|(uid, _)| uid.to_string()).collect();
        assert_eq!(dialled, ["uid-client", "uid-other"]);
    });
}

#[test]
fn idle_connections_are_closed() {
    run(async {
        let world = mesh(Protocol::Http);
        world.answers(A, HttpVersion::Http1, "x");
        let engine = world.engine.clone();
        world.tasks.spawn_local(async move { engine.maintain().await });
        world.get(VIP, "web", "/").await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(world.engine.shared.client.pool().len(), (1, 0));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.engine.shared.client.pool().len(), (0, 0));
    });
}

#[test]
fn http2_streams_share_a_connection_and_keep_their_authority() {
    run(async {
        let world = mesh(Protocol::Http2);
        let heads = world.answers(A, HttpVersion::Http2, "hello");
        let sender = world.http2(VIP).await;
        let request = || Request::get("http://web.shop:80/p?q").body(full("")).unwrap();
        let (mut one, mut two) = (sender.clone(), sender.clone());
        let (one, two) = tokio::join!(one.send_request(request()), two.send_request(request()));
        let one = one.unwrap();
        assert_eq!(one.version(), Version::HTTP_2);
        assert_eq!((text(one).await, text(two.unwrap()).await), ("hello".into(), "hello".into()));
        assert_eq!(world.dials(), 1);
        let head = heads.borrow_mut().pop().unwrap();
        assert_eq!(head.uri.to_string(), "http://web.shop:80/p?q");
        assert_eq!(head.version, Version::HTTP_2);
    });
}

/// Both directions at once, message by message, then trailers.
#[test]
fn grpc_streams_both_ways_and_ends_with_trailers() {
    run(async {
        let world = mesh(Protocol::Grpc);
        world.listen(
            A,
            hyper(HttpVersion::Http2, |request| async move {
                assert_eq!(request.headers()["te"], "trailers");
                let (send, body) = channel();
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(frame)) = body.frame().await {
                        if let Ok(data) = frame.into_data() {
                            send.send(Frame::data(data)).unwrap();
                        }
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("5"));
                    send.send(Frame::trailers(trailers)).unwrap();
                });
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            }),
        );
        let mut sender = world.http2(VIP).await;
        let (send, body) = channel();
        let request = Request::post("http://web/pkg.Svc/Chat")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        for message in ["one", "two"] {
            send.send(Frame::data(message.into())).unwrap();
            let echoed = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(echoed, message);
        }
        drop(send);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "5");
        assert!(body.frame().await.is_none());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.counted(), ["200 - 1"]);
        let mut encoded = String::new();
        prometheus_client::encoding::text::encode(&mut encoded, &world.registry).unwrap();
        assert!(encoded.contains(r#"grpc_response_status="5""#), "{encoded}");
    });
}

#[test]
fn the_ports_declaration_decides_what_is_spoken_to_the_endpoint() {
    use HttpVersion::{Http1, Http2};
    for (protocol, client, server) in [
        (Protocol::Http, Http1, Http1),
        (Protocol::Http, Http2, Http1),
        (Protocol::Http2, Http1, Http2),
        (Protocol::Grpc, Http2, Http2),
        (Protocol::Detect, Http1, Http1),
        (Protocol::Detect, Http2, Http2),
    ] {
        run(async {
            let world = mesh(protocol);
            let heads = world.answers(A, server, "x");
            let response = match client {
                Http1 => world.http1(VIP).await.send_request(get("web", "/a?b")).await,
                Http2 => {
                    let request = Request::get("http://web/a?b")
                        .header("cookie", "a=1")
                        .header("cookie", "b=2")
                        .body(full(""))
                        .unwrap();
                    world.http2(VIP).await.send_request(request).await
                }
            };
            assert_eq!(text(response.unwrap()).await, "x", "{protocol:?} {client:?}");
            let head = heads.borrow_mut().pop().unwrap();
            match server {
                Http1 => {
                    assert_eq!(head.uri.to_string(), "/a?b");
                    assert_eq!(head.headers["host"], "web");
                }
                Http2 => assert_eq!(head.uri.to_string(), "http://web/a?b"),
            }
            if (client, server) == (Http2, Http1) {
                assert_eq!(head.headers["cookie"], "a=1; b=2");
            }
        });
    }
}

#[test]
fn a_websocket_becomes_two_byte_streams_that_half_close() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            raw(|mut io| async move {
                let head = read_until(&mut io, "\r\n\r\n").await;
                assert!(head.contains("connection: upgrade\r\n"), "{head}");
                assert!(head.contains("upgrade: websocket\r\n"), "{head}");
                let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                          upgrade: websocket\r\nsec-websocket-accept: ok\r\n\r\nearly";
                write(&mut io, answer).await;
                let mut all = String::new();
                io.read_to_string(&mut all).await.unwrap();
                write(&mut io, &format!("got {all}")).await;
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let request = "GET /ws HTTP/1.1\r\nhost: web\r\nconnection: Upgrade\r\n\
                       upgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
        write(&mut io, request).await;
        let head = read_until(&mut io, "early").await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert!(head.contains("sec-websocket-accept: ok\r\n"), "{head}");
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        write(&mut io, "after").await;
        io.shutdown().await.unwrap();
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "got after");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.counted(), ["101 - 1"]);
    });
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    run(async {
        let world = mesh(Protocol::Http);
        world.answers(A, HttpVersion::Http1, "no");
        let mut sender = world.http1(VIP).await;
        for _ in 0..2 {
            let mut request = get("web", "/");
            request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            request.headers_mut().insert("upgrade", HeaderValue::from_static("h2c"));
            sender.ready().await.unwrap();
            assert_eq!(text(sender.send_request(request).await.unwrap()).await, "no");
        }
        assert_eq!(world.dials(), 1, "and the connection is kept");
    });
}

#[test]
fn expect_continue_is_the_endpoints_to_answer() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            raw(|mut io| async move {
                let head = read_until(&mut io, "\r\n\r\n").await;
                assert!(head.contains("expect: 100-continue\r\n"), "{head}");
                assert!(!head.contains("body"), "the body waits: {head}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                write(&mut io, "HTTP/1.1 100 Continue\r\n\r\n").await;
                assert!(read_until(&mut io, "body").await.ends_with("body"));
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                read_until(&mut io, "GET /next").await;
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await;
                std::future::pending::<()>().await;
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let start = tokio::time::Instant::now();
        let head = "POST / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\n\
                    content-length: 4\r\n\r\n";
        write(&mut io, head).await;
        let head = read_until(&mut io, "\r\n\r\n").await;
        assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(start.elapsed().as_millis(), 200, "not before the endpoint said so");
        write(&mut io, "body").await;
        assert!(read_until(&mut io, "ok").await.starts_with("HTTP/1.1 200 OK"));
        write(&mut io, "GET /next HTTP/1.1\r\nhost: web\r\n\r\n").await;
        read_until(&mut io, "\r\n\r\nnext").await;
        assert_eq!(world.dials(), 1, "the connection serves on");
    });
}

#[test]
fn a_refusal_reaches_the_client_before_it_sends_its_body() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 3\r\n\r\nno!")
                    .await;
                let mut rest = String::new();
                io.read_to_string(&mut rest).await.unwrap();
                assert_eq!(rest, "", "no body is sent, the connection is closed");
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let head = "POST / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\n\
                    content-length: 4\r\n\r\n";
        write(&mut io, head).await;
        assert!(read_until(&mut io, "no!").await.starts_with("HTTP/1.1 417 "));
        assert_eq!(world.engine.shared.client.pool().len(), (0, 0));
        world.tasks.close();
        world.net.tasks.close();
        world.net.tasks.wait().await;
    });
}

#[test]
fn an_endpoint_that_ignores_expect_gets_the_body_after_a_second() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "body").await;
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                std::future::pending::<()>().await;
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let head = "POST / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\n\
                    content-length: 4\r\n\r\n";
        let start = tokio::time::Instant::now();
        write(&mut io, &format!("{head}body")).await;
        read_until(&mut io, "\r\n\r\nok").await;
        assert_eq!(start.elapsed().as_millis(), 1_000);
    });
}

#[test]
fn bodies_without_a_body_and_old_versions() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            hyper(HttpVersion::Http1, |request| async move {
                let status = match request.uri().path() {
                    "/204" => 204,
                    "/304" => 304,
                    _ => 200,
                };
                let body = if status == 200 { full("12345") } else { full("") };
                Response::builder().status(status).body(body).unwrap()
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        let requests = "HEAD /h HTTP/1.1\r\nhost: web\r\n\r\nGET /204 HTTP/1.1\r\nhost: web\r\n\r\n\
                        GET /304 HTTP/1.1\r\nhost: web\r\n\r\nGET /last HTTP/1.0\r\n\r\n";
        write(&mut io, requests).await;
        let mut all = String::new();
        io.read_to_string(&mut all).await.unwrap();
        let answers: Vec<&str> = all.split("HTTP/1.").skip(1).collect();
        assert_eq!(answers.len(), 4, "{all}");
        assert!(answers[0].starts_with("1 200 ") && answers[0].contains("content-length: 5\r\n"));
        assert!(answers[0].ends_with("\r\n\r\n"), "{}", answers[0]);
        assert!(answers[1].starts_with("1 204 ") && !answers[1].contains("content-length"));
        assert!(answers[2].starts_with("1 304 ") && answers[2].ends_with("\r\n\r\n"));
        assert!(answers[3].starts_with("0 200 ") && answers[3].ends_with("\r\n\r\n12345"));
        assert_eq!(world.counted(), ["200 - 2", "204 - 1", "304 - 1"]);
    });
}

/// A body of 1 MiB through pipes of 16 KiB: it streams, and back-pressure holds the sender.
#[test]
fn large_bodies_stream_both_ways() {
    for (protocol, version) in
        [(Protocol::Http, HttpVersion::Http1), (Protocol::Http2, HttpVersion::Http2)]
    {
        run(async {
            let world = mesh(protocol);
            world.listen(
                A,
                hyper(version, |request| async move {
                    Response::new(request.into_body().map_err(Into::into).boxed_unsync())
                }),
            );
            let content = Bytes::from(vec![b'x'; 1 << 20]);
            let request = Request::post("http://web/").header("host", "web");
            let request = request.body(full(content.clone())).unwrap();
            let response = match version {
                HttpVersion::Http1 => world.http1(VIP).await.send_request(request).await,
                HttpVersion::Http2 => world.http2(VIP).await.send_request(request).await,
            };
            let echoed = response.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(echoed == content);
        });
    }
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_takes_no_more() {
    let slow = || {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            hyper(HttpVersion::Http1, |_| async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Response::new(full("slow"))
            }),
        );
        let stop = world.shutdown.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.cancel();
        });
        world
    };
    let request = || Request::get("http://web/").header("host", "web").body(full("")).unwrap();
    run(async {
        let world = slow();
        let mut sender = world.http1(VIP).await;
        let answer = sender.send_request(request()).await.unwrap();
        assert_eq!(text(answer).await, "slow");
        assert!(sender.ready().await.is_err());
    });
    run(async {
        let world = slow();
        let mut sender = world.http2(VIP).await;
        let answer = sender.send_request(request()).await.unwrap();
        assert_eq!(text(answer).await, "slow");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(sender.ready().await.is_err());
    });
}

/// A close could cross a request that is on its way.
#[test]
fn a_stop_closes_no_connection_before_its_next_answer() {
    run(async {
        let world = mesh(Protocol::Http);
        world.answers(A, HttpVersion::Http1, "x");
        let mut old = world.http1(VIP).await;
        let answer = old.send_request(get("web", "/")).await.unwrap();
        assert_eq!(answer.headers().get(CONNECTION), None);
        text(answer).await;
        // Accepted, and not served yet.
        let fresh = world.open(&world.client, VIP, HttpVersion::Http1);
        world.shutdown.cancel();
        // Accepted since.
        let new = world.open(&world.client, VIP, HttpVersion::Http1);
        tokio::time::sleep(Duration::from_secs(60)).await;
        for mut io in [fresh, new] {
            write(&mut io, "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
            let mut all = String::new();
            io.read_to_string(&mut all).await.unwrap();
            assert!(all.starts_with("HTTP/1.1 200 ") && all.contains("connection: close"), "{all}");
        }
        old.ready().await.unwrap();
        let answer = old.send_request(get("web", "/")).await.unwrap();
        assert_eq!(answer.headers()[CONNECTION], "close");
        assert_eq!(text(answer).await, "x");
        assert!(old.ready().await.is_err());
    });
}

/// The tunnel's far end stops: requests go through another one, before this one is cut.
#[test]
fn what_is_carried_by_something_that_ends_takes_no_further_request() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        run(async {
            let world = mesh(match version {
                HttpVersion::Http1 => Protocol::Http,
                HttpVersion::Http2 => Protocol::Http2,
            });
            let slow = hyper(version, |request: Request<_>| async move {
                if request.uri().path() == "/slow" {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
                Response::new(full("x"))
            });
            world.listen(A, slow);
            let pool = || world.engine.shared.client.pool().len();
            let open = if version == HttpVersion::Http1 { (1, 0) } else { (0, 1) };
            world.get(VIP, "web", "/").await;
            assert_eq!((pool(), world.dials()), (open, 1));
            // Idle: closed.
            world.retire();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(pool(), (0, 0));
            // In use: finishes, while others use a new one.
            let mut sender = world.http1(VIP).await;
            let mut slow = Box::pin(sender.send_request(get("web", "/slow")));
            let second = tokio::time::timeout(Duration::from_secs(1), &mut slow).await;
            assert!(second.is_err());
            world.retire();
            world.get(VIP, "web", "/").await;
            assert_eq!((pool(), world.dials()), (open, 3));
            assert_eq!(text(slow.await.unwrap()).await, "x");
            assert_eq!((pool(), world.dials()), (open, 3));
        });
    }
}

/// An application that uses a forward proxy outside the mesh.
#[test]
fn connect_to_a_forward_proxy_opens_a_tunnel() {
    run(async {
        let world = mesh(Protocol::Http);
        let proxy = "93.184.216.34:3128";
        world.listen(
            proxy,
            raw(|mut io| async move {
                let head = read_until(&mut io, "\r\n\r\n").await;
                assert!(head.starts_with("CONNECT example.org:443 HTTP/1.1\r\n"), "{head}");
                write(&mut io, "HTTP/1.1 200 Connection established\r\n\r\n").await;
                let mut all = String::new();
                io.read_to_string(&mut all).await.unwrap();
                write(&mut io, &format!("got {all}")).await;
            }),
        );
        let mut io = world.open(&world.client, proxy, HttpVersion::Http1);
        let head = "CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n";
        write(&mut io, head).await;
        let head = read_until(&mut io, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.contains("content-length") && !head.contains("upgrade"), "{head}");
        write(&mut io, "bytes").await;
        io.shutdown().await.unwrap();
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "got bytes");
    });
}

#[test]
fn a_switch_that_nobody_asked_for_is_a_protocol_error() {
    run(async {
        let world = mesh(Protocol::Http);
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n").await;
            }),
        );
        assert_eq!(world.get(VIP, "web", "/").await.0, 502);
        assert_eq!(world.counted(), ["502 UPE 1"]);
    });
}

/// Sixty streams that are not read must not hold up another on the same connections.
#[test]
fn stalled_streams_do_not_stop_their_neighbours() {
    run(async {
        let world = mesh(Protocol::Http2);
        world.listen(
            A,
            hyper(HttpVersion::Http2, |request| async move {
                let size = if request.uri().path() == "/big" { 4 << 20 } else { 5 };
                Response::new(full(vec![b'x'; size]))
            }),
        );
        let sender = world.http2(VIP).await;
        let ask = |path: &str| {
            let request = Request::get(format!("http://web{path}")).body(full("")).unwrap();
            sender.clone().send_request(request)
        };
        let mut stalled = Vec::new();
        for _ in 0..60 {
            stalled.push(ask("/big").await.unwrap());
        }
        let start = tokio::time::Instant::now();
        assert_eq!(text(ask("/small").await.unwrap()).await, "xxxxx");
        assert_eq!(start.elapsed(), Duration::ZERO, "without any timer's help");
        assert_eq!(world.dials(), 1);
    });
}
