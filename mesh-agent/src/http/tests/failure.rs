//! What users see when something fails: status, body and flag, as Envoy gives them.

use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, service, snapshot};
use crate::model::{
    Action, DirectResponse, Fault, FaultAbort, Forward, HeaderEdit, HeaderOps, HttpMatch, HttpRule,
    LoadBalancer, PathRewrite, Protocol, Redirect, RedirectPath, RedirectPort, RetryPolicy,
    Rewrite, Share, StringMatch,
};
use crate::tunnel::{Budget, Usage};

const HOST: &str = "web.shop.svc.cluster.local";
const REFUSED: &str = "remote connection failure, transport failure reason: connection refused";

fn mesh(endpoints: &[&str], rules: Option<Vec<HttpRule>>) -> World {
    let endpoints = endpoints.iter().map(|at| endpoint(at, "v1")).collect();
    let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http), endpoints);
    let rules = rules.map(|rules| virtual_service("web", &[HOST], rules));
    let policy = crate::balance::fixture::rule(HOST, &["v1"], LoadBalancer::RoundRobin);
    World::new(snapshot(&[client()], vec![web], rules.into_iter().collect(), vec![policy]))
}

fn timed(timeout: Duration) -> Option<Vec<HttpRule>> {
    let forward = Forward { timeout: Some(timeout), ..forward(&[("web", None, 1)]) };
    Some(vec![forwarding(forward)])
}

#[test]
fn nothing_to_send_to() {
    run(async {
        let rule = |destination| Some(vec![forwarding(forward(&[destination]))]);
        let only_a = Some(vec![HttpRule {
            matches: vec![HttpMatch {
                uri: Some(StringMatch::Exact("/a".into())),
                ..HttpMatch::default()
            }],
            ..forwarding(forward(&[("web", None, 1)]))
        }]);
        for (rules, status, body, counted) in [
            (None, 503, "no healthy upstream", "503 UH 1"),
            (rule(("web", Some("nope"), 1)), 503, "", "503 NC 1"),
            (rule(("nobody", None, 1)), 503, "", "503 NC 1"),
            (only_a, 404, "", "404 NR 1"),
        ] {
            let world = mesh(&[], rules);
            let answer = world.get(VIP, "web", "/").await;
            assert_eq!((answer.0.as_u16(), answer.1.as_str()), (status, body));
            assert_eq!(world.counted(), [counted]);
        }
    });
}

#[test]
fn a_refused_connect_goes_to_another_endpoint() {
    run(async {
        let world = mesh(&[A, B], None);
        let heads = world.answers(B, HttpVersion::Http1, "B");
        for _ in 0..4 {
            assert_eq!(world.get(VIP, "web", "/").await, (StatusCode::OK, "B".to_owned()));
        }
        let counts: Vec<_> = heads
            .borrow()
            .iter()
            .map(|head| head.headers["x-envoy-attempt-count"].clone())
            .collect();
        assert!(counts.contains(&HeaderValue::from_static("2")), "{counts:?}");
        assert_eq!(world.counted(), ["200 - 4"]);
    });
}

#[test]
fn after_two_retries_the_last_failure_is_told() {
    run(async {
        let world = mesh(&[A, B], None);
        let (status, body) = world.get(VIP, "web", "/").await;
        assert_eq!(status, 503);
        let start = "upstream connect error or disconnect/reset before headers. retried and the \
                     latest reset reason: ";
        assert_eq!(body, format!("{start}{REFUSED}"));
        assert_eq!(world.dials(), 3);
        assert_eq!(world.counted(), ["503 UF,URX 1"]);
    });
}

#[test]
fn a_connect_that_hangs_ends_with_its_timeout() {
    run(async {
        let world = mesh(&[A], None);
        world.listen(A, Server::Hangs);
        let start = Instant::now();
        let (status, body) = world.get(VIP, "web", "/").await;
        assert_eq!(status, 503);
        assert!(body.ends_with("connection timeout"), "{body}");
        assert!((30_000..30_100).contains(&start.elapsed().as_millis()), "three times 10 s");
    });
}

#[test]
fn a_route_timeout_before_the_head() {
    run(async {
        let world = mesh(&[A], timed(Duration::from_millis(300)));
        world.listen(A, hyper(HttpVersion::Http1, |_| std::future::pending()));
        let start = Instant::now();
        let (status, body) = world.get(VIP, "web", "/").await;
        assert_eq!((status.as_u16(), body.as_str()), (504, "upstream request timeout"));
        assert_eq!(start.elapsed().as_millis(), 300);
        assert_eq!(world.counted(), ["504 UT 1"]);
    });
}

