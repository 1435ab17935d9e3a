//! Connections that an application of this node opens: where to, what do they speak, and then the
//! HTTP engine or a plain copy.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::copy::{self, Broken};
use super::first_bytes::{Seen, first_bytes, server_name};
use super::inbound::{count, unmapped};
use super::listener::Accepted;
use super::target::{Asked, NoTarget, Target, target, wants_sni};
use super::worker::Worker;
use crate::balance::{ActiveGuard, Ask, Balancer, Choice, Live, OpenPermit, Picked};
use crate::capture::Destination;
use crate::http::{self, ConnectionFacts, Detected, HttpVersion};
use crate::model::{
    HashKey, Protocol, Service, ServiceTarget, SpiffeId, TlsTarget, TrafficPolicy, Workload,
};
use crate::telemetry::{ConnectionRecord, ConnectionStart, Layer, Reporter, ResponseFlag};
use crate::tunnel::{LocalPod, OpenError, Quota, Security, UpstreamIo, reset_tcp};

/// How long an undeclared port's client may be silent before its upstream is opened, so that a
/// server that speaks first is heard. Clients of HTTP and TLS speak at once.
const CLIENT_FIRST: Duration = Duration::from_millis(50);

/// The same where only a name that the client has yet to say can open the way, and where a server that
/// speaks first would be refused.
const NAME_FIRST: Duration = Duration::from_secs(5);

/// Bytes that are read at once of what such a server says.
const GREETING: usize = 1024;

/// Endpoints that one TCP connection tries before it is refused.
const ATTEMPTS: usize = 3;

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
    fn start(&self, layer: Layer, service: Option<&Arc<Service>>) -> ConnectionStart {
        ConnectionStart {
            reporter: Reporter::Source,
            source: Some(self.source.clone()),
            source_address: self.peer,
            destination_address: self.target,
            service: service.cloned(),
            layer,
            direct: false,
        }
    }

    /// The service that the address stands for.
    fn addressed(&self) -> Option<&Arc<Service>> {
        self.service.as_ref().map(|(service, _)| service)
    }

    fn asked<'a>(&'a self, sni: Option<&'a str>) -> Asked<'a> {
        Asked {
            source: &self.source,
            peer: self.peer.ip(),
            dialled: self.target,
            addressed: self.service.as_ref().map(|(service, port)| (service, *port)),
            sni,
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
    let dialled = unmapped(address);
    let Ok(client) = TcpStream::from_std(stream) else { return };
    let live = worker.shared.live.load_full();
    let Some(source) = live.snapshot.workloads_by_uid.get(&pod.uid).cloned() else {
        tracing::warn!(pod = %pod.name, "connection of a pod without configuration refused");
        return reset_tcp(client);
    };
    let service = live.snapshot.dialled_service(dialled, &source.name.namespace);
    let service = service.map(|(service, port)| (service.clone(), port));
    let protocol = protocol_of(&live, dialled, service.as_ref());
    let peer = unmapped(peer);
    let facts = Facts { pod, source, live, peer, target: dialled, elsewhere, service };
    let found = match protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => {
            // Declared HTTP: its client speaks first, and the preface tells the version.
            let version = match Box::pin(first_bytes(&client, http::detect_version)).await {
                Seen::Http(version) => version,
                Seen::Tls | Seen::Opaque => HttpVersion::Http1,
            };
            Found::Http(version)
        }
        Protocol::Tls if wants_sni(&facts.live.snapshot, &facts.asked(None)) => {
            Box::pin(detect(worker, &facts, &client, only_tls)).await
        }
        Protocol::Tcp | Protocol::Tls => Box::pin(open_tcp(worker, &facts, None)).await,
        Protocol::Detect => Box::pin(detect(worker, &facts, &client, http::detect)).await,
    };
    match found {
        Found::Http(version) => Box::pin(serve_http(worker, facts, client, version)).await,
        Found::Tcp(carried) => relay(&facts.pod.quota, client, carried).await,
        Found::Over => reset_tcp(client),
    }
}

/// What the destination speaks. An address of no service is looked at only where some service has
/// HTTP on the same port number: only then could a `Host` choose a route (Istio's listener by port); the
/// same with TLS and the server name.
fn protocol_of(live: &Live, target: SocketAddr, service: Option<&(Arc<Service>, u16)>) -> Protocol {
    match service {
        Some((service, port)) => service.port(*port).map_or(Protocol::Tcp, |port| port.protocol),
        None if live.snapshot.http_ports.contains(&target.port()) => Protocol::Detect,
        None if live.snapshot.external.has_sni(target.port()) => Protocol::Tls,
        None => Protocol::Tcp,
    }
}

/// Looks for TLS, and takes everything else for opaque.
fn only_tls(bytes: &[u8]) -> Detected {
    match http::detect(bytes) {
        Detected::Http1 | Detected::Http2 => Detected::Opaque,
        other => other,
    }
}

