//! Faults, CORS, mirrors, sticky requests and limits, through the whole engine.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::future::join_all;
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::routing::{forward, forwarding, virtual_service};
use super::*;
use crate::balance::fixture::{endpoint, rule, service, snapshot};
use crate::model::{
    Action, ConnectionPool, Cors, DirectResponse, Fault, FaultAbort, Forward, HashCookie, HashKey,
    HttpRule, LoadBalancer, Mirror, OutlierDetection, Protocol, ServiceKey, Share, StringMatch,
    Subset, TrafficPolicy,
};

const HOST: &str = "web.shop.svc.cluster.local";
/// A second service's only endpoint.
const M: &str = "10.0.0.3:8080";

/// A is version v1, B is v2, M is the service `mirror`.
fn mesh(rule_of: HttpRule, traffic: TrafficPolicy) -> World {
    World::new(snapshot_of(rule_of, traffic))
}

fn snapshot_of(rule_of: HttpRule, traffic: TrafficPolicy) -> Arc<Snapshot> {
    let http = |port| (port, Protocol::Http);
    let endpoints = vec![endpoint(A, "v1"), endpoint(B, "v2")];
    let web = service(("shop", "web"), "10.96.0.1", http(80), endpoints);
    let mirror = service(("shop", "mirror"), "10.96.0.2", http(80), vec![endpoint(M, "")]);
    let mut destination = rule(HOST, &["v1", "v2"], LoadBalancer::RoundRobin);
    destination.policy = traffic.clone();
    for subset in &mut destination.subsets {
        *subset = Subset { policy: traffic.clone(), ..subset.clone() };
    }
    let routes = virtual_service("web", &[HOST], vec![rule_of]);
    snapshot(&[client()], vec![web, mirror], vec![routes], vec![destination])
}

fn to_web() -> Forward {
    forward(&[("web", None, 1)])
}

fn percent(percent: f64) -> Share {
    Share::percent(percent).unwrap()
}

fn faulty(delay: Option<(Duration, Share)>, abort: Option<(FaultAbort, Share)>) -> World {
    let fault = Some(Box::new(Fault { delay, abort }));
    let world = mesh(HttpRule { fault, ..forwarding(to_web()) }, TrafficPolicy::default());
    world.answers(A, HttpVersion::Http1, "A");
    world.answers(B, HttpVersion::Http1, "B");
    world
}

#[test]
fn delays_hold_up_their_share_and_nothing_else() {
    run(async {
        let world = faulty(Some((Duration::from_secs(10), percent(50.0))), None);
        let mut held = 0;
        for _ in 0..400 {
            let start = Instant::now();
            assert_eq!(world.get(VIP, "web", "/").await.0, 200);
            match start.elapsed().as_secs() {
                0 => {}
                10 => held += 1,
                other => panic!("{other} s"),
            }
        }
        // Five standard deviations of a binomial(400, 0.5) are 50.
        assert!((150..=250).contains(&held), "{held}");
        assert_eq!((world.total("200 DI"), world.total("200 -")), (held, 400 - held));
    });
}

#[test]
fn aborts_answer_in_envoys_words_and_reach_nobody() {
    run(async {
        let world =
            faulty(None, Some((FaultAbort::Http(StatusCode::INTERNAL_SERVER_ERROR), Share::ALL)));
        let response = world.http1(VIP).await.send_request(get("web", "/")).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(response.headers()["content-length"], "18");
        assert_eq!(text(response).await, "fault filter abort");
        assert_eq!((world.dials(), world.counted()), (0, vec!["500 FI 1".to_owned()]));
    });
}

