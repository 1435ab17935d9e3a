//! The body of the fuzz target `http1`.
//!
//! The input is what a captured client writes on its connection, octet for octet, and, behind a mark,
//! perhaps what an endpoint answers. It runs through the real engine: `serve` (hyper's reader, the
//! routes, `form`, the bodies, `early`), its client and pool, and an endpoint in memory, under a
//! clock that stands still unless nothing else can go on. `message` reads what comes out.
//!
//! What must hold:
//! - the connection ends, whatever is written on it;
//! - an endpoint gets legal requests only: one framing, one host, no header of the client's hop;
//! - it gets no request that the client did not send, in the client's order, and each body is the
//!   client's, whole, or cut off together with the connection;
//! - the client gets legal responses only, no more final ones than requests, each whole, unless the
//!   endpoint itself broke off.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{Connections, Heard, Net, PIPE, Script, VIP};
use super::message::{End, Message, Rules, requests, response};
use crate::balance::{Draws, Live};
use crate::config::yaml_compile;
use crate::http::{ConnectionFacts, Engine, HttpVersion, serve};
use crate::model::Snapshot;
use crate::telemetry::Metrics;
use crate::tunnel::Quota;

/// On the paused clock: longer than every time-out in the engine.
const FOREVER: Duration = Duration::from_secs(86_400);
/// Between the client's octets and the endpoint's.
const MARK: &[u8] = b"\0\0\0\0";
/// Octets of an input's beginning that say how it is taken.
const CHOICES: usize = 2;

/// Who the client is.
const CLIENT_UID: &str = "uid-client";

/// One service with an endpoint; some paths are answered by the engine.
const MESH: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, uid: uid-client},
 status: {podIP: 10.0.0.9}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, uid: uid-web},
 status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}},
 addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [10.0.0.1]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - {match: [{uri: {prefix: /redirect}}], redirect: {uri: /, scheme: https}}
  - {match: [{uri: {prefix: /direct}}], directResponse: {status: 200, body: {string: here}}}
  - match: [{uri: {prefix: /rewrite}}]
    rewrite: {uri: /w, authority: other}
    headers: {request: {set: {x-set: a}, remove: [x-gone]}, response: {add: {x-added: b}}}
    route: [{destination: {host: web}}]
    timeout: 5s
  - {route: [{destination: {host: web}}], timeout: 5s}
";

thread_local! {
    static SNAPSHOT: OnceCell<Arc<Snapshot>> = const { OnceCell::new() };
}

/// Serves a client that writes `data`.
///
/// # Panics
/// If anything above does not hold.
pub fn run(data: &[u8]) {
    let (choices, data) = data.split_at(CHOICES.min(data.len()));
    let [behaviour, cut] = *choices else { return };
    let mark = data.windows(MARK.len()).position(|window| window == MARK);
    let (client, says) = match mark {
        Some(at) => (&data[..at], Some(data[at + MARK.len()..].to_vec())),
        None => (data, None),
    };
    let [early, switches, informs] = [1, 2, 4].map(|bit| behaviour & bit != 0);
    let script = Script { early, switches, informs, says };
    let seen = Connections::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap_or_else(|error| panic!("no runtime: {error}"));
    let exchange = exchange(client, usize::from(cut) + 1, &script, &seen);
    let limited = async { tokio::time::timeout(FOREVER, exchange).await };
    let Ok(answers) = LocalSet::new().block_on(&runtime, limited) else {
        panic!("the connection never ends: {:?}", client.escape_ascii().to_string())
    };
    let (asked, _) = requests(client, Rules::Lenient);
    let told = check_client(&answers, &asked, script.says.is_none());
    check_endpoint(&seen.borrow(), &asked, &script);
    assert!(told <= asked.len() + 1, "more answers than requests");
}