#[test]
fn a_route_timeout_covers_all_attempts() {
    run(async {
        let world = mesh(&[A], timed(Duration::from_secs(15)));
        world.listen(A, Server::Hangs);
        let start = Instant::now();
        assert_eq!(world.get(VIP, "web", "/").await.0, 504);
        assert_eq!(start.elapsed().as_secs(), 15);
    });
}

/// The head is out, so the status stands; the body must not look complete.
#[test]
fn a_route_timeout_after_the_head_cuts_the_body_off() {
    run(async {
        let world = mesh(&[A], timed(Duration::from_millis(300)));
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
                std::future::pending::<()>().await;
            }),
        );
        let response = world.http1(VIP).await.send_request(get("web", "/")).await.unwrap();
        assert_eq!(response.status(), 200);
        let start = Instant::now();
        assert!(response.into_body().collect().await.is_err());
        assert_eq!(start.elapsed().as_millis(), 300);
        assert_eq!(world.counted(), ["200 UT 1"]);
    });
}

/// The time-out is the endpoint's: it starts when the client has sent everything.
#[test]
fn a_slow_upload_is_not_timed_out() {
    run(async {
        let world = mesh(&[A], timed(Duration::from_millis(300)));
        world.listen(
            A,
            hyper(HttpVersion::Http1, |request| async move {
                request.into_body().collect().await.unwrap();
                Response::new(full("done"))
            }),
        );
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        write(&mut io, "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\n\r\nsl").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        write(&mut io, "ow").await;
        assert!(read_until(&mut io, "done").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn an_endpoint_that_breaks_off_or_talks_nonsense() {
    run(async {
        let start = "upstream connect error or disconnect/reset before headers. reset reason: ";
        for (answer, status, reason, counted) in [
            ("", 503, "connection termination", "503 UC 1"),
            ("HTTP/1.1 2", 503, "connection termination", "503 UC 1"),
            ("SSH-2.0-OpenSSH\r\n\r\n", 502, "protocol error", "502 UPE 1"),
        ] {
            let world = mesh(&[A], None);
            world.listen(
                A,
                raw(move |mut io| async move {
                    read_until(&mut io, "\r\n\r\n").await;
                    write(&mut io, answer).await;
                }),
            );
            let got = world.get(VIP, "web", "/").await;
            assert_eq!((got.0.as_u16(), got.1), (status, format!("{start}{reason}")));
            assert_eq!(world.counted(), [counted]);
        }
    });
}

/// The endpoint closed an idle connection; the client must not notice.
#[test]
fn a_connection_that_went_stale_is_replaced() {
    run(async {
        let world = mesh(&[A], None);
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "\r\n\r\n").await;
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                // The next request is on its way when the connection is closed.
                read_until(&mut io, "\r\n").await;
            }),
        );
        for number in 1..=3 {
            let answer = world.get(VIP, "web", "/").await;
            assert_eq!(answer, (StatusCode::OK, "ok".to_owned()), "request {number}");
        }
        assert_eq!(world.counted(), ["200 - 3"]);
    });
}

/// A request that may have been acted upon is not sent twice.
#[test]
fn a_post_on_a_stale_connection_is_not_repeated() {
    run(async {
        let world = mesh(&[A], None);
        let posts = Rc::new(RefCell::new(0));
        let seen = posts.clone();
        world.listen(
            A,
            raw(move |mut io| {
                let seen = seen.clone();
                async move {
                    read_until(&mut io, "\r\n\r\n").await;
                    write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    read_until(&mut io, "POST").await;
                    *seen.borrow_mut() += 1;
                }
            }),
        );
        world.get(VIP, "web", "/").await;
        let request = Request::post("/").header("host", "web").body(full("")).unwrap();
        let response = world.http1(VIP).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(*posts.borrow(), 1);
    });
}

/// A request above what its pod may have going on is answered at once; one that has ended makes
/// room.
#[test]
fn a_pod_at_its_limit_of_requests_is_told() {
    run(async {
        let mut world = mesh(&[A], None);
        let budget = Budget::new(Usage { requests: 3, ..Usage::default() });
        world.quota = Quota::new("p".into(), budget, 100);
        let go = Rc::new(tokio::sync::Semaphore::new(0));
        let wait = go.clone();
        world.listen(
            A,
            hyper(HttpVersion::Http1, move |_| {
                let wait = wait.clone();
                async move {
                    wait.acquire().await.unwrap().forget();
                    Response::new(full("late"))
                }
            }),
        );
        let first = world.get(VIP, "web", "/");
        let second = world.get(VIP, "web", "/");
        let third = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let answer = world.get(VIP, "web", "/").await;
            let overflow = "upstream connect error or disconnect/reset before headers. reset \
                            reason: overflow";
            assert_eq!(answer, (StatusCode::SERVICE_UNAVAILABLE, overflow.to_owned()));
            assert_eq!(world.counted(), ["503 UO 1"]);
            go.add_permits(3);
        };
        let late = (StatusCode::OK, "late".to_owned());
        assert_eq!(tokio::join!(first, second, third), (late.clone(), late.clone(), ()));
        assert_eq!(world.quota.held().requests, 0);
        assert_eq!(world.get(VIP, "web", "/").await, late);
    });
}

