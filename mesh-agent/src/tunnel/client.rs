//! The client's end of one connection: TLS, the comparison of identities, and its driver.

use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::connection::{Driver, Shared, SharedRef};
use super::quota::Quota;
use super::stream::TunnelStream;
use super::tls::TlsSocket;
use super::wire::{ConnectHead, OpenError, Role, Wire};
use super::{PeerIdentity, TunnelError};
use crate::model::SpiffeId;

/// A TLS handshake that takes longer has failed.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// With what a client speaks TLS.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The source's certificate, ALPN `h2`, TLS 1.3, and a verifier that expects the destination.
    pub config: Arc<ClientConfig>,
    /// Encodes the expected identity, so that sessions of different ones are never mixed.
    pub server_name: ServerName<'static>,
}

/// A connection that streams can be opened on.
#[derive(Clone)]
pub(super) struct Client {
    shared: SharedRef,
}

pub(super) type ClientDriver = Driver<fn(TunnelStream, ConnectHead)>;

// === impl Client ===

impl Client {
    /// Shakes hands over `socket` with `destination` and nobody else. The driver must be run. Streams
    /// draw on the memory of `quota`.
    pub(super) async fn establish(
        socket: TcpStream,
        tls: &ClientTls,
        destination: &SpiffeId,
        peer_identity: PeerIdentity,
        quota: Arc<Quota>,
    ) -> Result<(Self, ClientDriver), TunnelError> {
        let failed = |error| TunnelError::Handshake(Arc::new(error));
        let connection = ClientConnection::new(Arc::clone(&tls.config), tls.server_name.clone())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let mut io = TlsSocket::new(socket, connection.into()).map_err(failed)?;
        let mut wire = Wire::new(Role::Client, quota);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, io.handshake(&mut wire)).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(TunnelError::HandshakeTimeout),
        }
        let got = io.tls.peer_certificates().and_then(peer_identity);
        if got.as_ref() != Some(destination) {
            return Err(TunnelError::Identity { expected: destination.clone(), got });
        }
        let shared = Shared::new(wire);
        let client = Self { shared: SharedRef::clone(&shared) };
        Ok((client, Driver::new(io, shared, never, None)))
    }

    pub(super) fn open(&self, head: &ConnectHead) -> Result<TunnelStream, OpenError> {
        super::connection::open(&self.shared, head)
    }

    /// It will never take another stream.
    pub(super) fn is_spent(&self) -> bool {
        let state = self.shared.borrow().wire.can_open();
        matches!(state, Err(OpenError::GoingAway | OpenError::Exhausted))
    }

    pub(super) fn open_streams(&self) -> u32 {
        self.shared.borrow().wire.open_streams()
    }

    pub(super) fn drain(&self) {
        self.shared.borrow_mut().drain();
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        SharedRef::ptr_eq(&self.shared, &other.shared)
    }
}

/// No server opens streams: the wire ends the connection first.
fn never(stream: TunnelStream, _: ConnectHead) {
    drop(stream);
}
