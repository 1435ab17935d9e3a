//! Who is at the other end: chain and validity by webpki, the name by SPIFFE ID.
//!
//! A client's expectation travels in the `ServerName` (SNI is off): rustls keys its resumption store
//! by it, so a session with one identity can never be resumed as another.

use std::fmt::Write as _;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::IdentityError;
use crate::model::SpiffeId;

/// The identity that a verified chain names: its leaf's only URI name.
///
/// # Errors
/// When there is no such name, more than one, or it is not an identity of a mesh.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, IdentityError> {
    let wrong = |why: &str| IdentityError::NoIdentity(why.to_owned());
    let leaf = chain.first().ok_or_else(|| wrong("no certificate was sent"))?;
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|_| wrong("the certificate is malformed"))?;
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or_else(|| wrong("no subject alternative name"))?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| IdentityError::NoIdentity(uri.to_owned())),
        (None, _) => Err(wrong("no URI name")),
        // SPIFFE X.509-SVID section 2: exactly one URI.
        (Some(_), Some(_)) => Err(wrong("more than one URI name")),
    }
}

/// The name under which a client asks rustls for `identity`: a digest, since a SPIFFE ID is no DNS
/// name.
///
/// # Errors
/// Never in practice: the digest is always a valid name.
pub fn server_name(identity: &SpiffeId) -> Result<ServerName<'static>, IdentityError> {
    let digest = aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA256,
        identity.to_string().as_bytes(),
    );
    let mut name = String::with_capacity(80);
    for (index, byte) in digest.as_ref().iter().enumerate() {
        if index == 16 {
            name.push('.');
        }
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".spiffe.invalid");
    ServerName::try_from(name)
        .map_err(|_| IdentityError::NoIdentity(identity.to_string()))
}

fn bad_name(error: IdentityError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Checks servers: chain, validity, and exactly the identity that was asked for.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = peer_identity(std::slice::from_ref(end_entity)).map_err(bad_name)?;
        if server_name(&identity).map_err(bad_name)? == *asked {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(bad_name(IdentityError::Unexpected(identity)))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks clients: chain and validity by webpki, and an identity of this trust domain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    trust_domain: Arc<str>,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domain: Arc<str>,
    ) -> Result<Self, IdentityError> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { inner, trust_domain })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let identity = peer_identity(std::slice::from_ref(end_entity)).map_err(bad_name)?;
        if identity.trust_domain == self.trust_domain {
            Ok(verified)
        } else {
            Err(bad_name(IdentityError::Unexpected(identity)))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