/// What the route does to answers is done to those that are made here: the route's, then what the
/// destination says, where one was chosen.
#[test]
fn the_routes_headers_are_on_answers_that_are_made_here() {
    run(async {
        let ops = |name: &'static str| HeaderOps {
            set: vec![HeaderEdit {
                name: name.parse().unwrap(),
                value: HeaderValue::from_static("1"),
            }],
            ..HeaderOps::default()
        };
        let rule_of = |(host, subset), timeout, abort: Option<FaultAbort>| {
            let mut to = forward(&[(host, subset, 1)]);
            to.destinations[0].response_headers = ops("x-destination");
            let to = Forward { timeout, retries: RetryPolicy::never(), ..to };
            let abort = abort.map(|abort| (abort, Share::ALL));
            let fault = abort.map(|abort| Box::new(Fault { delay: None, abort: Some(abort) }));
            Some(vec![HttpRule { response_headers: ops("x-route"), fault, ..forwarding(to) }])
        };
        let web = ("web", None);
        let abort = FaultAbort::Http(StatusCode::IM_A_TEAPOT);
        let second = Some(Duration::from_secs(1));
        for (endpoints, server, rules, counted) in [
            (vec![A], None, rule_of(web, None, None), "503 UF 1"),
            (vec![], None, rule_of(web, None, None), "503 UH 1"),
            (vec![A], None, rule_of(("web", Some("nope")), None, None), "503 NC 1"),
            (vec![A], Some(Server::Hangs), rule_of(web, second, None), "504 UT 1"),
            (vec![A], None, rule_of(web, None, Some(abort)), "418 FI 1"),
        ] {
            let world = mesh(&endpoints, rules);
            if let Some(server) = server {
                world.listen(A, server);
            }
            for grpc in [false, true] {
                let mut request = get("web", "/");
                if grpc {
                    let kind = HeaderValue::from_static("application/grpc");
                    request.headers_mut().insert("content-type", kind);
                }
                let response = world.http1(VIP).await.send_request(request).await.unwrap();
                for name in ["x-route", "x-destination"] {
                    assert_eq!(response.headers()[name], "1", "{counted}, gRPC: {grpc}");
                }
                assert_eq!(response.headers().contains_key("grpc-status"), grpc);
            }
            assert!(world.counted().contains(&counted.to_owned()), "{:?}", world.counted());
        }
    });
}

#[test]
fn grpc_clients_get_a_grpc_status() {
    run(async {
        let world = mesh(&[], None);
        let mut request = get("web", "/pkg.Svc/Call");
        let kind = HeaderValue::from_static("application/grpc");
        request.headers_mut().insert("content-type", kind);
        let response = world.http1(VIP).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
        assert_eq!(text(response).await, "");
        assert_eq!(world.counted(), ["200 UH 1"]);
    });
}

#[test]
fn a_client_that_goes_away_is_counted_and_the_endpoint_hears_of_it() {
    run(async {
        let world = mesh(&[A], None);
        let (gone, heard) = tokio::sync::oneshot::channel::<()>();
        let gone = Rc::new(RefCell::new(Some(gone)));
        world.listen(
            A,
            hyper(HttpVersion::Http1, move |_| {
                let gone = gone.borrow_mut().take();
                async move {
                    let _dropped_with_the_request = gone;
                    std::future::pending().await
                }
            }),
        );
        let mut sender = world.http2(VIP).await;
        let request = Request::get("http://web/").body(full("")).unwrap();
        let asked = tokio::time::timeout(Duration::from_secs(1), sender.send_request(request));
        assert!(asked.await.is_err());
        assert!(heard.await.is_err(), "the endpoint's connection was closed");
        assert_eq!(world.counted(), ["0 DC 1"]);
    });
}

