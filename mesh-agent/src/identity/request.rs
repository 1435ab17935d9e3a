//! A request for a certificate (PKCS#10): made by the node that holds the key, read by the authority.
//!
//! Invariant: a request that was read proves that its maker holds the key. Nothing else that it says
//! is kept: names in it are wishes. Source: RFC 2986.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::IdentityError;
use crate::model::SpiffeId;

/// A key for which a certificate is wanted.
#[derive(Debug)]
pub struct SigningRequest(SubjectPublicKeyInfo);

impl SigningRequest {
    /// Reads a request and checks its signature.
    ///
    /// # Errors
    /// When it is malformed, of an unknown kind of key, or signed by another key than its own.
    pub fn read(pem: &str) -> Result<Self, IdentityError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(refused)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(refused)?;
        if !rest.is_empty() {
            return Err(refused("something follows it"));
        }
        request.verify_signature().map_err(|error| refused(format!("signature: {error}")))?;
        let key = request.certification_request_info.subject_pki.raw;
        SubjectPublicKeyInfo::from_der(key).map(Self).map_err(refused)
    }

    /// Makes a key (ECDSA P-256) and the request for it. The identity is in it for authorities that
    /// want to see it there, as istio-csr does.
    ///
    /// # Errors
    /// When the identity cannot be written into a request.
    pub(super) fn make(identity: &SpiffeId) -> Result<(KeyPair, String), IdentityError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
            let pem = params.serialize_request(&key)?.pem()?;
            Ok((key, pem))
        };
        make().map_err(|error: rcgen::Error| IdentityError::Request(error.to_string()))
    }

    pub(super) fn key(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }
}

fn refused(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Request(error.to_string())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::PublicKeyData as _;

    use super::*;

    fn identity() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
    }

    #[test]
    fn what_is_made_can_be_read() {
        let (key, pem) = SigningRequest::make(&identity()).unwrap();
        let read = SigningRequest::read(&pem).unwrap();
        assert_eq!(read.key().der_bytes(), key.public_key_raw());
    }

    #[test]
    fn a_request_for_anothers_key_is_refused() {
        let (_, pem) = SigningRequest::make(&identity()).unwrap();
        let (other, _) = SigningRequest::make(&identity()).unwrap();
        let (mine, _) = SigningRequest::make(&identity()).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
        let key = parsed.certification_request_info.subject_pki.subject_public_key.data.to_vec();
        let at = der.windows(key.len()).position(|window| window == key).unwrap();
        for other in [other, mine] {
            let mut stolen = der.clone();
            stolen[at..at + key.len()].copy_from_slice(other.public_key_raw());
            let pem = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                STANDARD.encode(stolen)
            );
            let error = SigningRequest::read(&pem).unwrap_err().to_string();
            assert!(error.starts_with("certificate request: signature"), "{error}");
        }
    }

    #[test]
    fn rubbish_is_refused() {
        for text in [
            "",
            "x",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        ] {
            assert!(SigningRequest::read(text).is_err(), "{text}");
        }
    }
}
