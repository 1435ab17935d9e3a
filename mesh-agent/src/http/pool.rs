//! Connections to endpoints that wait for the next request, one pool per worker.
//!
//! Invariant: a connection is only ever used for the source workload, endpoint, destination pod and TLS
//! that it was opened for; an HTTP/1 connection carries one request at a time and comes back only
//! when both bodies are complete. Not here: opening one (`client`).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use hyper::client::conn::http1;
use rustc_hash::FxHashMap;
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::Target;
use super::connect::{ByteStream, ConnectError};
use super::request_body::RequestBody;
use crate::balance::{Connections, OpenPermit};
use crate::model::{ConnectionPool, TlsTarget};

/// Idle HTTP/1 connections kept per key; above it a connection is closed after its request.
const MAX_IDLE: usize = 128;
/// How long a connection may idle. Istio's default is an hour; a node's agent holds those of all
/// its pods, and opening one is cheap over a pooled tunnel.
const IDLE: Duration = Duration::from_secs(60);
/// How often idle connections are looked for.
pub(super) const SWEEP: Duration = Duration::from_secs(15);
/// HTTP/2 connections per key; above it streams queue in the least busy one.
const MAX_HTTP2: usize = 8;

/// What a connection may be used for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    /// UID of the source workload.
    pub(super) source: Arc<str>,
    /// The endpoint.
    pub(super) address: SocketAddr,
    /// UID of the pod there: an address may pass to another pod.
    pub(super) destination: Option<Arc<str>>,
    /// Whether the pod took tunnels: plaintext must not be used once it does.
    pub(super) enrolled: bool,
    /// The upstream whose limits count the connection, if it has some.
    upstream: Option<usize>,
    /// TLS that it is in, with the server's name and what its certificate was checked for.
    tls: Option<Arc<TlsTarget>>,
}

/// What a destination's policy says about a connection, as it was when it was last used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// How long it may idle.
    idle: Duration,
    /// Requests that it may serve; 0: any number.
    requests: u32,
    /// How old it may get, for further requests; `None`: any age.
    age: Option<Duration>,
}

/// A connection's place among those of a limited upstream. Dropped, it makes room for who waits.
#[derive(Debug)]
pub(super) struct Place {
    limited: Rc<Limited>,
    _permit: OpenPermit,
}

/// The connections of one key whose upstream is limited.
#[derive(Debug, Default)]
pub(super) struct Limited {
    /// How many there are, at work and idle.
    open: Cell<usize>,
    /// Tells one who waits that a connection idles, or has gone.
    pub(super) freed: Notify,
}

/// An HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<RequestBody>,
    /// Gives the byte stream after an upgrade.
    pub(super) upgraded: oneshot::Receiver<Upgraded>,
    /// Tells the connection's task that the byte stream is wanted.
    pub(super) wanted: Rc<Cell<bool>>,
    /// Cancelled when what carries it is to end.
    pub(super) retired: Option<CancellationToken>,
    pub(super) terms: Terms,
    pub(super) place: Option<Place>,
    /// Requests that it has been given.
    pub(super) served: u32,
    pub(super) opened: Instant,
}

/// A byte stream after an upgrade, and what was read of it already.
pub(super) struct Upgraded {
    pub(super) io: Box<dyn ByteStream>,
    pub(super) read: Bytes,
}

/// An HTTP/2 connection; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Http2 {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) load: Rc<Load>,
    pub(super) place: Option<Rc<Place>>,
}

/// How busy an HTTP/2 connection is.
#[derive(Debug)]
pub(super) struct Load {
    /// Open streams.
    active: Cell<usize>,
    /// What the peer allows.
    pub(super) most: Cell<usize>,
    /// The connection has ended, or takes no more streams.
    pub(super) closed: Cell<bool>,
    idle_since: Cell<Instant>,
    terms: Cell<Terms>,
    served: Cell<u32>,
    opened: Instant,
}

/// One stream's place on an HTTP/2 connection. Dropped before its response is complete, it ends the
/// request's body too.
#[derive(Debug)]
pub(super) struct StreamGuard {
    load: Rc<Load>,
    /// The connection's: it counts until its last stream has ended, also if it takes no more of them.
    _place: Option<Rc<Place>>,
    complete: bool,
    /// Cancelled when nobody wants the response any more.
    pub(super) abandoned: CancellationToken,
}

/// The connections of a key over HTTP/2.
#[derive(Debug, Default)]
pub(super) struct Shared {
    connections: RefCell<Vec<Http2>>,
    /// Held by the one who opens a connection; the others wait and then share it.
    pub(super) opening: Mutex<()>,
    /// How often opening has failed, and how last: those who waited fail with it.
    failure: RefCell<(u64, Option<ConnectError>)>,
}

