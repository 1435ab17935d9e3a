//! Retries through the whole engine: what is sent again, how often, and what the client sees.

use std::cell::Cell;
use std::time::Duration;

use http_body_util::StreamBody;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{
    ConnectionPool, Fault, FaultAbort, Forward, HttpRule, LoadBalancer, OutlierDetection, Protocol,
    RetryOn, RetryPolicy, Share, TrafficPolicy,
};

const HOST: &str = "web.shop.svc.cluster.local";

fn policy(on: RetryOn) -> RetryPolicy {
    RetryPolicy { on, ..RetryPolicy::default() }
}

fn retrying(retries: RetryPolicy) -> HttpRule {
    forwarding(Forward { retries, ..forward(&[("web", None, 1)]) })
}

fn mesh(protocol: Protocol, rule_of: HttpRule, traffic: TrafficPolicy) -> World {
    let endpoints = vec![endpoint(A, "v1"), endpoint(B, "v1")];
    let web = service(("shop", "web"), "10.96.0.1", (80, protocol), endpoints);
    let mut destination = rule(HOST, &[], LoadBalancer::RoundRobin);
    destination.policy = traffic;
    let routes = virtual_service("web", &[HOST], vec![rule_of]);
    World::new(snapshot(&[client()], vec![web], vec![routes], vec![destination]))
}

fn plain(retries: RetryPolicy) -> World {
    let traffic = TrafficPolicy { load_balancer: LoadBalancer::RoundRobin, ..Default::default() };
    mesh(Protocol::Http, retrying(retries), traffic)
}

/// Answers with these statuses in turn, the last one for ever, and remembers bodies and the attempt
/// that each request said to be.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<(String, String)>>>);

impl Seen {
    fn serve(&self, world: &World, address: &str, statuses: &'static [u16]) {
        let (seen, number) = (self.clone(), Rc::new(Cell::new(0)));
        world.listen(
            address,
            hyper(HttpVersion::Http1, move |request| {
                let (seen, number) = (seen.clone(), number.clone());
                async move {
                    let attempt = request.headers()["x-envoy-attempt-count"].clone();
                    let body = text_of(request.into_body()).await;
                    seen.0.borrow_mut().push((attempt.to_str().unwrap().to_owned(), body));
                    let at = number.replace(number.get() + 1).min(statuses.len() - 1);
                    let mut response = Response::new(full(address_text(statuses[at])));
                    *response.status_mut() = StatusCode::from_u16(statuses[at]).unwrap();
                    response
                }
            }),
        );
    }

    fn take(&self) -> Vec<(String, String)> {
        std::mem::take(&mut self.0.borrow_mut())
    }
}

fn address_text(status: u16) -> String {
    format!("answered {status}")
}

async fn text_of(body: Incoming) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn post(body: Body) -> Request<Body> {
    Request::post("/").header("host", "web").body(body).unwrap()
}

#[test]
fn a_status_that_is_asked_for_is_tried_again_elsewhere_with_the_same_body() {
    run(async {
        let world = plain(policy(RetryOn::SERVER_ERROR));
        let (a, b) = (Seen::default(), Seen::default());
        a.serve(&world, A, &[503]);
        b.serve(&world, B, &[200]);
        for _ in 0..4 {
            let sent = post(full("one two three"));
            let response = world.http1(VIP).await.send_request(sent).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(text(response).await, "answered 200");
        }
        let (failed, answered) = (a.take(), b.take());
        assert_eq!(answered.len(), 4);
        assert!(!failed.is_empty(), "turns go to both");
        assert!(failed.iter().chain(&answered).all(|(_, body)| body == "one two three"));
        assert_eq!(answered.iter().filter(|(at, _)| at == "2").count(), failed.len());
        assert_eq!(world.counted(), ["200 - 4"]);
    });
}

#[test]
fn the_last_answer_is_the_clients_when_attempts_are_used_up() {
    run(async {
        let world = plain(RetryPolicy { attempts: 3, ..policy(RetryOn::GATEWAY_ERROR) });
        let seen = Seen::default();
        seen.serve(&world, A, &[502]);
        seen.serve(&world, B, &[502]);
        assert_eq!(world.get(VIP, "web", "/").await, (StatusCode::BAD_GATEWAY, address_text(502)));
        let attempts: Vec<_> = seen.take().into_iter().map(|(attempt, _)| attempt).collect();
        assert_eq!(attempts, ["1", "2", "3", "4"]);
        assert_eq!(world.counted(), ["502 URX 1"]);
    });
}

