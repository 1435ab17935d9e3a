//! A worker's tunnels: one key, one or more connections, shared by all streams of that key.
//!
//! Invariants: a connection carries one source's identity to one destination's, so nobody ever
//! speaks under another's name; per key at most one handshake is under way, and everybody who
//! needs it waits for that one and hears how it ended.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::client::{Client, ClientDriver, ClientTls};
use super::quota::Permit;
use super::stream::TunnelStream;
use super::wire::{ConnectHead, OpenError};
use super::{PeerIdentity, TunnelError};
use crate::model::SpiffeId;

/// Who may share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The source workload's UID: limits and ejections belong to it, so connections do too.
    pub source_uid: Arc<str>,
    /// The identity that the source speaks under.
    pub source: SpiffeId,
    /// The identity that must be at the other end.
    pub destination: SpiffeId,
    /// The destination pod's tunnel listener, port 15008.
    pub address: SocketAddr,
}

/// The connections of one worker. Dropping the last clone drains them.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    entries: RefCell<FxHashMap<PoolKey, Entry>>,
    tracker: TaskTracker,
    peer_identity: PeerIdentity,
}

/// A socket for a new connection, and what it counts as for its source for as long as it lives.
pub type Dialled = (TcpStream, Permit);

#[derive(Default)]
struct Entry {
    clients: Vec<Client>,
    attempt: Option<Rc<Attempt>>,
}

/// A handshake under way, and how it ended.
#[derive(Default)]
struct Attempt {
    /// Empty at the end: whoever made it gave up, and somebody else has to.
    error: RefCell<Option<TunnelError>>,
    ended: std::cell::Cell<bool>,
    notify: Notify,
}

enum Turn {
    Stream(TunnelStream),
    Wait(Rc<Attempt>),
    Lead(Rc<Attempt>),
}

// === impl Pool ===

impl Pool {
    /// An empty pool, whose connections' tasks run on `tracker`.
    #[must_use]
    pub fn new(tracker: TaskTracker, peer_identity: PeerIdentity) -> Self {
        let entries = RefCell::default();
        Self { inner: Rc::new(Inner { entries, tracker, peer_identity }) }
    }

    /// Opens a stream to `head.authority` through a tunnel of `key`, and waits for the far end's
    /// 200. `dial` is called where a new connection is needed. A stream that an old connection
    /// did not get to is tried once more, on another one.
    ///
    /// There is no time limit on the answer: the caller has one, and dropping this future resets
    /// the stream.
    ///
    /// # Errors
    /// See [`TunnelError`]; nothing was sent to the application in any case.
    pub async fn connect<D>(
        &self,
        key: &PoolKey,
        head: &ConnectHead,
        tls: &ClientTls,
        dial: D,
    ) -> Result<TunnelStream, TunnelError>
    where
        D: AsyncFn() -> io::Result<Dialled>,
    {
        let (stream, fresh) = self.open(key, head, tls, &dial).await?;
        match stream.answered().await {
            Err(error) if error.is_unprocessed() && !fresh => {
                tracing::debug!(%error, address = %key.address, "tunnel stream is tried again");
                let (stream, _) = self.open(key, head, tls, &dial).await?;
                stream.answered().await
            }
            answered => answered,
        }
    }

    /// As [`Pool::connect`], without waiting for the answer: what is written follows the request
    /// at once. A refusal shows as `ConnectionReset` or as an early end.
    ///
    /// # Errors
    /// No connection could be had.
    pub async fn connect_optimistic<D>(
        &self,
        key: &PoolKey,
        head: &ConnectHead,
        tls: &ClientTls,
        dial: D,
    ) -> Result<TunnelStream, TunnelError>
    where
        D: AsyncFn() -> io::Result<Dialled>,
    {
        self.open(key, head, tls, &dial).await.map(|(stream, _)| stream)
    }

    /// Takes the connections of every key that `which` names out of use; streams on them run to
    /// their end. For a withdrawn source, a renewed certificate or a changed trust.
    pub fn retire(&self, which: impl Fn(&PoolKey) -> bool) {
        for (_, entry) in self.inner.entries.borrow().iter().filter(|(key, _)| which(key)) {
            entry.clients.iter().for_each(Client::drain);
        }
    }

