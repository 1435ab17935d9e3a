//! Where certificates come from: a root on this machine, or an authority over the network.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{AuthorityClient, IdentityError, LocalCa, Trust};
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
    /// An authority over the network.
    Authority(AuthorityClient),
}

impl Issued {
    pub(super) fn again(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
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
            Self::Authority(client) => client.issue(identity, ttl, now).await,
        }
    }

    /// Whom to believe from now on, where that can change while the agent runs.
    pub(super) fn trust(&self) -> Option<Result<Trust, IdentityError>> {
        match self {
            Self::Local(_) => None,
            Self::Authority(client) => Some(client.trust()),
        }
    }
}