/// Envoy's fault filter comes before its router, which looks for the destination.
#[test]
fn an_abort_comes_before_a_missing_destination() {
    run(async {
        for (host, subset) in [("web", Some("nope")), ("nobody", None)] {
            let fault = |share| {
                let abort = Some((FaultAbort::Http(StatusCode::IM_A_TEAPOT), share));
                Some(Box::new(Fault { delay: None, abort }))
            };
            let to = forwarding(forward(&[(host, subset, 1)]));
            let rule_of = |share| HttpRule { fault: fault(share), ..to.clone() };
            let world = mesh(rule_of(Share::ALL), TrafficPolicy::default());
            assert_eq!(world.get(VIP, "web", "/").await.0, 418);
            assert_eq!(world.counted(), ["418 FI 1"]);
            world.change(snapshot_of(rule_of(Share::NONE), TrafficPolicy::default()));
            assert_eq!(world.get(VIP, "web", "/").await.0, 503);
            assert_eq!(world.counted(), ["418 FI 1", "503 NC 1"]);
        }
    });
}

/// As of Envoy's local replies, who speaks gRPC gets trailers only, and who does not gets HTTP.
#[test]
fn a_grpc_abort_is_told_to_each_in_its_own_words() {
    run(async {
        let world = faulty(None, Some((FaultAbort::Grpc(14), Share::ALL)));
        let mut client = world.http1(VIP).await;
        let mut request = get("web", "/");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "fault filter abort");
        assert_eq!(text(response).await, "");
        client.ready().await.unwrap();
        let response = client.send_request(get("web", "/")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("grpc-status"));
        assert_eq!(text(response).await, "fault filter abort");
        assert_eq!(world.counted(), ["200 FI 1", "503 FI 1"]);
    });
}

#[test]
fn direct_responses_are_told_to_each_in_its_own_words() {
    run(async {
        for (status, code) in [(503, "14"), (404, "12"), (200, "2")] {
            let body = Bytes::from_static(b"closed for today");
            let status = StatusCode::from_u16(status).unwrap();
            let action = Action::Direct(DirectResponse { status, body });
            let rule_of = HttpRule { action, ..forwarding(to_web()) };
            let world = mesh(rule_of, TrafficPolicy::default());
            assert_eq!(world.get(VIP, "web", "/").await, (status, "closed for today".to_owned()));
            let request = Request::post("http://web/shop.Web/Get")
                .header("content-type", "application/grpc")
                .body(full("message"));
            let response = world.http2(VIP).await.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert_eq!(response.headers()["grpc-status"], code);
            assert_eq!(response.headers()["grpc-message"], "closed for today");
            assert_eq!(text(response).await, "");
        }
    });
}

#[test]
fn cors_answers_preflights_and_marks_answers() {
    run(async {
        let cors = Cors {
            allow_origins: vec![StringMatch::Exact("https://a.example".into())],
            allow_methods: Some("GET".parse().unwrap()),
            forward_unmatched: true,
            ..Cors::default()
        };
        let with_cors = HttpRule { cors: Some(Box::new(cors)), ..forwarding(to_web()) };
        let world = mesh(with_cors, TrafficPolicy::default());
        let (a, b) =
            (world.answers(A, HttpVersion::Http1, "A"), world.answers(B, HttpVersion::Http1, "B"));
        let mut client = world.http1(VIP).await;
        let mut ask = async |method: &str, origin: &str| {
            let request = Request::builder().method(method).uri("/").header("host", "web");
            let request = request.header("origin", origin);
            let request = request.header("access-control-request-method", "GET");
            client.ready().await.unwrap();
            let response = client.send_request(request.body(full("")).unwrap()).await.unwrap();
            let allowed = response.headers().get("access-control-allow-origin").cloned();
            let status = response.status();
            text(response).await;
            (status.as_u16(), allowed.map(|origin| origin.to_str().unwrap().to_owned()))
        };
        let ours = Some("https://a.example".to_owned());
        assert_eq!(ask("OPTIONS", "https://a.example").await, (200, ours.clone()));
        assert_eq!(a.borrow().len() + b.borrow().len(), 0, "answered here");
        assert_eq!(ask("GET", "https://a.example").await, (200, ours));
        assert_eq!(ask("GET", "https://b.example").await, (200, None));
        assert_eq!(ask("OPTIONS", "https://b.example").await, (200, None));
        assert_eq!(a.borrow().len() + b.borrow().len(), 3, "the others go on");
    });
}

