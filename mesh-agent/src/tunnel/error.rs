//! Why there is no tunnel stream.

use std::io;
use std::sync::Arc;

use super::wire::Reason;
use crate::model::SpiffeId;

/// Why a tunnel or one of its streams could not be had. `Clone`, as everybody who waits for one
/// handshake is told the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    /// No TCP connection: the peer's node or pod is away, or a network policy is in between.
    #[error("no connection to the tunnel's port: {0}")]
    Dial(#[source] Arc<io::Error>),
    /// TLS failed: trust domains or roots differ, a certificate has run out, or the peer does
    /// not speak TLS on this port.
    #[error("TLS handshake of the tunnel failed: {0}")]
    Handshake(#[source] Arc<io::Error>),
    /// TLS did not end in time.
    #[error("TLS handshake of the tunnel did not end in time")]
    HandshakeTimeout,
    /// The peer is somebody else: stale endpoints, or an attack.
    #[error("the tunnel's peer is {}, not {expected}", name(got.as_ref()))]
    Identity {
        /// Who should be there.
        expected: SpiffeId,
        /// Who is, if the certificate says.
        got: Option<SpiffeId>,
    },
    /// The peer's certificate carries no identity of this mesh's form.
    #[error("the tunnel's peer has no SPIFFE identity")]
    NoIdentity,
    /// The far end answered other than 200: 503 its application is away, 401 or 403 its policy
    /// forbids, 400 it does not serve this address.
    #[error("the far end of the tunnel answered {0}")]
    Refused(u16),
    /// The far end reset the stream before it answered.
    #[error("the far end of the tunnel reset the stream: {0}")]
    Reset(Reason),
    /// The connection ended before the stream was answered.
    #[error("the tunnel's connection ended: {0}")]
    Closed(String),
}

impl TunnelError {
    /// The far application has seen nothing of the stream, so another connection may be tried.
    pub(super) fn is_unprocessed(&self) -> bool {
        match self {
            Self::Closed(_) => true,
            Self::Reset(reason) => *reason == Reason::REFUSED_STREAM,
            Self::Dial(_)
            | Self::Handshake(_)
            | Self::HandshakeTimeout
            | Self::Identity { .. }
            | Self::NoIdentity
            | Self::Refused(_) => false,
        }
    }
}

fn name(identity: Option<&SpiffeId>) -> String {
    identity.map_or_else(|| "nobody that this mesh can name".to_owned(), ToString::to_string)
}