/// One retry at one moment is no limit on how many there are.
#[test]
fn a_retry_gives_its_place_to_the_next_one() {
    run(async {
        let pool = ConnectionPool { max_retries: 1, ..ConnectionPool::default() };
        let traffic = TrafficPolicy { pool, ..TrafficPolicy::default() };
        let retries = RetryPolicy { attempts: 3, ..policy(RetryOn::SERVER_ERROR) };
        let world = mesh(Protocol::Http, retrying(retries), traffic);
        let seen = Seen::default();
        seen.serve(&world, A, &[503]);
        seen.serve(&world, B, &[503]);
        assert_eq!(world.get(VIP, "web", "/").await.0, 503);
        assert_eq!(seen.take().len(), 4);
        assert_eq!(world.counted(), ["503 URX 1"]);
    });
}

#[test]
fn what_is_not_asked_for_is_not_tried_again() {
    run(async {
        for retries in
            [RetryPolicy::default(), policy(RetryOn::RETRIABLE_4XX), RetryPolicy::never()]
        {
            let world = plain(retries);
            let seen = Seen::default();
            seen.serve(&world, A, &[503]);
            seen.serve(&world, B, &[503]);
            assert_eq!(world.get(VIP, "web", "/").await.0, 503);
            assert_eq!(seen.take().len(), 1);
            assert_eq!(world.counted(), ["503 - 1"]);
        }
    });
}

#[test]
fn without_retries_a_refused_connection_is_the_end() {
    run(async {
        let world = plain(RetryPolicy::never());
        let (status, body) = world.get(VIP, "web", "/").await;
        assert_eq!(status, 503);
        assert!(body.contains("headers. reset reason: remote connection failure"), "{body}");
        assert_eq!(world.dials(), 1);
        assert_eq!(world.counted(), ["503 UF 1"]);
    });
}

#[test]
fn a_broken_connection_is_tried_again_also_with_a_body() {
    run(async {
        let world = plain(policy(RetryOn::RESET));
        world.listen(
            A,
            raw(|mut io| async move {
                read_until(&mut io, "three").await;
            }),
        );
        let b = Seen::default();
        b.serve(&world, B, &[200]);
        for _ in 0..2 {
            let sent = post(full("one two three"));
            let response = world.http1(VIP).await.send_request(sent).await.unwrap();
            assert_eq!(response.status(), 200);
        }
        assert_eq!(b.take().len(), 2);
    });
}

/// A body that comes while the first attempt fails is played again, and goes on behind.
#[test]
fn a_streaming_body_goes_on_in_the_next_attempt() {
    run(async {
        let world = plain(policy(RetryOn::SERVER_ERROR));
        // Answers before the body has ended.
        let early = |mut io: DuplexStream| async move {
            read_until(&mut io, "first").await;
            write(&mut io, "HTTP/1.1 503 Later\r\ncontent-length: 0\r\n\r\n").await;
            std::future::pending::<()>().await;
        };
        world.listen(A, raw(early));
        let b = Seen::default();
        b.serve(&world, B, &[200]);
        for _ in 0..2 {
            let (send, mut receive) = mpsc::unbounded_channel::<&'static str>();
            let frames = futures_util::stream::poll_fn(move |cx| {
                receive.poll_recv(cx).map(|text| {
                    text.map(|text| Ok(http_body::Frame::data(Bytes::from_static(text.as_bytes()))))
                })
            });
            let body = StreamBody::new(frames).boxed_unsync();
            let mut client = world.http1(VIP).await;
            send.send("first ").unwrap();
            let answering = client.send_request(post(body));
            let feeding = async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                send.send("second").unwrap();
            };
            let (response, ()) = futures_util::future::join(answering, feeding).await;
            assert_eq!(response.unwrap().status(), 200);
        }
        assert!(b.take().iter().all(|(_, body)| body == "first second"));
    });
}