fn mirroring(share: Share) -> HttpRule {
    let mirror = Mirror {
        host: "mirror.shop.svc.cluster.local".into(),
        service: Some(ServiceKey { namespace: "shop".into(), name: "mirror".into() }),
        subset: None,
        port: None,
        share,
    };
    forwarding(Forward { mirrors: vec![mirror], ..to_web() })
}

/// What a mirror got: head and body.
type Copies = Rc<RefCell<Vec<(http::request::Parts, String)>>>;

fn mirror(world: &World) -> Copies {
    let copies = Copies::default();
    let seen = copies.clone();
    let handler = move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().to_vec());
            let body = body.unwrap_or_else(|error| format!("broken: {error}").into_bytes());
            seen.borrow_mut().push((parts, String::from_utf8(body).unwrap()));
            let mut response = Response::new(full("nobody reads this"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    };
    world.listen(M, hyper(HttpVersion::Http1, handler));
    copies
}

/// Lets what goes on in the background come to an end.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[test]
fn mirrors_get_their_share_and_their_answers_are_dropped() {
    run(async {
        for (share, least, most) in
            [(Share::ALL, 200, 200), (percent(10.0), 2, 40), (Share::NONE, 0, 0)]
        {
            let world = mesh(mirroring(share), TrafficPolicy::default());
            world.answers(A, HttpVersion::Http1, "A");
            world.answers(B, HttpVersion::Http1, "B");
            let copies = mirror(&world);
            let mut client = world.http1(VIP).await;
            for _ in 0..200 {
                client.ready().await.unwrap();
                let response = client.send_request(get("web", "/path?q=1")).await.unwrap();
                assert_eq!(response.status(), 200);
                text(response).await;
            }
            settle().await;
            let copies = copies.borrow();
            assert!((least..=most).contains(&copies.len()), "{}", copies.len());
            for (head, _) in copies.iter() {
                assert_eq!(head.uri.path_and_query().unwrap(), "/path?q=1");
                assert_eq!(head.headers["host"], "web", "no suffix, as Istio has it since 1.28");
            }
            assert_eq!(world.total("200 -"), 200, "copies are not requests of the client");
        }
    });
}

#[test]
fn a_mirrors_body_is_the_originals() {
    run(async {
        let world = mesh(mirroring(Share::ALL), TrafficPolicy::default());
        let bodies: Rc<RefCell<Vec<String>>> = Rc::default();
        for address in [A, B] {
            let bodies = bodies.clone();
            let handler = move |request: Request<Incoming>| {
                let bodies = bodies.clone();
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    bodies.borrow_mut().push(String::from_utf8(body.to_vec()).unwrap());
                    Response::new(full("ok"))
                }
            };
            world.listen(address, hyper(HttpVersion::Http1, handler));
        }
        let copies = mirror(&world);
        let long = "0123456789".repeat(50_000);
        for body in [full(long.clone()), full("short")] {
            let request = Request::post("/").header("host", "web").body(body).unwrap();
            let response = world.http1(VIP).await.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
        }
        settle().await;
        let copies: Vec<_> = copies.borrow().iter().map(|(_, body)| body.clone()).collect();
        assert_eq!(copies, [long, "short".to_owned()]);
        assert_eq!(*bodies.borrow(), copies);
    });
}

#[test]
fn a_mirror_that_hangs_or_is_away_holds_up_nobody() {
    run(async {
        for server in [None, Some(Server::Hangs)] {
            let world = mesh(mirroring(Share::ALL), TrafficPolicy::default());
            for address in [A, B] {
                let handler = |request: Request<Incoming>| async {
                    let length = request.into_body().collect().await.unwrap().to_bytes().len();
                    Response::new(full(length.to_string()))
                };
                world.listen(address, hyper(HttpVersion::Http1, handler));
            }
            if let Some(server) = server {
                world.listen(M, server);
            }
            let start = Instant::now();
            for _ in 0..200 {
                let body = full("x".repeat(500_000));
                let request = Request::post("/").header("host", "web").body(body).unwrap();
                let response = world.http1(VIP).await.send_request(request).await.unwrap();
                assert_eq!(text(response).await, "500000");
            }
            assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
            let dialled =
                world.net.dialled.borrow().iter().filter(|(_, at)| at.to_string() == M).count();
            assert!((64..=200).contains(&dialled), "{dialled}: no more copies wait than may");
        }
    });
}

