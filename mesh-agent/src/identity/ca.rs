//! A certificate authority inside the process: its root is made here or read from files, so that
//! foreign peers (Envoy, an Istio) can share the trust.
//!
//! What it is not: it decides nobody's right to an identity; the caller does.
//! Invariant: what it issues never outlives the root. Source: X509-SVID sections 2 to 4, RFC 5280.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::verify::timestamp;
use super::{IdentityError, Issued, provider};
use crate::model::SpiffeId;

/// Life of a generated root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Certificates start this long before they are made: nodes' clocks differ.
const BACKDATE: Duration = Duration::from_secs(120);
/// A root that ends sooner issues nothing: a leaf that short could not be renewed in time.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);
/// RFC 5280 4.1.2.2 allows 20 octets; 16 random ones never repeat.
const SERIAL_BYTES: usize = 16;
/// File names, as Istio's `cacerts` secret has them for the root.
const CERT_FILE: &str = "root-cert.pem";
const KEY_FILE: &str = "root-key.pem";

/// A root certificate with its key.
pub struct LocalCa {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    not_after: SystemTime,
    /// The same, to be read by people.
    expires: String,
}

impl LocalCa {
    /// Makes a root for a trust domain: ECDSA P-256, ten years.
    ///
    /// # Errors
    /// When the trust domain cannot be written into a certificate.
    pub fn generate(trust_domain: &str) -> Result<Self, IdentityError> {
        Self::generate_at(trust_domain, ROOT_LIFETIME, SystemTime::now())
    }

    /// As [`Self::generate`], for a root that ends `lifetime` after `now`.
    ///
    /// # Errors
    /// When the trust domain cannot be written into a certificate.
    pub fn generate_at(
        trust_domain: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.distinguished_name.push(DnType::CommonName, "Malha root");
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}")).map_err(root)?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + lifetime).into();
        params.serial_number = Some(serial().map_err(root)?);
        let key = KeyPair::generate().map_err(root)?;
        let certificate = params.self_signed(&key).map_err(root)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads a root from PEM text; the key may be PKCS#8, SEC1 or PKCS#1.
    ///
    /// # Errors
    /// When either is not PEM, there is not exactly one certificate, it may not sign others, or the
    /// key is not the certificate's.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let fail = |what: &str| IdentityError::Root(what.to_owned());
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(root)?;
        let [certificate] = <[_; 1]>::try_from(certificates)
            .map_err(|found| root(format!("{} certificates in the file, not 1", found.len())))?;
        let key = KeyPair::from_pem(key_pem).map_err(|error| root(format!("key: {error}")))?;
        let (not_after, expires) = {
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(root)?;
            if !parsed.is_ca() {
                return Err(fail("not a certificate authority (basicConstraints)"));
            }
            if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
                return Err(fail("the key is another certificate's"));
            }
            let not_after = &parsed.validity().not_after;
            (timestamp(not_after), not_after.to_string())
        };
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key).map_err(root)?;
        if !issuer.key_usages().is_empty()
            && !issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign)
        {
            return Err(fail("it may not sign certificates (keyUsage)"));
        }
        let certificate_pem = certificate_pem.to_owned();
        Ok(Self { issuer, certificate, certificate_pem, not_after, expires })
    }

    /// The root certificate: what peers must trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Writes `root-cert.pem` and `root-key.pem` (mode 0600) into an existing directory. Refuses to
    /// replace either: a lost root key is a lost mesh.
    ///
    /// # Errors
    /// When a file exists or cannot be written.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let create = |name: &str, mode| {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(dir.join(name))
        };
        create(KEY_FILE, 0o600)?.write_all(self.issuer.key().serialize_pem().as_bytes())?;
        create(CERT_FILE, 0o644)?.write_all(self.certificate_pem.as_bytes())
    }

    /// Makes a key and a certificate for an identity, valid from shortly before `now` to `ttl`
    /// after it, or to the root's end if that is sooner.
    ///
    /// # Errors
    /// When the root is at its end, or the identity cannot be written into a certificate.
    pub fn issue(
        &self,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        if self.not_after < now + SHORTEST_LIFE {
            return Err(IdentityError::RootExpires {
                identity: identity.clone(),
                root_expires: self.expires.clone(),
            });
        }
        self.sign(identity, ttl, now).map_err(|error| IdentityError::Issue {
            identity: identity.clone(),
            reason: error.to_string(),
        })
    }

    fn sign(
        &self,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, rcgen::Error> {
        let mut params = CertificateParams::default();
        // An empty subject makes the alternative name critical, as X509-SVID wants it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ttl).min(self.not_after).into();
        params.serial_number = Some(serial()?);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Issued { chain: vec![leaf.der().clone()], key })
    }
}

fn root(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Root(error.to_string())
}

fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(text.try_into()?))
}

fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; SERIAL_BYTES];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| rcgen::Error::RingUnspecified)?;
    // Positive (RFC 5280 4.1.2.2) and of full length.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
