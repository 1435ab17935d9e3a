//! Connections that an application of this node opens: where to, what do they speak, and then the
//! HTTP engine or a plain copy.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::copy::{self, Broken};
use super::first_bytes::{Seen, first_bytes};
use super::inbound::{count, unmapped};
use super::listener::Accepted;
use super::worker::Worker;
use crate::balance::{ActiveGuard, Ask, Live};
use crate::capture::Destination;
use crate::http::{self, ConnectionFacts, HttpVersion};
use crate::model::{Protocol, Service, SpiffeId, Workload};
use crate::telemetry::{ConnectionRecord, ConnectionStart, Layer, Reporter, ResponseFlag};
use crate::tunnel::{LocalPod, OpenError, Quota, Security, UpstreamIo, reset_tcp};

/// How long an undeclared port's client may be silent before its upstream is opened, so that a
/// server that speaks first is heard. Clients of HTTP and TLS speak at once.
const CLIENT_FIRST: Duration = Duration::from_millis(50);

/// Bytes that are read at once of what such a server says.
const GREETING: usize = 1024;

/// Endpoints that one TCP connection tries before it is refused.
const ATTEMPTS: usize = 3;

/// Time for a connection when no `DestinationRule` says otherwise (Istio's mesh default).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known about a captured connection once its destination is looked up.
struct Facts {
    pod: Arc<LocalPod>,
    source: Arc<Workload>,
    live: Arc<Live>,
    peer: SocketAddr,
    target: SocketAddr,
    /// See [`Destination::elsewhere`].
    elsewhere: bool,
    service: Option<(Arc<Service>, u16)>,
}

impl Facts {
    fn start(&self, layer: Layer) -> ConnectionStart {
        ConnectionStart {
            reporter: Reporter::Source,
            source: Some(self.source.clone()),
            source_address: self.peer,
            destination_address: self.target,
            service: self.service.as_ref().map(|(service, _)| service.clone()),
            layer,
            direct: false,
        }
    }
}

/// What a connection turned out to be.
enum Found {
    Http(HttpVersion),
    Tcp(Box<Carried>),
    /// It has ended.
    Over,
}

/// A connection that is not HTTP.
struct Carried {
    upstream: Opened,
    record: ConnectionRecord,
    /// What the upstream has said already.
    greeting: Vec<u8>,
}

/// Serves one connection.
///
/// What only its beginning or HTTP needs is in boxes: an idle connection holds this future's memory.
pub(super) async fn serve(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted { pod, stream, peer, _load, _permit, .. } = accepted;
    let Some(Destination { address, elsewhere }) =
        worker.shared.capture.original_destination(&stream)
    else {
        // Somebody dialled the agent's own port: there is nowhere to go.
        tracing::debug!(pod = %pod.name, %peer, "connection without an original destination");
        return;
    };
    let target = unmapped(address);
    let Ok(client) = TcpStream::from_std(stream) else { return };
    let live = worker.shared.live.load_full();
    let Some(source) = live.snapshot.workloads_by_uid.get(&pod.uid).cloned() else {
        tracing::warn!(pod = %pod.name, "connection of a pod without configuration refused");
        return reset_tcp(client);
    };
    let service = service_of(&live, target);
    let protocol = protocol_of(&live, target, service.as_ref());
    let peer = unmapped(peer);
    let facts = Facts { pod, source, live, peer, target, elsewhere, service };
    let found = match protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            // Declared HTTP: its client speaks first, and the preface tells the version.
            let version = match Box::pin(first_bytes(&client, http::detect_version)).await {
                Seen::Http(version) => version,
                Seen::Opaque => HttpVersion::Http1,
            };
            Found::Http(version)
        }
        Protocol::Tcp | Protocol::Tls => Box::pin(open_tcp(worker, &facts)).await,
        Protocol::Detect => Box::pin(detect(worker, &facts, &client)).await,
    };
    match found {
        Found::Http(version) => Box::pin(serve_http(worker, facts, client, version)).await,
        Found::Tcp(carried) => relay(&facts.pod.quota, client, carried).await,
        Found::Over => reset_tcp(client),
    }
}