/// What a copy's endpoint does says as much about it as what it does for a request: its gRPC status,
/// and that it does not answer in time.
#[test]
fn copies_count_for_outlier_detection_as_requests_do() {
    run(async {
        for hangs in [false, true] {
            let grpc = |port| (port, Protocol::Grpc);
            let web = service(("shop", "web"), "10.96.0.1", grpc(80), vec![endpoint(A, "v1")]);
            let copies = vec![endpoint(M, ""), endpoint(B, "")];
            let mirror = service(("shop", "mirror"), "10.96.0.2", grpc(80), copies);
            let outlier = OutlierDetection {
                consecutive_5xx: 2,
                max_ejection_percent: 100,
                base_ejection: Duration::from_secs(3600),
                ..OutlierDetection::default()
            };
            let mut destination =
                rule("mirror.shop.svc.cluster.local", &[], LoadBalancer::RoundRobin);
            destination.policy.outlier = Some(Arc::new(outlier));
            let routes = virtual_service("web", &[HOST], vec![mirroring(Share::ALL)]);
            let pods = [client()];
            let world =
                World::new(snapshot(&pods, vec![web, mirror], vec![routes], vec![destination]));
            // The bad one is the mirror's endpoint M: unavailable in words of gRPC, or silent.
            let asked = Rc::new(RefCell::new(Vec::new()));
            for (address, status) in [(A, "0"), (B, "0"), (M, "14")] {
                let asked = asked.clone();
                let handler = move |_| {
                    asked.borrow_mut().push(address);
                    async move {
                        if hangs && address == M {
                            std::future::pending::<()>().await;
                        }
                        let answer = Response::builder().header("grpc-status", status);
                        answer.body(full("")).unwrap()
                    }
                };
                world.listen(address, hyper(HttpVersion::Http2, handler));
            }
            let mut client = world.http2(VIP).await;
            for _ in 0..10 {
                let request = Request::post("http://web/shop.Web/Get")
                    .header("content-type", "application/grpc")
                    .body(full("message"));
                let response = client.send_request(request.unwrap()).await.unwrap();
                assert_eq!(response.headers()["grpc-status"], "0");
                // Longer than a copy waits.
                tokio::time::sleep(Duration::from_secs(if hangs { 31 } else { 1 })).await;
            }
            let asked = asked.borrow();
            let of_mirror: Vec<_> = asked.iter().filter(|at| **at != A).collect();
            assert_eq!(of_mirror.len(), 10);
            let of_bad = of_mirror.iter().filter(|at| ***at == M).count();
            assert_eq!(of_bad, 2, "then it is left out: {of_mirror:?}");
        }
    });
}

fn sticky(key: HashKey) -> TrafficPolicy {
    TrafficPolicy {
        load_balancer: LoadBalancer::Maglev { size: 65_537 },
        hash_key: Some(key),
        ..TrafficPolicy::default()
    }
}

/// Which version each of these users gets, asked three times each.
async fn versions(world: &World, users: u32) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    let mut client = world.http1(VIP).await;
    for _ in 0..3 {
        for user in 0..users {
            let mut request = get("web", "/");
            request.headers_mut().insert("x-user", user.into());
            client.ready().await.unwrap();
            let answer = text(client.send_request(request).await.unwrap()).await;
            let before = found.insert(user, answer.clone());
            assert!(before.is_none_or(|before| before == answer), "user {user} has moved");
        }
    }
    found
}