/// All pooled connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Pool {
    http1: RefCell<FxHashMap<PoolKey, Vec<(Http1, Instant)>>>,
    http2: RefCell<FxHashMap<PoolKey, Rc<Shared>>>,
    limited: RefCell<FxHashMap<PoolKey, Rc<Limited>>>,
}

/// A response's hold on its connection.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and a box would be an allocation for each request"
)]
pub(super) enum Lease {
    /// The whole connection.
    Http1(Rc<Pool>, PoolKey, Http1),
    /// One stream.
    Http2(StreamGuard),
}

// === impl Upgraded ===

impl std::fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgraded").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

// === impl Http1 ===

impl Http1 {
    fn is_usable(&self) -> bool {
        let retired = self.retired.as_ref().is_some_and(CancellationToken::is_cancelled);
        !retired && !self.sender.is_closed() && !self.terms.are_up(self.served, self.opened)
    }
}

// === impl Terms ===

impl Terms {
    pub(super) fn of(policy: &ConnectionPool) -> Self {
        let idle = policy.http_idle_timeout.unwrap_or(IDLE);
        let requests = policy.max_requests_per_connection;
        Self { idle, requests, age: policy.max_connection_duration }
    }

    fn are_up(self, served: u32, opened: Instant) -> bool {
        (self.requests != 0 && served >= self.requests)
            || self.age.is_some_and(|age| opened.elapsed() >= age)
    }
}

// === impl Place ===

impl Place {
    pub(super) fn new(limited: Rc<Limited>, permit: OpenPermit) -> Self {
        limited.open.set(limited.open.get() + 1);
        Self { limited, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limited.open.set(self.limited.open.get() - 1);
        self.limited.freed.notify_one();
    }
}

// === impl Limited ===

impl Limited {
    /// Whether there is none: then one may be opened above the limit, as Envoy allows each of its
    /// hosts' pools one. Else a worker might wait for ever for the connections of others.
    pub(super) fn is_empty(&self) -> bool {
        self.open.get() == 0
    }
}

// === impl Pool ===

impl Pool {
    /// The connection of this key that was used last, if one is alive. The policy of now holds for it.
    pub(super) async fn take(&self, key: &PoolKey, terms: Terms) -> Option<Http1> {
        loop {
            let (mut connection, _) = self.http1.borrow_mut().get_mut(key)?.pop()?;
            connection.terms = terms;
            // Its task may still have to see that the last response is complete.
            if connection.is_usable() && connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    fn put(&self, key: PoolKey, connection: Http1) {
        if !connection.is_usable() {
            return;
        }
        let mut pool = self.http1.borrow_mut();
        let limited = connection.place.as_ref().map(|place| Rc::clone(&place.limited));
        let idle = pool.entry(key).or_default();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
        if let Some(limited) = limited {
            limited.freed.notify_one();
        }
    }

    /// The count of this key's connections, for an upstream with limits.
    pub(super) fn limited(&self, key: &PoolKey) -> Rc<Limited> {
        Rc::clone(self.limited.borrow_mut().entry(key.clone()).or_default())
    }

    pub(super) fn shared(&self, key: &PoolKey) -> Rc<Shared> {
        let mut pool = self.http2.borrow_mut();
        if let Some(found) = pool.get(key) {
            return Rc::clone(found);
        }
        Rc::clone(pool.entry(key.clone()).or_default())
    }

    /// Closes idle connections of this key whose carrier is to end.
    pub(super) fn close_retired(&self, key: &PoolKey) {
        if let Some(idle) = self.http1.borrow_mut().get_mut(key) {
            idle.retain(|(connection, _)| connection.is_usable());
        }
    }

    /// Closes what has idled too long, is too old or dead; streams that are under way go on.
    pub(super) fn sweep(&self, now: Instant) {
        self.http1.borrow_mut().retain(|_, idle| {
            idle.retain(|(connection, since)| {
                connection.is_usable() && now.duration_since(*since) < connection.terms.idle
            });
            !idle.is_empty()
        });
        self.http2.borrow_mut().retain(|_, shared| {
            shared.connections.borrow_mut().retain(|connection| {
                let load = &connection.load;
                let idle = load.active.get() == 0
                    && now.duration_since(load.idle_since.get()) >= load.terms.get().idle;
                !load.closed.get() && !load.are_up(load.terms.get()) && !idle
            });
            // Somebody else holds it: he is about to open a connection.
            !shared.connections.borrow().is_empty() || Rc::strong_count(shared) > 1
        });
        self.limited.borrow_mut().retain(|_, limited| Rc::strong_count(limited) > 1);
    }

    /// How many connections there are, HTTP/1 (idle) and HTTP/2.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let http1 = self.http1.borrow().values().map(Vec::len).sum();
        let shared = self.http2.borrow();
        (http1, shared.values().map(|shared| shared.connections.borrow().len()).sum())
    }
}

// === impl Shared ===

impl Shared {
    /// The least busy living connection, if it has room or no further one may be opened.
    pub(super) fn take(&self, terms: Terms) -> Option<(Http2, StreamGuard)> {
        self.forget_used_up(terms);
        let connections = self.connections.borrow();
        let full = connections.len() >= MAX_HTTP2;
        let best = connections.iter().min_by_key(|connection| connection.load.active.get())?;
        let room = best.load.active.get() < best.load.most.get();
        (room || full).then(|| best.take(terms))
    }

