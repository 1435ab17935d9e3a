//! The engine over in-memory streams: real hyper clients on one side, servers that misbehave as
//! asked on the other, a paused clock in between.

mod dialled;
mod early;
mod external;
mod failure;
mod hostile;
mod hostile_http2;
mod hostile_http2_endpoint;
mod hostile_request;
mod hostile_response;
mod leaving;
mod origination;
mod protocol;
mod rate_limits;
mod retries;
mod routing;
mod shaping;
mod split;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Connect, ConnectError, ConnectionFacts, Engine, HttpVersion, serve};
use crate::balance::fixture::pod;
use crate::balance::{Draws, Live, LiveHandle};
use crate::model::{ConnectionPool, Endpoint, Snapshot, TlsTarget, Workload};
use crate::telemetry::Metrics;
use crate::tunnel::Quota;

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
type Handler = Rc<dyn Fn(Request<Incoming>) -> LocalBoxFuture<'static, Response<Body>>>;
type RawHandler = Rc<dyn Fn(DuplexStream) -> LocalBoxFuture<'static, ()>>;

/// Source UID and address.
type Dial = (Arc<str>, SocketAddr);

/// Bytes that an in-memory stream buffers: like a socket, less than a large body.
const PIPE: usize = 16 * 1024;

/// What answers at an address.
#[derive(Clone)]
enum Server {
    /// hyper, in either version.
    Hyper(HttpVersion, Handler),
    /// Bytes.
    Raw(RawHandler),
    /// Never answers the connect.
    Hangs,
}

/// The network: who listens, and who dialled whom.
#[derive(Clone, Default)]
struct Net {
    servers: Rc<RefCell<FxHashMap<SocketAddr, Server>>>,
    dialled: Rc<RefCell<Vec<Dial>>>,
    /// In which TLS.
    secured: Rc<RefCell<Vec<Option<TlsTarget>>>>,
    /// Of what has been opened since it was last cancelled.
    retired: Rc<RefCell<CancellationToken>>,
    tasks: TaskTracker,
}

impl Connect for Net {
    type Io = DuplexStream;

    fn retired(&self, _: &DuplexStream) -> Option<CancellationToken> {
        Some(self.retired.borrow().clone())
    }

    async fn connect(
        &self,
        source: &Arc<Workload>,
        endpoint: &Endpoint,
        _pool: &ConnectionPool,
        tls: Option<&TlsTarget>,
    ) -> Result<DuplexStream, ConnectError> {
        self.dialled.borrow_mut().push((source.uid.clone(), endpoint.address));
        self.secured.borrow_mut().push(tls.cloned());
        let server = self.servers.borrow().get(&endpoint.address).cloned();
        let (near, far) = tokio::io::duplex(PIPE);
        match server {
            None => return Err(ConnectError::Remote("connection refused".to_owned())),
            Some(Server::Hangs) => std::future::pending().await,
            Some(Server::Raw(handler)) => drop(self.tasks.spawn_local(handler(far))),
            Some(Server::Hyper(version, handler)) => {
                drop(self.tasks.spawn_local(serve_with(version, handler, far, self.tasks.clone())));
            }
        }
        Ok(near)
    }
}

async fn serve_with(version: HttpVersion, handler: Handler, io: DuplexStream, tasks: TaskTracker) {
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let io = TokioIo::new(io);
    // A test that ends early breaks these connections.
    let _ = match version {
        HttpVersion::Http1 => {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
        }
        HttpVersion::Http2 => {
            hyper::server::conn::http2::Builder::new(LocalExecutor(tasks))
                .serve_connection(io, service)
                .await
        }
    };
}

/// Where the tasks of hyper's HTTP/2 connections run.
#[derive(Clone, Debug)]
struct LocalExecutor(TaskTracker);

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_local(future);
    }
}

/// A mesh of one client pod.
struct World {
    net: Net,
    live: LiveHandle,
    engine: Engine<Net>,
    registry: Registry,
    client: Arc<Workload>,
    quota: Arc<Quota>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

const VIP: &str = "10.96.0.1:80";
const A: &str = "10.0.0.1:8080";
const B: &str = "10.0.0.2:8080";

/// The client pod of all worlds.
fn client() -> Arc<Workload> {
    pod("client", &["10.0.0.9"], "")
}

impl World {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        let mut registry = Registry::default();
        let telemetry = Metrics::register(&mut registry).worker();
        let (net, tasks) = (Net::default(), TaskTracker::new());
        let live = Live::handle(snapshot);
        let draws = Draws::seeded(11);
        let engine = Engine::new(live.clone(), telemetry, net.clone(), draws, tasks.clone());
        let shutdown = CancellationToken::new();
        let quota = Quota::unlimited();
        Self { net, live, engine, registry, client: client(), quota, shutdown, tasks }
    }

    fn listen(&self, address: &str, server: Server) {
        self.net.servers.borrow_mut().insert(address.parse().unwrap(), server);
    }

