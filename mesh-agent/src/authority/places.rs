//! What the authority's two listeners share: accepting, TLS, and bounds on how much one address may hold
//! and for how long.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Wait after a failed `accept`: out of descriptors, most of the time.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After this long a connection takes no new requests, so that clients spread over the replicas and
/// nobody holds a place for nothing.
const OLDEST: Duration = Duration::from_secs(600);

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connections by address.
#[derive(Debug)]
pub(super) struct Places {
    per_address: usize,
    held: Mutex<FxHashMap<IpAddr, usize>>,
}

/// One connection's place, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

/// The next connection; waits out failures.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => tracing::warn!(%error, "connections cannot be accepted"),
        }
        tokio::time::sleep(ACCEPT_WAIT).await;
    }
}

/// TLS on a connection, under a certificate of the authority's.
pub(super) async fn secured(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, BoxError> {
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    Ok(tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??)
}

/// Serves a connection until it ends or is old; `shut_down` then has it take no new requests, and what is
/// under way gets the time of `last_requests`.
pub(super) async fn bounded<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shut_down: impl FnOnce(Pin<&mut C>),
    last_requests: Duration,
) -> Result<(), BoxError> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = &mut connection => return Ok(ended?),
        () = tokio::time::sleep(OLDEST) => shut_down(connection.as_mut()),
    }
    Ok(tokio::time::timeout(last_requests, connection).await??)
}

/// Serves a connection, and gives its place back.
pub(super) async fn held(place: Place, connection: impl Future<Output = Result<(), BoxError>>) {
    if let Err(error) = connection.await {
        tracing::debug!(address = %place.address, %error, "connection ended early");
    }
}

// === Places ===

impl Places {
    /// So many for each address.
    pub(super) fn new(per_address: usize) -> Self {
        Self { per_address, held: Mutex::default() }
    }

    /// One more for the address, unless it has all of its own.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(address).or_default();
        if *count >= self.per_address {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_hold_all_places() {
        let places = Arc::new(Places::new(8));
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut held: Vec<Place> = (0..8).map(|_| places.take(address).unwrap()).collect();
        assert!(places.take(address).is_none());
        assert!(places.take(IpAddr::from([10, 0, 0, 2])).is_some());
        held.pop();
        assert!(places.take(address).is_some());
        held.clear();
        assert!(places.held.lock().unwrap().is_empty(), "nothing is left behind");
    }
}