#[test]
fn a_body_too_large_to_keep_is_sent_once() {
    run(async {
        let world = plain(policy(RetryOn::SERVER_ERROR));
        let seen = Seen::default();
        seen.serve(&world, A, &[503]);
        seen.serve(&world, B, &[503]);
        for (length, attempts) in [(60_000, 3), (70_000, 1), (1_000_000, 1)] {
            let sent = post(full("x".repeat(length)));
            let response = world.http1(VIP).await.send_request(sent).await.unwrap();
            assert_eq!(response.status(), 503);
            let seen = seen.take();
            assert_eq!(seen.len(), attempts, "{length}");
            assert!(seen.iter().all(|(_, body)| body.len() == length));
        }
    });
}

#[test]
fn each_try_has_its_time_and_all_have_the_routes() {
    run(async {
        let retries = RetryPolicy {
            per_try_timeout: Some(Duration::from_millis(400)),
            ..policy(RetryOn::SERVER_ERROR)
        };
        let timed = |timeout| {
            forwarding(Forward {
                retries: retries.clone(),
                timeout,
                ..forward(&[("web", None, 1)])
            })
        };
        // Three tries of 400 ms with short waits between, or until the route's time-out.
        for (timeout, least, most, tries, flags) in [
            (None, 1200, 1500, 3, "504 UT,URX 1"),
            (Some(Duration::from_millis(900)), 900, 900, 3, "504 UT 1"),
            (Some(Duration::from_millis(300)), 300, 300, 1, "504 UT 1"),
        ] {
            let world = mesh(Protocol::Http, timed(timeout), TrafficPolicy::default());
            let tried = Rc::new(Cell::new(0));
            for address in [A, B] {
                let tried = tried.clone();
                world.listen(
                    address,
                    hyper(HttpVersion::Http1, move |_| {
                        tried.set(tried.get() + 1);
                        std::future::pending()
                    }),
                );
            }
            let start = Instant::now();
            let (status, body) = world.get(VIP, "web", "/").await;
            assert_eq!((status.as_u16(), body.as_str()), (504, "upstream request timeout"));
            let took = start.elapsed().as_millis();
            assert!((least..=most).contains(&took), "{took} ms");
            assert_eq!(tried.get(), tries);
            assert_eq!(world.counted(), [flags]);
        }
    });
}

/// Both time-outs count from the end of the body, and neither keeps the other from it.
#[test]
fn each_try_of_a_request_with_a_body_has_its_time() {
    for version in [HttpVersion::Http1, HttpVersion::Http2] {
        run(async {
            let retries = RetryPolicy {
                per_try_timeout: Some(Duration::from_millis(400)),
                ..policy(RetryOn::SERVER_ERROR)
            };
            let timeout = Some(Duration::from_secs(5));
            let rule_of = forwarding(Forward { retries, timeout, ..forward(&[("web", None, 1)]) });
            let http1 = version == HttpVersion::Http1;
            let protocol = if http1 { Protocol::Http } else { Protocol::Grpc };
            let world = mesh(protocol, rule_of, TrafficPolicy::default());
            let tried = Rc::new(Cell::new(0));
            for address in [A, B] {
                let tried = tried.clone();
                let handler = move |_| {
                    tried.set(tried.get() + 1);
                    std::future::pending()
                };
                world.listen(address, hyper(version, handler));
            }
            let start = Instant::now();
            let response = if http1 {
                world.http1(VIP).await.send_request(post(full("message"))).await
            } else {
                let request = Request::post("http://web/shop.Web/Get")
                    .header("content-type", "application/grpc")
                    .body(full("message"));
                world.http2(VIP).await.send_request(request.unwrap()).await
            };
            let response = response.unwrap();
            let took = start.elapsed().as_millis();
            assert!((1200..=1500).contains(&took), "{took} ms, {version:?}");
            match http1 {
                true => assert_eq!(response.status(), 504),
                false => assert_eq!(response.headers()["grpc-status"], "14"),
            }
            assert_eq!(tried.get(), 3, "{version:?}");
        });
    }
}

