//! TLS origination: what a destination's policy says of TLS (`DestinationRule` `trafficPolicy.tls`, SIMPLE
//! and MUTUAL) as a rustls configuration, made once and kept, and the handshake over any byte stream.
//!
//! What it is not: the mesh's own mutual TLS (`identity`, `tunnel`), and no opener of sockets. Files are
//! those of the client's pod and come through a function that it is given.
//!
//! Invariant: whoever asks for TLS gets a stream that has shaken hands as the policy wants, or an error;
//! never plaintext, never a weaker check. Source: istio-surface 1.2.1, "TLS details".

mod build;
mod configs;
mod io;
mod roots;
mod verify;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

pub use configs::{Origination, ReadInPod};
pub use io::TlsIo;
pub use roots::{RootsError, roots};

use crate::model::TlsTarget;

/// Bytes that a session holds which its carrier does not take: one record's (RFC 8446 section 5.1).
const UNSENT: usize = 16 * 1024;

/// Why a policy's TLS cannot be spoken. None of it is the destination's doing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginationError {
    /// The rule names a Secret: mount its files into the clients' pods, and name their paths.
    #[error("credentialName `{0}` is a Secret, and an agent may read none")]
    Secret(Arc<str>),
    /// A file is not there, or may not be read: look into the client's pod.
    #[error("file {path} of the client's pod: {reason}")]
    File {
        /// As the rule has it.
        path: Arc<str>,
        /// The system's reason, or what is wrong with its content.
        reason: String,
    },
    /// rustls refuses certificate and key, or the roots.
    #[error("unusable TLS settings: {0}")]
    Unusable(String),
    /// The agent has no thread to read files with: look at the node.
    #[error("the client's pod's files cannot be read: {0}")]
    NoThread(String),
}

/// Shakes hands over `io` with what is at `endpoint`.
///
/// # Errors
/// The stream's, or that of rustls: the server's certificate is not accepted, or it refuses.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    to: &TlsTarget,
    endpoint: IpAddr,
    io: S,
) -> std::io::Result<TlsIo<S>> {
    let limited = |session: &mut ClientConnection| session.set_buffer_limit(Some(UNSENT));
    let connector = TlsConnector::from(config);
    let stream = connector.connect_with(server_name(to, endpoint), io, limited).await?;
    Ok(TlsIo::new(stream, to.alpn))
}

/// Whom rustls asks for, and, where the policy names nobody else, whose certificate it must be. What is
/// no name is never sent.
fn server_name(to: &TlsTarget, endpoint: IpAddr) -> ServerName<'static> {
    let named = to.server_name.as_deref().and_then(|name| ServerName::try_from(name).ok());
    named.map_or_else(|| ServerName::from(endpoint), |name| name.to_owned())
}
