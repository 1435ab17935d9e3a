//! Connections to endpoints that wait for the next request, one pool per worker.
//!
//! Invariant: a connection is only ever used for the source workload, endpoint and destination pod
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
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::RequestBody;
use super::connect::{ByteStream, ConnectError};

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
}

/// One stream's place on an HTTP/2 connection. Dropped before its response is complete, it ends the
/// request's body too.
#[derive(Debug)]
pub(super) struct StreamGuard {
    load: Rc<Load>,
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
}

/// A response's hold on its connection.
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
        !retired && !self.sender.is_closed()
    }
}

// === impl Pool ===

impl Pool {
    /// The connection of this key that was used last, if one is alive.
    pub(super) async fn take(&self, key: &PoolKey) -> Option<Http1> {
        loop {
            let (mut connection, _) = self.http1.borrow_mut().get_mut(key)?.pop()?;
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
        let idle = pool.entry(key).or_default();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
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

    /// Closes what has idled too long or is dead.
    pub(super) fn sweep(&self, now: Instant) {
        self.http1.borrow_mut().retain(|_, idle| {
            idle.retain(|(connection, since)| {
                connection.is_usable() && now.duration_since(*since) < IDLE
            });
            !idle.is_empty()
        });
        self.http2.borrow_mut().retain(|_, shared| {
            shared.connections.borrow_mut().retain(|connection| {
                let load = &connection.load;
                let idle =
                    load.active.get() == 0 && now.duration_since(load.idle_since.get()) >= IDLE;
                !connection.load.closed.get() && !idle
            });
            // Somebody else holds it: he is about to open a connection.
            !shared.connections.borrow().is_empty() || Rc::strong_count(shared) > 1
        });
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
    pub(super) fn take(&self) -> Option<(Http2, StreamGuard)> {
        self.forget_closed();
        let connections = self.connections.borrow();
        let full = connections.len() >= MAX_HTTP2;
        let best = connections.iter().min_by_key(|connection| connection.load.active.get())?;
        let room = best.load.active.get() < best.load.most.get();
        (room || full).then(|| (best.clone(), StreamGuard::new(&best.load)))
    }

    /// Lets go of connections that take no more streams; those on them go on.
    pub(super) fn forget_closed(&self) {
        self.connections.borrow_mut().retain(|connection| !connection.load.closed.get());
    }

    pub(super) fn add(&self, connection: Http2) -> (Http2, StreamGuard) {
        let guard = StreamGuard::new(&connection.load);
        self.connections.borrow_mut().push(connection.clone());
        (connection, guard)
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

// === impl Load ===

impl Load {
    /// A new connection; `most` holds until the peer's settings are known.
    pub(super) fn new(most: usize) -> Rc<Self> {
        let idle_since = Cell::new(Instant::now());
        let (active, closed) = (Cell::new(0), Cell::new(false));
        Rc::new(Self { active, most: Cell::new(most), closed, idle_since })
    }
}

// === impl StreamGuard ===

impl StreamGuard {
    fn new(load: &Rc<Load>) -> Self {
        load.active.set(load.active.get() + 1);
        Self { load: Rc::clone(load), complete: false, abandoned: CancellationToken::new() }
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
    pub(super) fn new(source: &crate::model::Workload, endpoint: &crate::model::Endpoint) -> Self {
        let pod = endpoint.workload.as_ref();
        Self {
            source: Arc::clone(&source.uid),
            address: endpoint.address,
            destination: pod.map(|pod| Arc::clone(&pod.uid)),
            enrolled: pod.is_some_and(|pod| pod.enrolled),
        }
    }
}
