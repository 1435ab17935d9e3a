//! The server's end: TLS on an accepted socket, and one [`Incoming`] per CONNECT.
//!
//! Not here: policy. The caller decides about each `Incoming`, and dials the application before
//! it accepts, so that a 200 means a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::client::HANDSHAKE_TIMEOUT;
use super::connection::{Driver, Shared};
use super::quota::Permit;
use super::stream::TunnelStream;
use super::tls::TlsSocket;
use super::wire::{ConnectHead, Role, Wire};
use super::{PeerIdentity, TunnelError};
use crate::model::SpiffeId;

/// How a pod's tunnel listener serves.
pub struct ServerSettings {
    /// The pod's certificate, client certificates required, ALPN `h2`, TLS 1.3.
    pub tls: Arc<ServerConfig>,
    /// The address of the pod that this listener belongs to; no other is served.
    pub address: IpAddr,
    /// Reads the peer's identity out of its certificates.
    pub peer_identity: PeerIdentity,
    /// Cancelled when connections should end gracefully: GOAWAY, then the streams' own end.
    pub shutdown: CancellationToken,
    /// Held until the handshake is over; the streams draw on the memory of the same pod.
    pub handshake: Permit,
}

/// A stream that the peer asks for. Dropping it resets the stream.
#[derive(Debug)]
pub struct Incoming {
    /// The application's address that the source wants.
    pub authority: SocketAddr,
    /// Who the source is, by its certificate.
    pub peer: SpiffeId,
    /// W3C baggage, as sent.
    pub baggage: Option<String>,
    /// W3C trace context, as sent.
    pub traceparent: Option<String>,
    stream: TunnelStream,
}

// === impl Incoming ===

impl Incoming {
    /// Answers 200.
    #[must_use]
    pub fn accept(mut self) -> TunnelStream {
        self.stream.respond(200, false);
        self.stream
    }

    /// Answers `status` and ends the stream: 401 policy, 503 no connection to the application.
    pub fn refuse(mut self, status: u16) {
        self.stream.respond(status, true);
    }
}

/// Serves one accepted connection to its end. `handler` is called for each stream and must not
/// block: it starts a task of its own.
///
/// # Errors
/// TLS failed, the peer has no identity, or the connection was lost with streams on it.
pub async fn serve(
    socket: TcpStream,
    settings: ServerSettings,
    mut handler: impl FnMut(Incoming),
) -> Result<(), TunnelError> {
    let failed = |error| TunnelError::Handshake(Arc::new(error));
    let ServerSettings { tls, address, peer_identity, shutdown, handshake } = settings;
    let connection = ServerConnection::new(tls).map_err(|error| failed(io::Error::other(error)))?;
    let mut io = TlsSocket::new(socket, connection.into()).map_err(failed)?;
    let mut wire = Wire::new(Role::Server, Arc::clone(handshake.quota()));
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, io.handshake(&mut wire)).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => return Err(TunnelError::HandshakeTimeout),
    }
    drop(handshake);
    let peer = io.tls.peer_certificates().and_then(peer_identity).ok_or(TunnelError::NoIdentity)?;
    let on_request =
        |mut stream: TunnelStream, head: ConnectHead| match own_address(&head.authority, address) {
            Some(authority) => {
                let ConnectHead { baggage, traceparent, .. } = head;
                handler(Incoming { authority, peer: peer.clone(), baggage, traceparent, stream });
            }
            None => {
                tracing::debug!(authority = head.authority, %peer, "authority refused");
                stream.respond(400, true);
            }
        };
    let driver = Driver::new(io, Shared::new(wire), on_request, Some(shutdown.cancelled_owned()));
    driver.run().await.map_err(|error| TunnelError::Closed(error.to_string()))
}

/// The authority as an address, if it is one of `own`'s.
fn own_address(authority: &str, own: IpAddr) -> Option<SocketAddr> {
    let address: SocketAddr = authority.parse().ok()?;
    let ip = address.ip().to_canonical();
    (ip == own.to_canonical() && address.port() != 0).then(|| SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::own_address;

    #[test]
    fn only_the_pods_own_address_is_served() {
        let own = "10.1.2.3".parse().unwrap();
        assert_eq!(own_address("10.1.2.3:80", own), Some("10.1.2.3:80".parse().unwrap()));
        assert_eq!(own_address("[::ffff:10.1.2.3]:80", own), own_address("10.1.2.3:80", own));
        for foreign in ["10.1.2.4:80", "10.1.2.3", "10.1.2.3:0", "shop:80", "[::1]:80", ""] {
            assert_eq!(own_address(foreign, own), None, "{foreign}");
        }
    }
}
