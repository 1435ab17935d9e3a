//! From a policy and the content of its files to a rustls configuration. Pure.
//!
//! Source: RFC 7301 (ALPN); TLS 1.2 and 1.3, as Istio's `defaultUpstreamCommonTLSContext`.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs as crypto};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::OriginationError;
use super::roots::store;
use super::verify::{Named, Unchecked};
use crate::model::{Alpn, TlsOrigination, TlsTarget};

/// Unlike the mesh's own: servers outside may know TLS 1.2 only.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(crypto::default_provider()));

/// The content of the files that a policy names.
#[derive(Default)]
pub(super) struct Files {
    roots: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

// === impl Files ===

impl Files {
    /// Reads those that are named.
    pub(super) fn read(
        settings: &TlsOrigination,
        read: impl Fn(&str) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, OriginationError> {
        let read = |path: Option<&Arc<str>>| {
            path.map(|path| read(path).map_err(|error| wrong(path, error))).transpose()
        };
        let client = settings.client.as_ref();
        Ok(Self {
            roots: read(settings.roots.as_ref())?,
            revoked: read(settings.revoked.as_ref())?,
            certificate: read(client.map(|files| &files.certificate))?,
            key: read(client.map(|files| &files.key))?,
        })
    }

    /// Tells other content apart, without keeping a key.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for file in [&self.roots, &self.revoked, &self.certificate, &self.key] {
            let content = file.as_deref().unwrap_or_default();
            context.update(&content.len().to_be_bytes());
            context.update(content);
        }
        let mut digest = [0; 32];
        digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        digest
    }
}

/// The configuration for one kind of connection. `roots`: for policies that name none.
pub(super) fn config(
    to: &TlsTarget,
    roots: &Arc<RootCertStore>,
    files: &Files,
) -> Result<ClientConfig, OriginationError> {
    let settings = &*to.settings;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .map_err(|error| OriginationError::Unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(to, roots, files)?);
    let mut config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(paths) => {
            let chain = certificates(&paths.certificate, files.certificate.as_deref())?;
            let key = files.key.as_deref().unwrap_or_default();
            let key =
                PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&paths.key, error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| OriginationError::Unusable(error.to_string()))?
        }
    };
    config.alpn_protocols = match to.alpn {
        Alpn::None => Vec::new(),
        Alpn::Http1 => vec![b"http/1.1".to_vec()],
        Alpn::Http2 => vec![b"h2".to_vec()],
    };
    Ok(config)
}

fn verifier(
    to: &TlsTarget,
    roots: &Arc<RootCertStore>,
    files: &Files,
) -> Result<Arc<dyn ServerCertVerifier>, OriginationError> {
    let settings = &*to.settings;
    if settings.skip_verify {
        return Ok(Arc::new(Unchecked(PROVIDER.signature_verification_algorithms)));
    }
    let roots = match (&settings.roots, &files.roots) {
        (Some(path), Some(content)) => {
            Arc::new(store(content).map_err(|reason| wrong(path, reason))?)
        }
        _ => Arc::clone(roots),
    };
    let mut chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&PROVIDER));
    if let (Some(path), Some(content)) = (&settings.revoked, &files.revoked) {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(content).collect();
        let lists = lists.map_err(|error| wrong(path, error))?;
        if lists.is_empty() {
            return Err(wrong(path, "no list of revoked certificates (PEM) in it"));
        }
        chain = chain.with_crls(lists).enforce_revocation_expiration();
    }
    let chain = chain.build().map_err(|error| OriginationError::Unusable(error.to_string()))?;
    if to.names.is_empty() {
        return Ok(chain);
    }
    Ok(Arc::new(Named { chain, names: Arc::clone(&to.names) }))
}

fn certificates(
    path: &Arc<str>,
    content: Option<&[u8]>,
) -> Result<Vec<CertificateDer<'static>>, OriginationError> {
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(content.unwrap_or_default()).collect();
    match found.map_err(|error| wrong(path, error))? {
        none if none.is_empty() => Err(wrong(path, "no certificate (PEM) in it")),
        found => Ok(found),
    }
}

fn wrong(path: &Arc<str>, reason: impl std::fmt::Display) -> OriginationError {
    OriginationError::File { path: Arc::clone(path), reason: reason.to_string() }
}