/// The service that a dialled address stands for: a virtual address, or a headless endpoint.
fn service_of(live: &Live, target: SocketAddr) -> Option<(Arc<Service>, u16)> {
    let snapshot = &live.snapshot;
    if let Some((service, port)) = snapshot.service_at(target) {
        return Some((service.clone(), port.port));
    }
    let (key, port) = snapshot.headless_by_endpoint.get(&target)?;
    Some((snapshot.services.get(key)?.clone(), *port))
}

/// What the destination speaks. An address of no service is looked at only where some service has
/// HTTP on the same port number: only then could a `Host` choose a route (Istio's listener by port).
fn protocol_of(live: &Live, target: SocketAddr, service: Option<&(Arc<Service>, u16)>) -> Protocol {
    match service {
        Some((service, port)) => service.port(*port).map_or(Protocol::Tcp, |port| port.protocol),
        None if live.snapshot.http_ports.contains(&target.port()) => Protocol::Detect,
        None => Protocol::Tcp,
    }
}

async fn serve_http(worker: &Rc<Worker>, facts: Facts, client: TcpStream, version: HttpVersion) {
    let mut record = worker.telemetry.connection(facts.start(Layer::Http));
    record.established(None, None);
    let connection = ConnectionFacts {
        source: facts.source,
        peer: facts.peer,
        destination: facts.target,
        quota: facts.pod.quota.clone(),
    };
    let shutdown = worker.drain.clone();
    let served = http::serve(&worker.engine, client, connection, version, shutdown).await;
    if let Err(error) = served {
        tracing::debug!(pod = %facts.pod.name, %error, "client connection");
    }
}

/// Looks at the first bytes without stalling a server that speaks first.
async fn detect(worker: &Rc<Worker>, facts: &Facts, client: &TcpStream) -> Found {
    match tokio::time::timeout(CLIENT_FIRST, first_bytes(client, http::detect)).await {
        Ok(Seen::Http(version)) => return Found::Http(version),
        Ok(Seen::Opaque) => return open_tcp(worker, facts).await,
        Err(_) => {}
    }
    // The client is silent: the server may be the one to begin. Open its side, and see who speaks.
    let Found::Tcp(mut carried) = open_tcp(worker, facts).await else { return Found::Over };
    let mut greeting = vec![0; GREETING];
    tokio::select! {
        biased;
        read = carried.upstream.io.read(&mut greeting) => match read {
            Ok(length) => {
                greeting.truncate(length);
                carried.greeting = greeting;
                Found::Tcp(carried)
            }
            Err(_) => {
                carried.record.flag(ResponseFlag::UpstreamClosed);
                Found::Over
            }
        },
        seen = first_bytes(client, http::detect) => match seen {
            // The idle connection was a guess: the engine makes its own.
            Seen::Http(version) => Found::Http(version),
            Seen::Opaque => Found::Tcp(carried),
        }
    }
}

/// An open upstream and what it counts as.
struct Opened {
    io: UpstreamIo,
    /// The pod behind it.
    destination: Option<Arc<Workload>>,
    /// Who it has proven to be, or is known to be.
    peer: Option<SpiffeId>,
    /// Keeps the endpoint's count of active connections.
    _active: Option<ActiveGuard>,
}

