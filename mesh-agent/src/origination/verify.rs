//! Which certificates of servers are accepted. Chains, dates, revocation and signatures are webpki's, as
//! are DNS names and addresses; this file adds the names that a policy lists, any of which will do.
//!
//! Invariant: only `insecureSkipVerify` leads to [`Unchecked`], and that still has the server prove that
//! it holds the key of the certificate that it shows. Source: Istio `subjectAltNames` (exact).

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Takes any certificate.
#[derive(Debug)]
pub(super) struct Unchecked(pub(super) WebPkiSupportedAlgorithms);

/// Takes certificates that lead to a root and have one of the names.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    /// Not empty.
    pub(super) names: Arc<[Arc<str>]>,
}

/// The certificate is somebody else's.
#[derive(thiserror::Error)]
#[error("the certificate has none of the names {0:?}")]
struct OtherName(Arc<[Arc<str>]>);

/// What rustls shows of errors that are not its own.
impl fmt::Debug for OtherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let of_server = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match of_server {
            // The name is the last that is looked at (`WebPkiServerVerifier`): all else is well.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        if has_one(end_entity, &self.names)? {
            return Ok(ServerCertVerified::assertion());
        }
        let error = OtherError(Arc::new(OtherName(Arc::clone(&self.names))));
        Err(Error::InvalidCertificate(CertificateError::Other(error)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whether a certificate has one of the names: a DNS name (which the certificate's own wildcard may cover)
/// or an address, or else exactly the text of a URI, a DNS name or a mail address.
fn has_one(certificate: &CertificateDer<'_>, names: &[Arc<str>]) -> Result<bool, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let is_for = |name: &Arc<str>| {
        let name = ServerName::try_from(&**name);
        name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    if names.iter().any(is_for) {
        return Ok(true);
    }
    let malformed = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed())?;
    let found = parsed.subject_alternative_name().map_err(|_| malformed())?;
    let mut texts = found.iter().flat_map(|found| &found.value.general_names);
    Ok(texts.any(|found| match found {
        GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
            names.iter().any(|name| **name == **text)
        }
        GeneralName::DNSName(text) => names.iter().any(|name| name.eq_ignore_ascii_case(text)),
        _ => false,
    }))
}
