//! Who is who: SPIFFE certificates of the service accounts on this node, their renewal, and the
//! rustls configurations that let two nodes prove them to each other.
//!
//! What it is not: it decides no policy beyond "this is that identity in an accepted trust domain",
//! and opens no socket but to an authority. Keys are written to a folder below `/run`, if one is given
//! ([`KeyDir`]), for the next agent on this node; and a new root's, when asked to.
//!
//! Invariant: a private key never leaves this module but for that folder; others see a rustls
//! configuration.
//!
//! Sources: SPIFFE-ID and X509-SVID standards; Istio's path layout `ns/<namespace>/sa/<account>`.

mod authority;
mod ca;
mod clock;
mod credentials;
mod issuer;
mod keys;
mod pem;
mod provider;
mod request;
mod rotation;
mod store;
mod verify;
mod waits;

#[cfg(test)]
mod tests;

pub use authority::AuthorityClient;
pub use ca::LocalCa;
pub use clock::Clock;
pub use credentials::Credentials;
pub use issuer::{Issued, Issuer};
pub use keys::KeyDir;
pub use pem::certificate_pem;
pub use provider::provider;
pub use request::SigningRequest;
pub use rotation::Renewal;
pub use store::{Identities, Settings};
pub use verify::{Trust, established_peer, peer_identity, server_name};

use crate::model::SpiffeId;

/// Why this node has no certificate for an identity, or no usable authority.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The root's files are unusable: the operator must give a matching pair.
    #[error("root certificate: {0}")]
    Root(String),
    /// The root is at the end of its life: the operator must replace it.
    #[error("{identity}: the root certificate expires at {root_expires}: too soon to issue")]
    RootExpires {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// The end of the root, in UTC.
        root_expires: String,
    },
    /// The configuration names a trust domain that this mesh does not serve.
    #[error("{identity}: trust domain is not one of {accepted}")]
    ForeignTrustDomain {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// The trust domains that are served, by comma.
        accepted: String,
    },
    /// More service accounts on one node than [`store`] keeps.
    #[error("{identity}: {limit} identities are in use on this node already")]
    TooMany {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// The limit.
        limit: usize,
    },
    /// Signing failed.
    #[error("{identity}: the certificate could not be made: {reason}")]
    Issue {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// What the library said.
        reason: String,
    },
    /// What a node asks an authority to sign is not a valid request: the asking side is at fault.
    #[error("certificate request: {0}")]
    Request(String),
    /// The authority cannot be reached: it is tried again, and certificates in use stay.
    #[error("certificate authority {address}: {reason}")]
    Away {
        /// Its host and port.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The authority will not sign, or what it answers is not to be trusted: its log says more.
    #[error("{identity}: the certificate authority refused: {reason}")]
    Refused {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// The authority's words, or what is wrong with its answer.
        reason: String,
    },
    /// A file that the authority's client needs: the operator must mount it.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The same as a moment ago; nobody was asked again.
    #[error(transparent)]
    Again(#[from] std::sync::Arc<IdentityError>),
    /// The authority answered with something that is not a certificate for this identity.
    #[error("{identity}: the issued certificate is unusable")]
    Unusable {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// What is wrong with it.
        source: PeerError,
    },
    /// rustls refused the certificate or key.
    #[error("{identity}: the TLS configuration could not be made")]
    Tls {
        /// For whom a certificate was wanted.
        identity: SpiffeId,
        /// rustls' reason.
        source: rustls::Error,
    },
}

/// Why a peer's certificate does not tell who the peer is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerError {
    /// The handshake is not complete, or the peer sent none.
    #[error("no certificate")]
    NoCertificate,
    /// Not X.509.
    #[error("the certificate is malformed")]
    Malformed,
    /// X509-SVID section 2 asks for exactly one URI name.
    #[error("the certificate has {0} URI names, an identity has exactly one")]
    UriNames(usize),
    /// The one URI name is not an identity of this kind of mesh.
    #[error(transparent)]
    Spiffe(#[from] crate::model::SpiffeError),
    /// A resumed session can outlive the certificate that it was opened with.
    #[error("the certificate of {0} has expired")]
    Expired(SpiffeId),
    /// Signed by an accepted root, but for a trust domain that is not accepted.
    #[error("{0} is of a trust domain that is not accepted")]
    TrustDomain(SpiffeId),
    /// Valid, but someone else.
    #[error("the peer is {0}, which is not the identity that was asked for")]
    OtherIdentity(SpiffeId),
}
