//! A workload's certificate as rustls configurations, built once.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::ca::Issued;
use super::provider::provider;
use super::verify::{ClientVerifier, ServerVerifier, server_name};
use super::IdentityError;
use crate::model::SpiffeId;

/// HTTP/2, the only protocol inside a tunnel.
const ALPN: &[u8] = b"h2";

/// Sessions that one source keeps for resumption: one per destination identity it talks to.
const SESSIONS: usize = 256;

/// TLS 1.3 tickets that a server hands out per session; a pool opens few connections.
const TICKETS: usize = 2;

/// A certificate in use.
#[derive(Debug)]
pub struct Credentials {
    identity: SpiffeId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number in hexadecimal.
    pub serial: String,
}

impl Credentials {
    /// Builds both sides' configurations. Tickets and sessions belong to this certificate: the next
    /// one starts with none.
    ///
    /// # Errors
    /// When rustls does not accept the material.
    pub fn new(
        identity: SpiffeId,
        trust_domain: Arc<str>,
        issued: Issued,
    ) -> Result<Self, IdentityError> {
        let provider = provider();
        let mut roots = RootCertStore::empty();
        for root in &issued.roots {
            roots.add(root.clone())?;
        }
        let roots = Arc::new(roots);
        let clients = ClientVerifier::new(roots.clone(), provider.clone(), trust_domain)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(clients))
            .with_single_cert(issued.chain.clone(), issued.key.clone_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.ticketer = rustls::crypto::ring::Ticketer::new()?;
        server.send_tls13_tickets = TICKETS;
        let servers: Arc<dyn ServerCertVerifier> =
            Arc::new(ServerVerifier { roots, provider: provider.clone() });
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_auth_cert(issued.chain.clone(), issued.key)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self {
            identity,
            server: Arc::new(server),
            client: Arc::new(client),
            not_before: issued.not_before,
            not_after: issued.not_after,
            serial: serial(&issued.chain),
        })
    }

    /// Whose they are.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// For taking tunnels.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For opening a tunnel to `expected` and nobody else.
    ///
    /// # Errors
    /// Never in practice, see [`server_name`].
    pub fn client(
        &self,
        expected: &SpiffeId,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), IdentityError> {
        Ok((self.client.clone(), server_name(expected)?))
    }
}

fn serial(chain: &[rustls::pki_types::CertificateDer<'_>]) -> String {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    chain
        .first()
        .and_then(|leaf| X509Certificate::from_der(leaf).ok())
        .map(|(_, certificate)| certificate.raw_serial_as_string())
        .unwrap_or_default()
}