/// Opens the upstream of what is not HTTP, or says why not.
async fn open_tcp(worker: &Rc<Worker>, facts: &Facts) -> Found {
    let mut record = worker.telemetry.connection(facts.start(Layer::Tcp));
    let error = match open(worker, facts).await {
        Ok(upstream) => {
            return Found::Tcp(Box::new(Carried { upstream, record, greeting: Vec::new() }));
        }
        Err(error) => error,
    };
    let flag = match error {
        Failure::NoEndpoint => ResponseFlag::NoHealthyUpstream,
        Failure::Open(OpenError::Limit(_)) => ResponseFlag::UpstreamOverflow,
        Failure::Open(_) => ResponseFlag::UpstreamConnectFailure,
    };
    record.flag(flag);
    tracing::info!(pod = %facts.pod.name, target = %facts.target, %error, "connection refused");
    Found::Over
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no endpoint is ready")]
    NoEndpoint,
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Opens the upstream of a TCP connection: the endpoint of a service, another one if that cannot be
/// reached, or the very address that was dialled.
async fn open(worker: &Rc<Worker>, facts: &Facts) -> Result<Opened, Failure> {
    let snapshot = &facts.live.snapshot;
    let pick = facts.service.as_ref().filter(|_| {
        // A headless endpoint was chosen by the client.
        snapshot.services_by_ip.contains_key(&facts.target.ip())
    });
    let Some((service, port)) = pick else {
        let destination = snapshot.workloads_by_ip.get(&facts.target.ip()).cloned();
        return open_at(worker, facts, facts.target, destination, CONNECT_TIMEOUT, None).await;
    };
    let Some(port) = service.port(*port) else { return Err(Failure::NoEndpoint) };
    let rule = snapshot.destination_rule(service, &facts.source.name.namespace);
    let policy = rule.map(|rule| rule.policy(None, port.port).clone()).unwrap_or_default();
    let mut last = Failure::NoEndpoint;
    let mut tried: Vec<SocketAddr> = Vec::new();
    if facts.elsewhere {
        let pods = worker.shared.pods.load();
        let is_direct = |address: &SocketAddr| pods.by_ip.contains_key(&address.ip());
        tried.extend(port.endpoints.iter().map(|endpoint| endpoint.address).filter(is_direct));
    }
    for _ in 0..ATTEMPTS {
        let picked = facts.live.pick(&Ask {
            source: &facts.source,
            service,
            port,
            subset: None,
            policy: policy.load_balancer,
            dialled: facts.target,
            tried: &tried,
            draw: worker.draws.next(),
        });
        let Some(picked) = picked.filter(|one| !tried.contains(&one.endpoint.address)) else {
            break;
        };
        let endpoint = picked.endpoint;
        tried.push(endpoint.address);
        let active = Some(picked.active);
        let timeout = policy.connect_timeout;
        match open_at(worker, facts, endpoint.address, endpoint.workload, timeout, active).await {
            Ok(opened) => return Ok(opened),
            // Of the source: no other endpoint changes that.
            Err(error @ Failure::Open(OpenError::Limit(_))) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open_at(
    worker: &Rc<Worker>,
    facts: &Facts,
    address: SocketAddr,
    destination: Option<Arc<Workload>>,
    timeout: Duration,
    active: Option<ActiveGuard>,
) -> Result<Opened, Failure> {
    let io = worker.upstream.open(&facts.pod, address, destination.as_deref(), timeout).await?;
    let peer = match worker.upstream.security(address, destination.as_deref()) {
        Security::MutualTls(peer) | Security::SameNode(peer) => Some(peer),
        Security::Plaintext => None,
    };
    Ok(Opened { io, destination, peer, _active: active })
}

/// Copies until both sides are done.
async fn relay(quota: &Arc<Quota>, mut client: TcpStream, mut carried: Box<Carried>) {
    let Carried { upstream, record, greeting } = &mut *carried;
    record.established(upstream.destination.take(), upstream.peer.take());
    let progress = |sent, received| count(record, received, sent);
    // Seen from the upstream, so that its greeting is the first to go.
    let copied = copy::bidirectional(&mut upstream.io, &mut client, greeting, quota, progress);
    match copied.await.1 {
        Ok(()) => {}
        Err(Broken::Client) => reset_tcp(client),
        Err(Broken::Upstream) => carried.upstream.io.reset(),
    }
}
