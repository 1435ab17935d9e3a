//! What one certificate is used for: a rustls server and a rustls client configuration, built once.
//!
//! Invariant: session state belongs to the certificate. Tickets that the server half hands out and
//! sessions that the client half remembers end with it, at the next rotation or change of trust.
//!
//! Sources: RFC 8446; Istio's HBONE (TLS 1.3, both sides authenticated, ALPN `h2`).

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use super::verify::{ClientIdentity, facts, server_name};
use super::{IdentityError, Issued, PeerError, Trust, provider};
use crate::model::SpiffeId;

/// The one application protocol inside.
const ALPN: &[u8] = b"h2";
/// Destination identities whose sessions one source certificate remembers. Beyond it the oldest is
/// forgotten, which costs a full handshake (about 230 us on each side instead of 70).
const REMEMBERED_IDENTITIES: usize = 1024;

/// A certificate of this node, ready for use.
pub struct Credentials {
    identity: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    issued: Issued,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Credentials {
    /// Builds both configurations.
    ///
    /// # Errors
    /// When the certificate is not this identity's, or rustls refuses it.
    pub fn new(identity: &SpiffeId, issued: Issued, trust: &Trust) -> Result<Self, IdentityError> {
        let unusable = |source| IdentityError::Unusable { identity: identity.clone(), source };
        let leaf = issued.chain.first().ok_or_else(|| unusable(PeerError::NoCertificate))?;
        let facts = facts(leaf).map_err(unusable)?;
        if facts.identity != *identity {
            return Err(unusable(PeerError::OtherIdentity(facts.identity)));
        }
        let tls = |source| IdentityError::Tls { identity: identity.clone(), source };
        let server = server_config(issued.again(), trust.client_verifier()?).map_err(tls)?;
        let client = client_config(issued.again(), trust).map_err(tls)?;
        Ok(Self {
            identity: identity.clone(),
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            issued,
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }

    /// The same certificate for other roots, without the sessions made under the old ones.
    pub(super) fn under(&self, trust: &Trust) -> Result<Self, IdentityError> {
        Self::new(&self.identity, self.issued.again(), trust)
    }

    pub(super) fn issued(&self) -> &Issued {
        &self.issued
    }

    /// Whose certificate it is.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// For connections that are accepted: the client must show a certificate.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// For a connection to a workload of the `expected` identity and no other. The name belongs to
    /// the configuration: used with another one, it verifies nothing.
    pub fn client(&self, expected: &SpiffeId) -> (Arc<ClientConfig>, ServerName<'static>) {
        (Arc::clone(&self.client), server_name(expected))
    }

    /// Start of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn server_config(
    issued: Issued,
    verifier: Arc<ClientIdentity>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(issued.chain, issued.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = Ticketer::new()?;
    Ok(config)
}

fn client_config(issued: Issued, trust: &Trust) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(trust.server_verifier())
        .with_client_auth_cert(issued.chain, issued.key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_IDENTITIES);
    Ok(config)
}
