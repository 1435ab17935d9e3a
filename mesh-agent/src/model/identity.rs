//! SPIFFE identities (SPIFFE-ID standard; Istio's path layout `ns/<namespace>/sa/<account>`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Trust domain, e.g. `cluster.local`.
    pub trust_domain: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes service account.
    pub service_account: Arc<str>,
}

/// Why a string is not an identity that this mesh can name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct SpiffeError(String);

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || SpiffeError(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(error)?;
        let parts: Vec<&str> = rest.split('/').collect();
        match parts.as_slice() {
            [domain, "ns", namespace, "sa", account]
                if [domain, namespace, account].iter().all(|part| !part.is_empty()) =>
            {
                Ok(Self {
                    trust_domain: (*domain).into(),
                    namespace: (*namespace).into(),
                    service_account: (*account).into(),
                })
            }
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_parse_agree() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
    }

    #[test]
    fn foreign_shapes_are_refused() {
        for text in
            ["", "spiffe://", "spiffe://td/ns/a/sa/", "spiffe://td/ns/a/sa/b/c", "http://td"]
        {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
