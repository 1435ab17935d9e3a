//! A certificate authority inside the process: its root is made here or read from files, so that
//! foreign peers (Envoy, an Istio) can share the trust. The cluster's authority signs with it too.
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
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::request::SigningRequest;
use super::verify::timestamp;
use super::{IdentityError, Issued, Trust, provider};
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

/// A root certificate, or one below a root, with its key.
pub struct LocalCa {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    /// From this certificate to the one below the root; empty if this is the root.
    intermediates: Vec<CertificateDer<'static>>,
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
        let [certificate] = <[_; 1]>::try_from(certificates(certificate_pem)?)
            .map_err(|found| root(format!("{} certificates in the file, not 1", found.len())))?;
        let key = KeyPair::from_pem(key_pem).map_err(|error| root(format!("key: {error}")))?;
        let (not_after, expires) = end(&certificate)?;
        {
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(root)?;
            if !parsed.is_ca() {
                return Err(fail("not a certificate authority (basicConstraints)"));
            }
            if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
                return Err(fail("the key is another certificate's"));
            }
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key).map_err(root)?;
        if !issuer.key_usages().is_empty()
            && !issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign)
        {
            return Err(fail("it may not sign certificates (keyUsage)"));
        }
        let certificate_pem = certificate_pem.to_owned();
        let intermediates = Vec::new();
        Ok(Self { issuer, certificate, certificate_pem, intermediates, not_after, expires })
    }

    /// Puts the certificate below a root: `chain` leads from it to one of `roots`, and either end
    /// may or may not be in it (files of Istio's `cacerts` differ).
    ///
    /// # Errors
    /// When no root can be reached, or a text is not PEM.
    pub fn below(
        mut self,
        chain: &str,
        roots: &str,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let roots = certificates(roots)?;
        let mut path = vec![self.certificate.clone()];
        path.extend(certificates(chain)?.into_iter().filter(|one| *one != self.certificate));
        path.retain(|one| !roots.contains(one));
        let top = path.last().unwrap_or(&self.certificate);
        let mut ends = path.iter().map(end).collect::<Result<Vec<_>, _>>()?;
        // Of several roots that it may lead to, peers take any that is valid.
        let above = roots.iter().filter(|one| is_issuer(one, top));
        ends.extend(above.map(end).collect::<Result<Vec<_>, _>>()?.into_iter().max());
        for (not_after, expires) in ends {
            if not_after < self.not_after {
                (self.not_after, self.expires) = (not_after, expires);
            }
        }
        self.intermediates = path;
        // The verifier judges a leaf only, so one is made.
        let domain: std::sync::Arc<str> = "probe".into();
        let probe = SpiffeId {
            trust_domain: domain.clone(),
            namespace: domain.clone(),
            service_account: domain.clone(),
        };
        let leaf = self.issue(&probe, SHORTEST_LIFE, now)?;
        Trust::new(roots, [domain])?
            .verify_chain(&leaf.chain, now)
            .map_err(|error| root(format!("the chain leads to no trusted root: {error}")))?;
        Ok(self)
    }

    /// The root certificate: what peers must trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The root certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's key as PEM (PKCS#8): for whoever keeps the root.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
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

    /// When the certificate, or one above it, ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
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
        let key = KeyPair::generate().map_err(|error| failed(identity, &error))?;
        let chain = self.certify(identity, &key, ttl, now)?;
        Ok(Issued { chain, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) })
    }

    /// As [`Self::issue`], for a key that another holds. Nothing but the key is taken from the
    /// request: who the holder is, the caller knows better than the holder says.
    ///
    /// # Errors
    /// When the root is at its end, or the identity cannot be written into a certificate.
    pub fn sign(
        &self,
        request: &SigningRequest,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        self.certify(identity, request.key(), ttl, now)
    }

    /// Makes a key and a certificate for a server that is known by names, not by an identity.
    ///
    /// # Errors
    /// When the root is at its end, or a name cannot be written into a certificate.
    pub fn issue_server(
        &self,
        names: &[ServerName<'_>],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let names = names.iter().map(|name| match name {
            ServerName::DnsName(name) => Ok(SanType::DnsName(name.as_ref().try_into()?)),
            ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
            _ => Err(rcgen::Error::InvalidNameType),
        });
        let names = names.collect::<Result<_, _>>().map_err(root)?;
        let mut params = self.leaf(names, ttl, now).map_err(root)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(root)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(root)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Issued { chain: self.chain(leaf.der()), key })
    }

    fn certify(
        &self,
        identity: &SpiffeId,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        if self.not_after < now + SHORTEST_LIFE {
            return Err(IdentityError::RootExpires {
                identity: identity.clone(),
                root_expires: self.expires.clone(),
            });
        }
        let certify = || {
            let mut params = self.leaf(vec![uri(&identity.to_string())?], ttl, now)?;
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            if !is_elliptic(key) {
                // For RSA only (RFC 8813 section 3).
                params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
            }
            params.signed_by(key, &self.issuer)
        };
        let leaf = certify().map_err(|error| failed(identity, &error))?;
        Ok(self.chain(leaf.der()))
    }

    /// What all leaves have in common.
    fn leaf(
        &self,
        names: Vec<SanType>,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        // An empty subject makes the alternative name critical, as X509-SVID wants it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ttl).min(self.not_after).into();
        params.serial_number = Some(serial()?);
        Ok(params)
    }

    fn chain(&self, leaf: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![leaf.clone()];
        chain.extend_from_slice(&self.intermediates);
        chain
    }
}

fn is_elliptic(key: &impl PublicKeyData) -> bool {
    let rsa = [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_RSA_SHA384, &rcgen::PKCS_RSA_SHA512];
    !rsa.contains(&key.algorithm())
}

/// All certificates of a PEM text.
pub(super) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(root)
}

/// The end of a certificate's life, and the same to be read by people.
fn end(certificate: &CertificateDer<'static>) -> Result<(SystemTime, String), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(root)?;
    let not_after = &parsed.validity().not_after;
    Ok((timestamp(not_after), not_after.to_string()))
}

/// Whether one bears the name that another gives for its issuer.
fn is_issuer(one: &CertificateDer<'_>, of: &CertificateDer<'_>) -> bool {
    let names = (X509Certificate::from_der(one), X509Certificate::from_der(of));
    matches!(names, (Ok((_, one)), Ok((_, of))) if one.subject().as_raw() == of.issuer().as_raw())
}

fn failed(identity: &SpiffeId, error: &rcgen::Error) -> IdentityError {
    IdentityError::Issue { identity: identity.clone(), reason: error.to_string() }
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