/// Consistent hashing with weighted subsets: the same user always meets the same version, and a
/// change of weights moves those who must move.
#[test]
fn a_canary_is_sticky() {
    run(async {
        let split = |v1, v2| {
            let to = forward(&[("web", Some("v1"), v1), ("web", Some("v2"), v2)]);
            snapshot_of(forwarding(to), sticky(HashKey::Header("x-user".parse().unwrap())))
        };
        let world = World::new(split(90, 10));
        world.answers(A, HttpVersion::Http1, "v1");
        world.answers(B, HttpVersion::Http1, "v2");
        let before = versions(&world, 1_000).await;
        let of = |found: &BTreeMap<u32, String>, version| {
            found.values().filter(|found| *found == version).count()
        };
        // Five standard deviations of a binomial(1000, 0.1) are 47.
        assert!(of(&before, "v2").abs_diff(100) < 48, "{}", of(&before, "v2"));
        world.change(split(80, 20));
        let after = versions(&world, 1_000).await;
        assert!(of(&after, "v2").abs_diff(200) < 64, "{}", of(&after, "v2"));
        for (user, version) in &before {
            assert!(version == "v1" || after[user] == "v2", "user {user} has gone back");
        }
        // A rolled back change brings everybody back.
        world.change(split(90, 10));
        assert_eq!(versions(&world, 1_000).await, before);
    });
}

#[test]
fn a_cookie_is_given_to_who_has_none_and_leads_back() {
    run(async {
        let cookie =
            HashCookie { name: "session".into(), made: Some("; Max-Age=60; Path=/".into()) };
        let world = mesh(forwarding(to_web()), sticky(HashKey::Cookie(cookie)));
        world.answers(A, HttpVersion::Http1, "A");
        world.answers(B, HttpVersion::Http1, "B");
        let mut met = BTreeMap::new();
        for _ in 0..20 {
            let response = world.http1(VIP).await.send_request(get("web", "/")).await.unwrap();
            let line = response.headers()["set-cookie"].to_str().unwrap().to_owned();
            let first = text(response).await;
            let (pair, rest) = line.split_once(';').unwrap();
            assert_eq!(rest, " Max-Age=60; Path=/");
            *met.entry(first.clone()).or_insert(0) += 1;
            for _ in 0..5 {
                let mut request = get("web", "/");
                request.headers_mut().insert("cookie", pair.parse().unwrap());
                let again = world.http1(VIP).await.send_request(request).await.unwrap();
                assert!(!again.headers().contains_key("set-cookie"));
                assert_eq!(text(again).await, first);
            }
        }
        assert_eq!(met.len(), 2, "different cookies meet different endpoints: {met:?}");
    });
}

/// A server whose requests take a second, and how many it has had at one moment.
fn slow(world: &World) -> Rc<Cell<usize>> {
    let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for address in [A, B] {
        let (now, most) = (now.clone(), most.clone());
        let handler = move |_| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                now.set(now.get() + 1);
                most.set(most.get().max(now.get()));
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.set(now.get() - 1);
                Response::new(full("slow"))
            }
        };
        world.listen(address, hyper(HttpVersion::Http1, handler));
    }
    most
}

fn pooled(pool: ConnectionPool) -> TrafficPolicy {
    TrafficPolicy { load_balancer: LoadBalancer::RoundRobin, pool, ..TrafficPolicy::default() }
}

/// Requests at one moment, each on a connection of its own: how many were answered, and how many met
/// a limit.
async fn at_once(world: &World, count: usize) -> (usize, usize) {
    let ask = async || {
        let response = world.http1(VIP).await.send_request(get("web", "/")).await.unwrap();
        let overloaded = response.headers().get("x-envoy-overloaded").is_some();
        match response.status().as_u16() {
            200 => true,
            503 => {
                assert!(overloaded);
                let body = text(response).await;
                assert!(body.ends_with("reset reason: overflow"), "{body}");
                false
            }
            other => panic!("{other}"),
        }
    };
    let answers = join_all((0..count).map(|_| ask())).await;
    let answered = answers.iter().filter(|answered| **answered).count();
    (answered, count - answered)
}