#[test]
fn a_fault_is_neither_retried_nor_timed() {
    run(async {
        let abort = (FaultAbort::Http(StatusCode::SERVICE_UNAVAILABLE), Share::ALL);
        let fault = Fault { delay: Some((Duration::from_secs(5), Share::ALL)), abort: Some(abort) };
        let forward = Forward {
            retries: policy(RetryOn::SERVER_ERROR),
            timeout: Some(Duration::from_secs(1)),
            ..forward(&[("web", None, 1)])
        };
        let faulty = HttpRule { fault: Some(Box::new(fault)), ..forwarding(forward) };
        let world = mesh(Protocol::Http, faulty, TrafficPolicy::default());
        let start = Instant::now();
        let (status, body) = world.get(VIP, "web", "/").await;
        assert_eq!((status.as_u16(), body.as_str()), (503, "fault filter abort"));
        assert_eq!((start.elapsed().as_secs(), world.dials()), (5, 0));
        assert_eq!(world.counted(), ["503 DI,FI 1"]);
    });
}

/// The endpoint has not begun with it, so that the policy of whoever asks for no more than this must
/// keep its body.
#[test]
fn a_refused_request_is_sent_again_with_its_body() {
    for condition in [RetryOn::REFUSED_STREAM, RetryOn::RESET_BEFORE_REQUEST] {
        run(async {
            let rule_of = retrying(policy(condition));
            let world = mesh(Protocol::Http2, rule_of, TrafficPolicy::default());
            world.listen(
                A,
                raw(|io| async move {
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    while let Some(Ok((_, mut reply))) = connection.accept().await {
                        reply.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                }),
            );
            let answer = |request: Request<Incoming>| async move {
                Response::new(full(text_of(request.into_body()).await))
            };
            world.listen(B, hyper(HttpVersion::Http2, answer));
            for _ in 0..6 {
                let sent = post(full("one two three"));
                let response = world.http1(VIP).await.send_request(sent).await.unwrap();
                assert_eq!(response.status(), 200, "{condition:?}");
                assert_eq!(text(response).await, "one two three");
            }
            let dialled = world.net.dialled.borrow();
            assert!(dialled.iter().any(|(_, at)| at.to_string() == A), "some first went to A");
        });
    }
}

/// A trailers-only answer of gRPC is retried by the default policy, its message sent again.
#[test]
fn grpc_statuses_in_the_head_are_retried() {
    run(async {
        let rule_of = retrying(RetryPolicy::default());
        let world = mesh(Protocol::Grpc, rule_of, TrafficPolicy::default());
        let bodies: Rc<RefCell<Vec<String>>> = Rc::default();
        for (address, code) in [(A, "14"), (B, "0")] {
            let bodies = bodies.clone();
            world.listen(
                address,
                hyper(HttpVersion::Http2, move |request| {
                    let bodies = bodies.clone();
                    async move {
                        let body = text_of(request.into_body()).await;
                        bodies.borrow_mut().push(body);
                        let answer = Response::builder().header("grpc-status", code);
                        answer.body(full("")).unwrap()
                    }
                }),
            );
        }
        let mut client = world.http2(VIP).await;
        for _ in 0..6 {
            let request = Request::post("http://web/shop.Web/Get")
                .header("content-type", "application/grpc")
                .body(full("message"));
            let response = client.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "0");
        }
        let bodies = bodies.borrow();
        assert!(bodies.len() > 6, "some first went to A");
        assert!(bodies.iter().all(|body| body == "message"), "{bodies:?}");
    });
}

/// An endpoint that fails is ejected for this client, after which nothing is retried.
#[test]
fn failures_that_are_retried_count_for_ejection() {
    run(async {
        let outlier = OutlierDetection {
            consecutive_5xx: 3,
            max_ejection_percent: 100,
            ..OutlierDetection::default()
        };
        let traffic = TrafficPolicy {
            load_balancer: LoadBalancer::RoundRobin,
            outlier: Some(Arc::new(outlier)),
            ..TrafficPolicy::default()
        };
        let world = mesh(Protocol::Http, retrying(policy(RetryOn::SERVER_ERROR)), traffic);
        let (a, b) = (Seen::default(), Seen::default());
        a.serve(&world, A, &[500]);
        b.serve(&world, B, &[200]);
        for _ in 0..40 {
            assert_eq!(world.get(VIP, "web", "/").await.0, 200);
        }
        assert_eq!(a.take().len(), 3);
        assert_eq!(b.take().len(), 40);
    });
}
