//! Where certificates come from. One kind today: a root on this machine.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{IdentityError, LocalCa};
use crate::model::SpiffeId;

/// A fresh certificate and its key.
pub struct Issued {
    /// Leaf first, then intermediates; the root is not part of it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

/// An authority that signs the node's identities.
pub enum Issuer {
    /// A root certificate and key in this process.
    Local(LocalCa),
}

impl Issuer {
    /// Obtains a certificate that is valid from `now` for about `ttl`.
    ///
    /// # Errors
    /// When the authority cannot or will not sign; worth another try later.
    pub async fn issue(
        &self,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        match self {
            Self::Local(ca) => ca.issue(identity, ttl, now),
        }
    }
}
