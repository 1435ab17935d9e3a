//! TLS that the agent speaks to a destination in place of its client: `DestinationRule`
//! `trafficPolicy.tls` of the modes SIMPLE and MUTUAL. DISABLE and ISTIO_MUTUAL leave a destination as
//! it is: in the mesh mutual TLS between agents, outside plaintext.
//!
//! Invariant: nothing in here says whether files can be read or a handshake succeeds; a connection whose
//! TLS cannot be had fails, and never goes on without. Source: istio-surface 1.2.1, "TLS details".

use std::sync::Arc;

use super::{Service, TrafficPolicy};

/// `trafficPolicy.tls` of mode SIMPLE or MUTUAL. Paths are of the file system of the client's pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOrigination {
    /// `sni`, in lower case; `None`: of HTTP the request's authority, else the service's host.
    pub sni: Option<Arc<str>>,
    /// `subjectAltNames`: the server's certificate must have one of them. Empty: those of the
    /// `ServiceEntry`; without, the certificate must be for the server name.
    pub names: Arc<[Arc<str>]>,
    /// `insecureSkipVerify`.
    pub skip_verify: bool,
    /// `caCertificates`; `None`: the roots that the agent was started with.
    pub roots: Option<Arc<str>>,
    /// `caCrl`.
    pub revoked: Option<Arc<str>>,
    /// `clientCertificate` and `privateKey`, of mode MUTUAL.
    pub client: Option<ClientFiles>,
    /// `credentialName`, a Secret: an agent may read none, so that connections fail.
    pub secret: Option<Arc<str>>,
}

/// Where a client's certificate is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientFiles {
    /// `clientCertificate`: a chain, leaf first (PEM).
    pub certificate: Arc<str>,
    /// `privateKey` (PEM).
    pub key: Arc<str>,
}

/// What is offered in the handshake (RFC 7301), as Envoy does for the pool that a connection is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Nothing: opaque bytes.
    #[default]
    None,
    /// `http/1.1`.
    Http1,
    /// `h2`.
    Http2,
}

/// TLS for one connection. Two connections whose values differ are never taken for each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsTarget {
    /// What the policy says.
    pub settings: Arc<TlsOrigination>,
    /// Names of which the certificate must have one; empty: `server_name`.
    pub names: Arc<[Arc<str>]>,
    /// The server that is asked for, in lower case: a DNS name, which is sent (RFC 6066 section 3), or an
    /// address, which is not. `None`: the endpoint's address.
    pub server_name: Option<Arc<str>>,
    /// What is spoken inside.
    pub alpn: Alpn,
}

impl TlsOrigination {
    /// Whether files of the client's pod are wanted.
    pub fn has_files(&self) -> bool {
        self.roots.is_some() || self.revoked.is_some() || self.client.is_some()
    }
}

impl TlsTarget {
    /// What a policy says of a connection to `service`. `named`: the host that its client asks for.
    /// `None`: no TLS.
    pub fn of(
        policy: &TrafficPolicy,
        service: Option<&Service>,
        named: Option<&str>,
        alpn: Alpn,
    ) -> Option<Self> {
        let settings = policy.tls.as_ref()?;
        let of_service = || service.and_then(|service| service.external());
        let names = match &*settings.names {
            [] => of_service().map(|external| Arc::clone(&external.subject_alt_names)),
            _ => Some(Arc::clone(&settings.names)),
        };
        let named = || named.map(|name| name.to_ascii_lowercase().into());
        Some(Self {
            settings: Arc::clone(settings),
            names: names.unwrap_or_default(),
            server_name: settings.sni.clone().or_else(named),
            alpn,
        })
    }
}