    /// The least busy living connection, however busy.
    pub(super) fn queue(&self, terms: Terms) -> Option<(Http2, StreamGuard)> {
        self.forget_used_up(terms);
        let connections = self.connections.borrow();
        connections.iter().min_by_key(|one| one.load.active.get()).map(|one| one.take(terms))
    }

    fn forget_used_up(&self, terms: Terms) {
        for connection in self.connections.borrow().iter() {
            let load = &connection.load;
            load.closed.set(load.closed.get() || load.are_up(terms));
        }
        self.forget_closed();
    }

    /// Lets go of connections that take no more streams; those on them go on.
    pub(super) fn forget_closed(&self) {
        self.connections.borrow_mut().retain(|connection| !connection.load.closed.get());
    }

    pub(super) fn add(&self, connection: Http2) -> (Http2, StreamGuard) {
        self.connections.borrow_mut().push(connection.clone());
        let terms = connection.load.terms.get();
        connection.take(terms)
    }

    /// The number of failures so far: to be remembered before waiting.
    pub(super) fn failures(&self) -> u64 {
        self.failure.borrow().0
    }

    /// The failure that came while one waited, if any.
    pub(super) fn failed_since(&self, failures: u64) -> Option<ConnectError> {
        let failure = self.failure.borrow();
        if failure.0 > failures { failure.1.clone() } else { None }
    }

    pub(super) fn fail(&self, error: &ConnectError) {
        let mut failure = self.failure.borrow_mut();
        *failure = (failure.0 + 1, Some(error.clone()));
    }
}

// === impl Http2 ===

impl Http2 {
    /// A place on it. After the last request that its terms allow it takes no more.
    fn take(&self, terms: Terms) -> (Self, StreamGuard) {
        let load = &self.load;
        load.terms.set(terms);
        load.served.set(load.served.get().saturating_add(1));
        if load.are_up(terms) {
            load.closed.set(true);
        }
        (self.clone(), StreamGuard::new(load, self.place.clone()))
    }
}

// === impl Load ===

impl Load {
    /// A new connection; `most` holds until the peer's settings are known.
    pub(super) fn new(most: usize, terms: Terms) -> Rc<Self> {
        let opened = Instant::now();
        let idle_since = Cell::new(opened);
        let (active, closed, served) = (Cell::new(0), Cell::new(false), Cell::new(0));
        let (most, terms) = (Cell::new(most), Cell::new(terms));
        Rc::new(Self { active, most, closed, idle_since, terms, served, opened })
    }

    fn are_up(&self, terms: Terms) -> bool {
        terms.are_up(self.served.get(), self.opened)
    }
}

// === impl StreamGuard ===

impl StreamGuard {
    fn new(load: &Rc<Load>, place: Option<Rc<Place>>) -> Self {
        load.active.set(load.active.get() + 1);
        let (load, abandoned) = (Rc::clone(load), CancellationToken::new());
        Self { load, _place: place, complete: false, abandoned }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.load.active.set(self.load.active.get() - 1);
        self.load.idle_since.set(Instant::now());
        if !self.complete {
            self.abandoned.cancel();
        }
    }
}

// === impl Lease ===

impl Lease {
    /// The response is complete. An HTTP/1 connection is pooled if the request is complete too,
    /// else closed.
    pub(super) fn release(self, request_done: bool) {
        match self {
            Self::Http1(pool, key, connection) if request_done => {
                connection.wanted.set(false);
                pool.put(key, connection);
            }
            Self::Http1(..) => {}
            Self::Http2(mut stream) => stream.complete = true,
        }
    }
}

impl PoolKey {
    pub(super) fn new(target: &Target<'_>) -> Self {
        let pod = target.endpoint.workload.as_ref();
        Self {
            upstream: target.limits.map(Connections::id),
            tls: target.tls.cloned(),
            source: Arc::clone(&target.source.uid),
            address: target.endpoint.address,
            destination: pod.map(|pod| Arc::clone(&pod.uid)),
            enrolled: pod.is_some_and(|pod| pod.enrolled),
        }
    }
}