async fn serve_http(worker: &Rc<Worker>, facts: Facts, client: TcpStream, version: HttpVersion) {
    let mut record = worker.telemetry.connection(facts.start(Layer::Http, facts.addressed()));
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
async fn detect(
    worker: &Rc<Worker>,
    facts: &Facts,
    client: &TcpStream,
    look: fn(&[u8]) -> Detected,
) -> Found {
    let is_shut = facts.service.is_none() && facts.live.snapshot.blocks(facts.target);
    let patience = if is_shut { NAME_FIRST } else { CLIENT_FIRST };
    match tokio::time::timeout(patience, first_bytes(client, look)).await {
        Ok(Seen::Http(version)) => return Found::Http(version),
        Ok(Seen::Tls) => return open_tls(worker, facts, client).await,
        Ok(Seen::Opaque) => return open_tcp(worker, facts, None).await,
        Err(_) => {}
    }
    // The client is silent: the server may be the one to begin. Open its side, and see who speaks.
    let Found::Tcp(mut carried) = open_tcp(worker, facts, None).await else { return Found::Over };
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
        seen = first_bytes(client, look) => match seen {
            // The idle connection was a guess: the engine makes its own.
            Seen::Http(version) => Found::Http(version),
            Seen::Tls if wants_sni(&facts.live.snapshot, &facts.asked(None)) => {
                drop(carried);
                open_tls(worker, facts, client).await
            }
            Seen::Tls | Seen::Opaque => Found::Tcp(carried),
        }
    }
}

/// Opens the upstream of TLS, which its server name may choose.
async fn open_tls(worker: &Rc<Worker>, facts: &Facts, client: &TcpStream) -> Found {
    let sni = match wants_sni(&facts.live.snapshot, &facts.asked(None)) {
        true => server_name(client).await,
        false => None,
    };
    open_tcp(worker, facts, sni.as_deref()).await
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
    /// Its place among the upstream's connections, if they are limited.
    _place: Option<OpenPermit>,
    /// How long it may last.
    terms: Terms,
}

/// What the destination's policy says about how long a connection may last.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    /// `tcp.idleTimeout`.
    idle: Option<Duration>,
    /// `tcp.maxConnectionDuration`.
    most: Option<Duration>,
}

