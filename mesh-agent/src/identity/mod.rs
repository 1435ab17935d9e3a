//! SPIFFE certificates: issued, renewed at half life, and turned into rustls configurations once
//! per certificate.
//!
//! Knows nothing of pods or connections. Invariant: whoever gets [`Credentials`] gets valid ones;
//! a failed renewal keeps those in force. Keys live in memory only.

mod ca;
mod credentials;
mod provider;
mod rotation;
mod store;
#[cfg(test)]
mod tests;
mod verify;

pub use ca::{Issued, LocalCa};
pub use credentials::Credentials;
pub use store::{Identities, Issuer};
pub use verify::{peer_identity, server_name};

/// What can go wrong with identities.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate or key could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// PEM text that holds no certificate.
    #[error("no certificate found in the PEM text")]
    NoCertificate,
    /// rustls does not accept the material.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer's certificate names no identity of a mesh.
    #[error("the peer's certificate holds no single SPIFFE ID: {0}")]
    NoIdentity(String),
    /// A valid identity, but not the one that may be there.
    #[error("the peer is {0}, which is not who may be there")]
    Unexpected(crate::model::SpiffeId),
    /// The verifier of client certificates could not be built.
    #[error("client verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}
