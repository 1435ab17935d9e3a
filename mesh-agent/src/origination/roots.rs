//! Whom a server's certificate is believed from where a policy names no roots of its own: Mozilla's list
//! (crate `webpki-roots`), as the agent's image has no files of a system; or a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Why a file of roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// Give the path of a readable file.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Give a file of certificates (PEM).
    #[error("{}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Mozilla's roots, or those of a file (PEM, one or more).
///
/// # Errors
/// The file cannot be read, or has no certificate in it.
pub fn roots(file: Option<&Path>) -> Result<Arc<RootCertStore>, RootsError> {
    let Some(path) = file else {
        let roots = webpki_roots::TLS_SERVER_ROOTS.to_vec();
        return Ok(Arc::new(RootCertStore { roots }));
    };
    let content = std::fs::read(path)
        .map_err(|source| RootsError::Unreadable { path: path.to_owned(), source })?;
    let store =
        store(&content).map_err(|reason| RootsError::Content { path: path.to_owned(), reason })?;
    Ok(Arc::new(store))
}

/// The certificates of a PEM text as roots. A bundle may have some that webpki cannot read, as old ones
/// are: they are left out, as long as one is left.
pub(super) fn store(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        store.add_parsable_certificates([certificate.map_err(|error| error.to_string())?]);
    }
    match store.is_empty() {
        true => Err("no certificate (PEM) in it".to_owned()),
        false => Ok(store),
    }
}