/// Opens the upstream of what is not HTTP, or says why not.
async fn open_tcp(worker: &Rc<Worker>, facts: &Facts, sni: Option<&str>) -> Found {
    let found = target(&facts.live.snapshot, &facts.asked(sni), worker.draws.next());
    let service = found.as_ref().map_or(facts.addressed(), Target::service);
    let mut record = worker.telemetry.connection(facts.start(Layer::Tcp, service));
    let opened = match found {
        Ok(target) => open(worker, facts, target).await,
        Err(error) => Err(error.into()),
    };
    let error = match opened {
        Ok(upstream) => {
            return Found::Tcp(Box::new(Carried { upstream, record, greeting: Vec::new() }));
        }
        Err(error) => error,
    };
    let flag = match error {
        Failure::NoEndpoint | Failure::Target(NoTarget::NoPort(_)) => {
            ResponseFlag::NoHealthyUpstream
        }
        Failure::Target(NoTarget::Blocked) => ResponseFlag::NoRoute,
        Failure::Target(NoTarget::NoCluster(_) | NoTarget::NoAddress(_)) => ResponseFlag::NoCluster,
        Failure::Overflow | Failure::Open(OpenError::Limit(_)) => ResponseFlag::UpstreamOverflow,
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
    Target(#[from] NoTarget),
    #[error("the destination's connectionPool.tcp.maxConnections are in use by this pod")]
    Overflow,
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Opens the upstream of a TCP connection: the endpoint of a service, another one if that cannot be
/// reached, or the very address that was dialled.
async fn open(worker: &Rc<Worker>, facts: &Facts, target: Target<'_>) -> Result<Opened, Failure> {
    let to = match target {
        Target::Service(to) => to,
        Target::Dialled(of) => return open_dialled(worker, facts, (of, target.tls())).await,
    };
    let tls = target.tls();
    let mut tried: Vec<SocketAddr> = Vec::new();
    if facts.elsewhere {
        let pods = worker.shared.pods.load();
        let is_direct = |address: &SocketAddr| pods.by_ip.contains_key(&address.ip());
        tried.extend(to.port.endpoints.iter().map(|endpoint| endpoint.address).filter(is_direct));
    }
    let balancer = facts.live.upstream(Ask::new(&facts.source, &to, facts.target));
    open_balanced(worker, facts, (&balancer, to.policy, tls.as_ref()), tried).await
}

/// Opens a connection to the address that was dialled, under the limits of the service it is of.
async fn open_dialled(
    worker: &Rc<Worker>,
    facts: &Facts,
    (to, tls): (Option<ServiceTarget<'_>>, Option<TlsTarget>),
) -> Result<Opened, Failure> {
    let place = match &to {
        Some(to) => {
            let balancer = facts.live.upstream(Ask::new(&facts.source, to, facts.target));
            place(&balancer).ok_or(Failure::Overflow)?
        }
        None => None,
    };
    let policy = to.map_or(TrafficPolicy::of_mesh(), |to| to.policy);
    let pod = facts.live.snapshot.workloads_by_ip.get(&facts.target.ip()).cloned();
    let opened = open_at(worker, facts, (facts.target, pod), (policy, tls.as_ref())).await?;
    Ok(Opened { _place: place, ..opened })
}

/// A place among an upstream's connections, if these are limited; `None`: all are taken.
fn place(balancer: &Balancer<'_>) -> Option<Option<OpenPermit>> {
    match balancer.connections() {
        Some(connections) => connections.open().map(Some),
        None => Some(None),
    }
}

/// Opens a connection to one of an upstream's endpoints, to another one if that cannot be reached.
async fn open_balanced(
    worker: &Rc<Worker>,
    facts: &Facts,
    (balancer, policy, tls): (&Balancer<'_>, &TrafficPolicy, Option<&TlsTarget>),
    mut tried: Vec<SocketAddr>,
) -> Result<Opened, Failure> {
    let place = place(balancer).ok_or(Failure::Overflow)?;
    // Of a connection that is not HTTP, only the address can be the key.
    let by_ip = policy.hash_key == Some(HashKey::SourceIp);
    let hash = by_ip.then(|| http::hash_of_ip(facts.peer.ip()));
    let mut last = Failure::NoEndpoint;
    for _ in 0..ATTEMPTS {
        let draw = worker.draws.next();
        let fresh = |leave| {
            let picked = balancer.pick(&Choice { tried: &tried, leave, hash, draw })?;
            (!tried.contains(&picked.endpoint.address)).then_some(picked)
        };
        // Farther away only once all that are near have been tried.
        let Some(picked) = fresh(&[]).or_else(|| fresh(&tried)) else { break };
        let Picked { endpoint, active } = picked;
        tried.push(endpoint.address);
        let to = (endpoint.address, endpoint.workload);
        match open_at(worker, facts, to, (policy, tls)).await {
            Ok(mut opened) => {
                active.answered(200);
                (opened._active, opened._place) = (Some(active), place);
                return Ok(opened);
            }
            // Of the source: no other endpoint changes that.
            Err(error @ Failure::Open(OpenError::Limit(_) | OpenError::NoTls(..))) => {
                return Err(error);
            }
            Err(error) => {
                if let Failure::Open(
                    OpenError::Timeout(_)
                    | OpenError::Connect(..)
                    | OpenError::Tunnel(..)
                    | OpenError::Handshake(..),
                ) = &error
                {
                    active.unanswered();
                }
                last = error;
            }
        }
    }
    Err(last)
}

async fn open_at(
    worker: &Rc<Worker>,
    facts: &Facts,
    (address, destination): (SocketAddr, Option<Arc<Workload>>),
    (policy, tls): (&TrafficPolicy, Option<&TlsTarget>),
) -> Result<Opened, Failure> {
    let (pool, upstream) = (&policy.pool, &worker.upstream);
    let (pod, timeout) = (&facts.pod, pool.connect_timeout);
    let io = upstream.open(pod, address, destination.as_deref(), timeout, tls).await?;
    if let Some(keepalive) = &pool.keepalive {
        io.keep_alive(keepalive);
    }
    let peer = match worker.upstream.security(address, destination.as_deref()) {
        Security::MutualTls(peer) | Security::SameNode(peer) => Some(peer),
        Security::Plaintext => None,
    };
    let terms = Terms { idle: pool.tcp_idle_timeout, most: pool.max_connection_duration };
    Ok(Opened { io, destination, peer, _active: None, _place: None, terms })
}

/// Copies until both sides are done, or the destination's policy ends the connection.
async fn relay(quota: &Arc<Quota>, mut client: TcpStream, mut carried: Box<Carried>) {
    let Carried { upstream, record, greeting } = &mut *carried;
    record.established(upstream.destination.take(), upstream.peer.take());
    let terms = upstream.terms;
    let last = Cell::new(terms.idle.map(|_| Instant::now()));
    let progress = |sent, received| {
        if terms.idle.is_some() {
            last.set(Some(Instant::now()));
        }
        count(record, received, sent);
    };
    // Seen from the upstream, so that its greeting is the first to go.
    let copied = copy::bidirectional(&mut upstream.io, &mut client, greeting, quota, progress);
    let ended = match terms {
        Terms { idle: None, most: None } => Some(copied.await.1),
        _ => tokio::select! {
            copied = copied => Some(copied.1),
            () = overdue(&last, terms) => None,
        },
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(Broken::Client)) => reset_tcp(client),
        Some(Err(Broken::Upstream)) => carried.upstream.io.reset(),
        None => {
            tracing::debug!("connection ended by its destination's connectionPool");
            carried.upstream.io.reset();
            reset_tcp(client);
        }
    }
}

/// Waits until the connection has idled, or lasted, for as long as it may.
async fn overdue(last: &Cell<Option<Instant>>, terms: Terms) {
    let end = terms.most.map(|most| Instant::now() + most);
    loop {
        let idle = last.get().zip(terms.idle).map(|(last, idle)| last + idle);
        let Some(at) = [end, idle].into_iter().flatten().min() else { return };
        if at <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(at).await;
    }
}