/// The client writes, in pieces, and reads until the end.
async fn exchange(client: &[u8], cut: usize, script: &Script, seen: &Connections) -> Vec<u8> {
    let snapshot = SNAPSHOT.with(|snapshot| {
        Arc::clone(snapshot.get_or_init(|| Arc::new(yaml_compile(MESH.as_bytes()).snapshot)))
    });
    let source = snapshot.workloads_by_uid.get(CLIENT_UID).cloned();
    let source = source.unwrap_or_else(|| panic!("the client's pod is there"));
    let facts = ConnectionFacts {
        source,
        peer: ([10, 0, 0, 9], 40_000).into(),
        destination: VIP.into(),
        quota: Quota::unlimited(),
    };
    let tasks = TaskTracker::new();
    let net = Net { script: script.clone(), seen: Rc::clone(seen), tasks: tasks.clone() };
    let telemetry = Metrics::register(&mut Registry::default()).worker();
    let live = Live::handle(snapshot);
    let engine = Engine::new(live, telemetry, net, Draws::seeded(11), tasks.clone());
    let (application, captured) = tokio::io::duplex(PIPE);
    tasks.spawn_local(async move {
        // How it ends is seen on the client's side.
        let _ = serve(&engine, captured, facts, HttpVersion::Http1, CancellationToken::new()).await;
    });
    let (mut reader, mut writer) = tokio::io::split(application);
    let write = async {
        for piece in client.chunks(cut) {
            if writer.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // Not before all is answered: who ends its half has gone.
        tokio::time::sleep(FOREVER / 2).await;
        // It may have been closed by the other side.
        let _ = writer.shutdown().await;
    };
    let mut answers = Vec::new();
    let read = async {
        // A broken connection has ended too.
        let _ = reader.read_to_end(&mut answers).await;
    };
    tokio::join!(write, read);
    answers
}

// === what must hold ===

/// The requests that reached the endpoint, against those that the client sent.
fn check_endpoint(seen: &[Rc<RefCell<Heard>>], asked: &[Message], script: &Script) {
    let mut sent = asked.iter();
    // With an endpoint that misbehaves a request may be sent again.
    let once = script.says.is_none() && seen.len() == 1;
    for heard in seen {
        let heard = heard.borrow();
        let octets = heard.http.map_or(&*heard.octets, |length| &heard.octets[..length]);
        let (requests, bad) = requests(octets, Rules::Strict);
        let text = || octets.escape_ascii().to_string();
        assert!(!bad, "an endpoint gets {}", text());
        for request in &requests {
            check_forwarded(request);
            if once {
                // The next one of the client's that could be it: the engine answers others itself.
                let found = sent.any(|own| is_same(request, own));
                assert!(found, "the client did not send {request:?}, but {asked:?}");
            }
        }
        let all = requests.len() <= asked.len();
        assert!(all, "{} requests became {}: {}", asked.len(), requests.len(), text());
    }
}

fn check_forwarded(request: &Message) {
    let hosts = request.all("host").count();
    assert_eq!(hosts, 1, "hosts of {request:?}");
    assert_eq!(request.start[2], "HTTP/1.1");
    for hop in ["keep-alive", "proxy-connection"] {
        assert!(!request.has(hop), "{hop} of {request:?}");
    }
    for value in request.all("connection") {
        let own = ["upgrade", "te"].into_iter().find(|own| value == own.as_bytes());
        assert!(own.is_some_and(|own| request.has(own)), "connection of {request:?}");
    }
}

/// Whether what an endpoint got is this request of the client's: method, and body as far as it goes.
fn is_same(got: &Message, own: &Message) -> bool {
    let body = match got.end {
        End::Complete => got.body == own.body && own.end == End::Complete,
        End::Partial | End::Bad => own.body.starts_with(&got.body),
    };
    got.start[0] == own.start[0] && body
}

/// The responses, against the requests. Returns the number of final ones.
fn check_client(answers: &[u8], asked: &[Message], behaved: bool) -> usize {
    let mut rest = answers;
    let mut number = 0;
    let text = || answers.escape_ascii().to_string();
    while !rest.is_empty() {
        let method = asked.get(number).map_or("", |request| &request.start[0]);
        let Ok(answer) = response(rest, method) else { panic!("the client gets {}", text()) };
        let Some(answer) = answer else {
            panic!("the client gets half a head: {}", text());
        };
        rest = rest.get(answer.length..).unwrap_or_default();
        let status = answer.status();
        let switched = status == 101 || (method == "CONNECT" && status / 100 == 2);
        if switched || status < 200 {
            let framed = answer.has("content-length") || answer.has("transfer-encoding");
            assert!(!framed, "no body, but a length: {}", text());
        }
        if switched {
            return number + 1;
        }
        if status < 200 {
            continue;
        }
        number += 1;
        assert_ne!(answer.end, End::Bad, "the client gets {}", text());
        assert!(!(behaved && answer.end == End::Partial), "the client gets half: {}", text());
        assert!(!behaved || !answer.until_close || old(asked, number), "no length: {}", text());
    }
    number
}

/// Whether the client's request of this number, from 1, is of HTTP/1.0, which has no chunks.
fn old(asked: &[Message], number: usize) -> bool {
    asked.get(number - 1).is_some_and(|request| request.start[2] == "HTTP/1.0")
}