#[test]
fn requests_above_the_limit_are_refused_at_once() {
    run(async {
        let pool = ConnectionPool { max_requests: 3, ..ConnectionPool::default() };
        let world = mesh(forwarding(to_web()), pooled(pool));
        let most = slow(&world);
        assert_eq!(at_once(&world, 10).await, (3, 7));
        assert_eq!(most.get(), 3);
        assert_eq!(at_once(&world, 3).await, (3, 0), "places are given back");
        let counted = world.counted();
        assert!(counted.contains(&"503 UO 7".to_owned()), "{counted:?}");
    });
}

/// The numbers of Istio's circuit-breaking task, to one endpoint: one request at work, one waits.
#[test]
fn requests_wait_for_a_connection_as_many_as_may() {
    run(async {
        let pool = ConnectionPool {
            max_connections: 1,
            max_pending: 1,
            max_requests_per_connection: 1,
            ..ConnectionPool::default()
        };
        let only_a = forward(&[("web", Some("v1"), 1)]);
        let world = mesh(forwarding(only_a), pooled(pool));
        let most = slow(&world);
        let start = Instant::now();
        let first = at_once(&world, 1);
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            at_once(&world, 3).await
        };
        let (first, later) = futures_util::future::join(first, later).await;
        assert_eq!((first, later), ((1, 0), (1, 2)));
        assert_eq!(most.get(), 1, "never two at one moment");
        assert_eq!(start.elapsed().as_secs(), 2);
        assert_eq!(world.dials(), 2, "a connection for each request");
    });
}

/// The same over HTTP/2, where a connection that takes no more streams still serves the last one: its
/// head comes at once, and the rest a second later.
#[test]
fn streams_wait_for_a_connection_that_is_used_up() {
    run(async {
        let pool = ConnectionPool {
            max_connections: 1,
            max_pending: 1,
            max_requests_per_connection: 1,
            upgrade_to_http2: true,
            ..ConnectionPool::default()
        };
        let only_a = forward(&[("web", Some("v1"), 1)]);
        let world = mesh(forwarding(only_a), pooled(pool));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = most.clone();
        let handler = move |_| {
            let now = now.clone();
            counted.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            let rest = futures_util::stream::once(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, Relaxed);
                Ok(http_body::Frame::data(Bytes::from("slow")))
            });
            std::future::ready(Response::new(StreamBody::new(rest).boxed_unsync()))
        };
        world.listen(A, hyper(HttpVersion::Http2, handler));
        let start = Instant::now();
        let first = async { world.get(VIP, "web", "/").await };
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            at_once(&world, 3).await
        };
        let (first, later) = futures_util::future::join(first, later).await;
        assert_eq!((first, later), ((StatusCode::OK, "slow".to_owned()), (1, 2)));
        assert_eq!(most.load(Relaxed), 1, "never two at one moment");
        assert_eq!(start.elapsed().as_secs(), 1, "its head came after the first one's end");
        assert_eq!(world.dials(), 2, "a connection for each request");
    });
}

