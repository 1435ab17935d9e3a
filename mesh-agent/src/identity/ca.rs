//! The local certificate authority, for single machines, the demo and tests: a root certificate and
//! key, its own or given, so that foreign peers can share the trust.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::IdentityError;
use crate::model::SpiffeId;

/// Life of a root that the agent makes itself.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How far a certificate reaches into the past, for nodes whose clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// A root certificate with its key.
pub struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
}

/// A fresh certificate and its key.
pub struct Issued {
    /// Leaf first; the root is not part of it.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key.
    pub key: PrivateKeyDer<'static>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// Roots that peers are checked against.
    pub roots: Vec<CertificateDer<'static>>,
}

impl LocalCa {
    /// Makes a self-signed root (ECDSA P-256) for a trust domain.
    ///
    /// # Errors
    /// When the random generator or the encoder fails.
    pub fn generate(trust_domain: &str) -> Result<Self, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, trust_domain);
        name.push(DnType::CommonName, "Malha root");
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + ROOT_LIFE).into();
        let certificate = params.self_signed(&key)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Uses a given root certificate and key (PEM, PKCS#8).
    ///
    /// # Errors
    /// When either cannot be read.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| IdentityError::NoCertificate)?;
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)?;
        Ok(Self {
            issuer,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// The root certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a certificate with the identity as its only name, valid for `life` from `now`.
    ///
    /// # Errors
    /// When the key or the certificate cannot be made.
    pub fn issue(
        &self,
        identity: &SpiffeId,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let key = KeyPair::generate()?;
        let (not_before, not_after) = (now - CLOCK_SKEW, now + life);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before,
            not_after,
            roots: vec![self.certificate.clone()],
        })
    }
}