    /// A server that answers with `text` and remembers the heads that it got.
    fn answers(&self, address: &str, version: HttpVersion, text: &'static str) -> Heads {
        let heads = Heads::default();
        let seen = heads.clone();
        self.listen(
            address,
            Server::Hyper(
                version,
                Rc::new(move |request| {
                    seen.borrow_mut().push(request.into_parts().0);
                    Box::pin(async move { Response::new(full(text)) })
                }),
            ),
        );
        heads
    }

    fn change(&self, snapshot: Arc<Snapshot>) {
        self.live.store(Arc::new(self.live.load().next(snapshot)));
    }

    /// A captured connection: the application's end of it.
    fn open(&self, source: &Arc<Workload>, dialled: &str, version: HttpVersion) -> DuplexStream {
        let (application, captured) = tokio::io::duplex(PIPE);
        let facts = ConnectionFacts {
            source: source.clone(),
            peer: "10.0.0.9:40000".parse().unwrap(),
            destination: dialled.parse().unwrap(),
            quota: self.quota.clone(),
        };
        let (engine, shutdown) = (self.engine.clone(), self.shutdown.clone());
        self.tasks.spawn_local(async move {
            let _ = serve(&engine, captured, facts, version, shutdown).await;
        });
        application
    }

    async fn http1(&self, dialled: &str) -> http1::SendRequest<Body> {
        self.http1_of(&self.client, dialled).await
    }

    async fn http1_of(&self, source: &Arc<Workload>, dialled: &str) -> http1::SendRequest<Body> {
        let io = TokioIo::new(self.open(source, dialled, HttpVersion::Http1));
        let (sender, connection) = http1::handshake(io).await.unwrap();
        self.tasks.spawn_local(connection);
        sender
    }

    async fn http2(&self, dialled: &str) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.open(&self.client, dialled, HttpVersion::Http2));
        // As curl and gRPC clients do: no stream of this client may starve another.
        let (sender, connection) = http2::Builder::new(LocalExecutor(self.tasks.clone()))
            .initial_connection_window_size(super::http2::CONNECTION_WINDOW)
            .initial_stream_window_size(64 * 1024)
            .handshake(io)
            .await
            .unwrap();
        self.tasks.spawn_local(connection);
        sender
    }

    /// One request on a connection of its own: status and body.
    async fn get(&self, dialled: &str, host: &str, path: &str) -> (StatusCode, String) {
        let response = self.http1(dialled).await.send_request(get(host, path)).await.unwrap();
        (response.status(), text(response).await)
    }

    /// What carries the present connections is to end.
    fn retire(&self) {
        self.net.retired.replace(CancellationToken::new()).cancel();
    }

    fn dials(&self) -> usize {
        self.net.dialled.borrow().len()
    }

    /// The request counters: `code flags count`.
    fn counted(&self) -> Vec<String> {
        let mut encoded = String::new();
        prometheus_client::encoding::text::encode(&mut encoded, &self.registry).unwrap();
        let label = |line: &str, name: &str| {
            let rest = line.split_once(&format!("{name}=\"")).unwrap().1.to_owned();
            rest.split_once('"').unwrap().0.to_owned()
        };
        let mut found: Vec<String> = encoded
            .lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .map(|line| {
                let count = line.rsplit(' ').next().unwrap();
                let (code, flags) = (label(line, "response_code"), label(line, "response_flags"));
                format!("{code} {flags} {count}")
            })
            .collect();
        found.sort();
        found
    }
}

impl World {
    /// The same whatever endpoint they went to: how many had this code and these flags.
    fn total(&self, code_and_flags: &str) -> usize {
        let of = |line: String| {
            let (found, count) = line.rsplit_once(' ')?;
            (found == code_and_flags).then(|| count.parse::<usize>().unwrap())
        };
        self.counted().into_iter().filter_map(of).sum()
    }
}

type Heads = Rc<RefCell<Vec<http::request::Parts>>>;

/// Runs a test on one thread, with a clock that only moves when nothing else can.
fn run<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().unwrap();
    // The clock moves once nothing else can: a test that waits for nothing fails at once.
    let limited = async { tokio::time::timeout(Duration::from_secs(86_400), test).await };
    LocalSet::new().block_on(&runtime, limited).expect("the test waits for what never comes")
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn get(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(full("")).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Reads until `end` has been seen.
async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(end) {
        let mut chunk = [0; 1024];
        let length = io.read(&mut chunk).await.unwrap();
        assert_ne!(length, 0, "ended after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(read).unwrap()
}

async fn write(io: &mut DuplexStream, text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
}

fn raw<F: Future<Output = ()> + 'static>(handler: impl Fn(DuplexStream) -> F + 'static) -> Server {
    Server::Raw(Rc::new(move |io| Box::pin(handler(io))))
}

fn hyper<F: Future<Output = Response<Body>> + 'static>(
    version: HttpVersion,
    handler: impl Fn(Request<Incoming>) -> F + 'static,
) -> Server {
    Server::Hyper(version, Rc::new(move |request| Box::pin(handler(request))))
}
