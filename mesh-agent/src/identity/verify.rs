//! Who may speak to whom, in TLS: the verifiers of both sides, and the peer's name after a
//! handshake. Chains, dates, key usages and signatures are checked by webpki, through rustls; this
//! file adds the identity. DNS names mean nothing here.
//!
//! Invariant: a client accepts exactly one identity, the one its `ServerName` encodes. As rustls
//! keeps sessions by `ServerName`, a ticket of one identity cannot open a session with another.
//!
//! Source: X509-SVID sections 2 and 5; RFC 8446 section 4.6.1 (resumption skips verification).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate};

use super::{IdentityError, PeerError, provider};
use crate::model::SpiffeId;

/// Whom the mesh believes: roots, and the trust domains that they may speak for.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    domains: Arc<[Arc<str>]>,
}

/// What a certificate says about its holder.
pub(super) struct Facts {
    pub(super) identity: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub(super) serial: String,
}

/// Used by clients.
#[derive(Debug)]
pub(super) struct ServerIdentity {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Used by servers.
pub(super) struct ClientIdentity {
    trust: Trust,
    chain: Arc<dyn ClientCertVerifier>,
}

// === Trust ===

impl Trust {
    /// Trusts these roots for these trust domains; the first is the mesh's own.
    ///
    /// # Errors
    /// When there is no root, or one is not a certificate.
    pub fn new(
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        domains: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Self, IdentityError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).map_err(|error| IdentityError::Root(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(IdentityError::Root("none given".to_owned()));
        }
        Ok(Self { roots: Arc::new(store), domains: domains.into_iter().collect() })
    }

    /// Believes nobody: the roots are not there yet.
    pub fn nobody(domains: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { roots: Arc::new(RootCertStore::empty()), domains: domains.into_iter().collect() }
    }

    /// Whether there is nobody to believe.
    pub(super) fn is_nobody(&self) -> bool {
        self.roots.is_empty()
    }

    /// Whether the identity's trust domain is accepted.
    pub fn accepts(&self, identity: &SpiffeId) -> bool {
        self.domains.contains(&identity.trust_domain)
    }

    /// Whether both believe the same roots for the same trust domains.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.roots.roots == other.roots.roots && self.domains == other.domains
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Whether a chain (leaf first) leads to one of the roots, and all of it is valid at `now`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) =
            chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            UnixTime::since_unix_epoch(now),
            provider().signature_verification_algorithms.all,
        )
    }

    /// The accepted trust domains.
    pub fn domains(&self) -> &[Arc<str>] {
        &self.domains
    }

    pub(super) fn server_verifier(&self) -> Arc<ServerIdentity> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(ServerIdentity { trust: self.clone(), algorithms })
    }

    pub(super) fn client_verifier(&self) -> Result<Arc<ClientIdentity>, IdentityError> {
        // No root names in the request: a scanner learns nothing, and mesh clients have one
        // certificate to send anyway.
        let chain =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
                .clear_root_hint_subjects()
                .build()
                .map_err(|error| IdentityError::Root(error.to_string()))?;
        Ok(Arc::new(ClientIdentity { trust: self.clone(), chain }))
    }
}

// === Peers ===

/// The name under which a client asks for an identity: half of the identity's SHA-256 digest in the
/// shape of an IPv6 address, because an identity can be longer than a DNS name may be. Never sent.
///
/// 128 bits: to pass for a given identity one would have to find another with the same digest,
/// 2^128 attempts; and `established_peer` is compared in full.
pub fn server_name(identity: &SpiffeId) -> ServerName<'static> {
    let text = identity.to_string();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    let mut half = [0; 16];
    half.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    ServerName::from(IpAddr::from(half))
}

/// The identity in a chain's leaf. Says nothing about whether the chain is trusted: rustls did that
/// before it handed it out.
///
/// # Errors
/// When there is no certificate, or it does not carry exactly one URI of the mesh's form.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    Ok(facts(chain.first().ok_or(PeerError::NoCertificate)?)?.identity)
}

/// The peer of a completed handshake, to be compared with the one that was expected. A resumed
/// session is not verified by rustls and may be older than the certificate's end: so that is
/// checked here.
///
/// # Errors
/// As [`peer_identity`], or when the certificate has ended by `now`.
pub fn established_peer(connection: &CommonState, now: SystemTime) -> Result<SpiffeId, PeerError> {
    let chain = connection.peer_certificates().ok_or(PeerError::NoCertificate)?;
    let facts = facts(chain.first().ok_or(PeerError::NoCertificate)?)?;
    if facts.not_after <= now {
        return Err(PeerError::Expired(facts.identity));
    }
    Ok(facts.identity)
}

/// Reads a leaf.
pub(super) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, PeerError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Malformed)?;
    let names = parsed.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris.as_slice() else { return Err(PeerError::UriNames(uris.len())) };
    Ok(Facts {
        identity: uri.parse()?,
        not_before: timestamp(&parsed.validity().not_before),
        not_after: timestamp(&parsed.validity().not_after),
        serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// Whether a certificate names itself as its issuer, as a root does.
pub(super) fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

/// Certificate time; what lies before 1970 is 1970.
pub(super) fn timestamp(time: &ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// rustls shows a foreign error in its `Debug` form only, and it ends in a log line.
#[derive(thiserror::Error)]
#[error(transparent)]
struct Refusal(PeerError);

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn refuse(error: PeerError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(Refusal(error)))).into()
}

/// The mesh speaks TLS 1.3 only, so rustls never asks for this.
fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

// === ServerIdentity ===

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        expected: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.trust.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let presented = facts(end_entity).map_err(refuse)?.identity;
        if server_name(&presented) == *expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refuse(PeerError::OtherIdentity(presented)))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === ClientIdentity ===

impl ClientCertVerifier for ClientIdentity {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let presented = facts(end_entity).map_err(refuse)?.identity;
        if self.trust.accepts(&presented) {
            Ok(verified)
        } else {
            Err(refuse(PeerError::TrustDomain(presented)))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("trust", &self.trust).finish_non_exhaustive()
    }
}