    /// Connections that are open, and streams on them.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.inner.entries.borrow();
        let clients = || entries.values().flat_map(|entry| &entry.clients);
        (clients().count(), clients().map(|client| client.open_streams() as usize).sum())
    }

    /// A stream, and whether its connection was made for it.
    async fn open<D>(
        &self,
        key: &PoolKey,
        head: &ConnectHead,
        tls: &ClientTls,
        dial: &D,
    ) -> Result<(TunnelStream, bool), TunnelError>
    where
        D: AsyncFn() -> io::Result<Dialled>,
    {
        let mut fresh = false;
        loop {
            match self.turn(key, head) {
                Turn::Stream(stream) => return Ok((stream, fresh)),
                Turn::Wait(attempt) => attempt.wait().await?,
                Turn::Lead(attempt) => {
                    let lead = Lead { inner: &self.inner, key, attempt };
                    lead.establish(tls, dial).await?;
                    fresh = true;
                }
            }
        }
    }

    fn turn(&self, key: &PoolKey, head: &ConnectHead) -> Turn {
        let mut entries = self.inner.entries.borrow_mut();
        if !entries.contains_key(key) {
            entries.insert(key.clone(), Entry::default());
        }
        let Some(entry) = entries.get_mut(key) else {
            return Turn::Lead(Rc::default());
        };
        entry.clients.retain(|client| !client.is_spent());
        let emptiest = entry.clients.iter().min_by_key(|client| client.open_streams());
        match emptiest.map(|client| client.open(head)) {
            Some(Ok(stream)) => return Turn::Stream(stream),
            Some(Err(OpenError::Full | OpenError::GoingAway | OpenError::Exhausted)) | None => {}
        }
        match &entry.attempt {
            Some(attempt) => Turn::Wait(Rc::clone(attempt)),
            None => Turn::Lead(Rc::clone(entry.attempt.insert(Rc::default()))),
        }
    }
}

// === impl Inner ===

impl Inner {
    fn add(self: &Rc<Self>, key: &PoolKey, client: Client, driver: ClientDriver, permit: Permit) {
        let pool = Rc::downgrade(self);
        let (key_of_task, client_of_task) = (key.clone(), client.clone());
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            entry.clients.push(client);
        }
        self.tracker.spawn_local(async move {
            let _permit = permit;
            let ended = driver.run().await;
            let address = key_of_task.address;
            match ended {
                Ok(()) => tracing::debug!(%address, "tunnel closed"),
                Err(error) => tracing::debug!(%address, %error, "tunnel lost"),
            }
            Self::remove(&pool, &key_of_task, &client_of_task);
        });
    }

    fn remove(pool: &Weak<Self>, key: &PoolKey, client: &Client) {
        let Some(pool) = pool.upgrade() else { return };
        let mut entries = pool.entries.borrow_mut();
        let Some(entry) = entries.get_mut(key) else { return };
        entry.clients.retain(|other| !other.is(client));
        if entry.clients.is_empty() && entry.attempt.is_none() {
            entries.remove(key);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for client in self.entries.get_mut().values().flat_map(|entry| &entry.clients) {
            client.drain();
        }
    }
}

// === impl Attempt ===

impl Attempt {
    async fn wait(&self) -> Result<(), TunnelError> {
        let notified = self.notify.notified();
        if !self.ended.get() {
            notified.await;
        }
        self.error.borrow().clone().map_or(Ok(()), Err)
    }
}

/// The one who makes the connection. However it ends, also by being dropped, the others hear.
struct Lead<'a> {
    inner: &'a Rc<Inner>,
    key: &'a PoolKey,
    attempt: Rc<Attempt>,
}

impl Lead<'_> {
    async fn establish<D>(self, tls: &ClientTls, dial: &D) -> Result<(), TunnelError>
    where
        D: AsyncFn() -> io::Result<Dialled>,
    {
        let established = async {
            let dialled = dial().await.map_err(|error| TunnelError::Dial(Arc::new(error)))?;
            let (socket, permit) = dialled;
            let (destination, quota) = (&self.key.destination, Arc::clone(permit.quota()));
            let identity = self.inner.peer_identity;
            let established = Client::establish(socket, tls, destination, identity, quota).await?;
            Ok::<_, TunnelError>((established, permit))
        };
        match established.await {
            Ok(((client, driver), permit)) => {
                self.inner.add(self.key, client, driver, permit);
                Ok(())
            }
            Err(error) => {
                self.attempt.error.replace(Some(error.clone()));
                Err(error)
            }
        }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut entries = self.inner.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(self.key) {
            entry.attempt = None;
            if entry.clients.is_empty() {
                entries.remove(self.key);
            }
        }
        self.attempt.ended.set(true);
        self.attempt.notify.notify_waiters();
    }
}