/// What leaves HTTP is a connection to the endpoint as before.
#[test]
fn a_websocket_keeps_its_place_among_connections() {
    run(async {
        let pool = ConnectionPool { max_connections: 1, ..ConnectionPool::default() };
        let only_a = forward(&[("web", Some("v1"), 1)]);
        let world = mesh(forwarding(only_a), pooled(pool));
        let server = |mut io: DuplexStream| async move {
            let head = read_until(&mut io, "\r\n\r\n").await;
            if head.starts_with("GET /ws ") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                              upgrade: websocket\r\n\r\n";
                write(&mut io, answer).await;
                // Until the client ends it.
                io.read_to_string(&mut String::new()).await.unwrap();
            } else {
                write(&mut io, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        };
        world.listen(A, raw(server));
        let mut websocket = world.open(&world.client, VIP, HttpVersion::Http1);
        let request = "GET /ws HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\n\
                       upgrade: websocket\r\n\r\n";
        write(&mut websocket, request).await;
        read_until(&mut websocket, "\r\n\r\n").await;
        let mut other = Box::pin(world.get(VIP, "web", "/"));
        let waits = tokio::time::timeout(Duration::from_secs(60), &mut other).await;
        assert!(waits.is_err(), "{waits:?}");
        assert_eq!(world.dials(), 1);
        drop(websocket);
        assert_eq!(other.await, (StatusCode::OK, "ok".to_owned()));
    });
}

#[test]
fn a_connection_is_used_as_often_as_it_may_be_and_idles_as_long() {
    run(async {
        let pool = ConnectionPool {
            max_requests_per_connection: 3,
            http_idle_timeout: Some(Duration::from_secs(5)),
            ..ConnectionPool::default()
        };
        let only_a = forward(&[("web", Some("v1"), 1)]);
        let world = mesh(forwarding(only_a), pooled(pool));
        let maintained = world.engine.clone();
        world.tasks.spawn_local(async move { maintained.maintain().await });
        world.answers(A, HttpVersion::Http1, "A");
        for _ in 0..7 {
            world.get(VIP, "web", "/").await;
        }
        assert_eq!(world.dials(), 3);
        tokio::time::sleep(Duration::from_secs(21)).await;
        world.get(VIP, "web", "/").await;
        assert_eq!(world.dials(), 4, "the one that idled was closed");
    });
}

/// `tcp.maxConnectionDuration`: an old connection serves no further request, but ends none.
#[test]
fn a_connection_that_is_too_old_is_not_used_again() {
    for upgrade_to_http2 in [false, true] {
        run(async {
            let pool = ConnectionPool {
                max_connection_duration: Some(Duration::from_secs(40)),
                http_idle_timeout: Some(Duration::from_secs(3600)),
                upgrade_to_http2,
                ..ConnectionPool::default()
            };
            let only_a = forward(&[("web", Some("v1"), 1)]);
            let world = mesh(forwarding(only_a), pooled(pool));
            let version = if upgrade_to_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
            let handler = |request: Request<Incoming>| async move {
                let seconds: u64 = request.uri().path()[1..].parse().unwrap();
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Response::new(full("ok"))
            };
            world.listen(A, hyper(version, handler));
            let open = || {
                let (http1, http2) = world.engine.shared.client.pool().len();
                http1 + http2
            };
            // At 0, 30 and 60 s; the last one takes 30 s.
            world.get(VIP, "web", "/0").await;
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(world.get(VIP, "web", "/0").await.0, 200);
            assert_eq!(world.dials(), 1, "not yet");
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(world.get(VIP, "web", "/30").await.0, 200);
            assert_eq!(world.dials(), 2);
            // It is 30 s old, and 35 s when the next one begins.
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(world.get(VIP, "web", "/50").await.0, 200, "it is not cut off");
            assert_eq!(world.dials(), 2);
            let maintained = world.engine.clone();
            world.tasks.spawn_local(async move { maintained.maintain().await });
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(open(), 0, "and closed once it idles");
        });
    }
}

#[test]
fn an_upgrade_policy_speaks_http2_to_an_http_port() {
    run(async {
        let pool = ConnectionPool { upgrade_to_http2: true, ..ConnectionPool::default() };
        let world = mesh(forwarding(to_web()), pooled(pool));
        let heads =
            [world.answers(A, HttpVersion::Http2, "A"), world.answers(B, HttpVersion::Http2, "B")];
        for _ in 0..4 {
            assert_eq!(world.get(VIP, "web", "/").await.0, 200);
        }
        let versions: Vec<_> = heads
            .iter()
            .flat_map(|heads| heads.borrow().iter().map(|h| h.version).collect::<Vec<_>>())
            .collect();
        assert_eq!(versions, [http::Version::HTTP_2; 4]);
    });
}