#[test]
fn a_malformed_request_is_the_clients_fault() {
    run(async {
        let world = mesh(&[A], None);
        let mut io = world.open(&world.client, VIP, HttpVersion::Http1);
        write(&mut io, "GET / HTTP/1.1\r\nbad header\r\n\r\n").await;
        assert!(read_until(&mut io, "\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(world.counted(), ["400 DPE 1"]);
    });
}

#[test]
fn what_is_not_of_the_mesh_passes_as_it_is() {
    run(async {
        let world = mesh(&[A], None);
        let outside = "93.184.216.34:3128";
        world.listen(
            outside,
            raw(|mut io| async move {
                let head = read_until(&mut io, "\r\n\r\n").await;
                assert!(head.starts_with("GET http://example.org/x HTTP/1.1\r\n"), "{head}");
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                std::future::pending::<()>().await;
            }),
        );
        let mut sender = world.http1(outside).await;
        let request = get("example.org", "http://example.org/x");
        let response = sender.send_request(request).await.unwrap();
        assert!(!response.headers().contains_key("server"));
        assert_eq!(text(response).await, "ok");
    });
}

/// Three rules: a redirect, a direct response, a rewrite; each sets headers where it may.
fn rules() -> Vec<HttpRule> {
    let set = |value: &'static str| HeaderOps {
        set: vec![HeaderEdit {
            name: "x-rule".parse().unwrap(),
            value: HeaderValue::from_static(value),
        }],
        ..HeaderOps::default()
    };
    let at = |path: &str, rule: HttpRule| HttpRule {
        matches: vec![HttpMatch {
            uri: Some(StringMatch::Prefix(path.into())),
            ..HttpMatch::default()
        }],
        ..rule
    };
    let base = forwarding(forward(&[("web", Some("v1"), 1)]));
    let redirect = Action::Redirect(Redirect {
        path: RedirectPath::Uri("/new".into()),
        authority: None,
        port: RedirectPort::Keep,
        scheme: Some("https".into()),
        code: StatusCode::FOUND,
    });
    let direct = Action::Direct(DirectResponse {
        status: StatusCode::IM_A_TEAPOT,
        body: Bytes::from_static(b"short and stout"),
    });
    let mut to = forward(&[("web", Some("v1"), 1)]);
    to.destinations[0].response_headers = set("destination");
    to.rewrite = Rewrite {
        path: Some(PathRewrite::Uri("/v2/".into())),
        authority: Some(HeaderValue::from_static("inner.example")),
    };
    vec![
        at("/old", HttpRule { action: redirect, ..base.clone() }),
        at("/tea", HttpRule { action: direct, response_headers: set("direct"), ..base }),
        at(
            "/api/",
            HttpRule {
                request_headers: set("request"),
                response_headers: set("rule"),
                ..forwarding(to)
            },
        ),
    ]
}

#[test]
fn redirects_direct_responses_and_header_operations() {
    run(async {
        let world = mesh(&[A], Some(rules()));
        let heads = world.answers(A, HttpVersion::Http1, "x");
        let mut sender = world.http1(VIP).await;
        let response = sender.send_request(get("web", "/old?q=1")).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["location"]),
            (StatusCode::FOUND, &HeaderValue::from_static("https://web/new?q=1"))
        );
        sender.ready().await.unwrap();
        let response = sender.send_request(get("web", "/tea")).await.unwrap();
        assert_eq!(response.headers()["x-rule"], "direct");
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(
            (response.status().as_u16(), text(response).await.as_str()),
            (418, "short and stout")
        );
        sender.ready().await.unwrap();
        let response = sender.send_request(get("web", "/api/users?q=1")).await.unwrap();
        assert_eq!(response.headers()["x-rule"], "destination", "the destination's come last");
        let head = heads.borrow_mut().pop().unwrap();
        assert_eq!(head.uri.to_string(), "/v2/users?q=1");
        assert_eq!(head.headers["host"], "inner.example");
        assert_eq!(head.headers["x-rule"], "request");
        assert_eq!(head.headers["x-envoy-original-path"], "/api/users?q=1");
    });
}

/// Refuses the first stream of its connection, or ends the connection before it, then serves.
fn http2_that_refuses_first(world: &World, go_away: bool) {
    let connections = Rc::new(std::cell::Cell::new(0));
    let handler = move |io: DuplexStream| {
        let connections = Rc::clone(&connections);
        async move {
            connections.set(connections.get() + 1);
            let mut connection = h2::server::handshake(io).await.unwrap();
            let mut first = connections.get() == 1;
            if first && go_away {
                // GOAWAY names the last stream that will be served: none.
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
            }
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                if std::mem::take(&mut first) {
                    reply.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    let mut stream = reply.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from("ok"), true).unwrap();
                }
            }
        }
    };
    world.listen(A, raw(handler));
}

#[test]
fn what_an_http2_endpoint_has_not_begun_with_is_sent_again() {
    for (go_away, method) in [(false, "GET"), (false, "POST"), (true, "POST")] {
        run(async {
            let endpoints = vec![endpoint(A, "v1")];
            let web = service(("shop", "web"), "10.96.0.1", (80, Protocol::Http2), endpoints);
            let world = World::new(snapshot(&[client()], vec![web], vec![], vec![]));
            http2_that_refuses_first(&world, go_away);
            let request = Request::builder().method(method).uri("/").header("host", "web");
            let request = request.body(full("")).unwrap();
            let response = world.http1(VIP).await.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200, "{method}, GOAWAY: {go_away}");
            assert_eq!(text(response).await, "ok");
        });
    }
}
