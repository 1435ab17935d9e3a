//! Certificates from an authority over the network: Malha's own, an istiod, or istio-csr, which all
//! speak `istio.v1.auth.IstioCertificateService`.
//!
//! One connection per certificate. A node asks for few of them, twice a day, and so no connection
//! can go stale, the roots are those of the moment, and replicas share the work.
//!
//! Invariant: an answer is used only if it leads to a root that the file of roots has now. The key
//! is made here and never sent.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Status};

use super::ca::certificates;
use super::request::SigningRequest;
use super::verify::is_self_issued;
use super::waits::Waits;
use super::{IdentityError, Issued, Trust};
use crate::api::istio_ca::{CertificateRequest, Metadata, create_certificate};
use crate::model::SpiffeId;

/// Time for one certificate, from the connection to the answer. Signing takes the authority less
/// than a millisecond, and its own questions to the API server some tens.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Certificates in an answer, roots among them; a longer one is refused.
const LONGEST_CHAIN: usize = 16;

/// Where an authority is, and how to be admitted there.
pub struct AuthorityClient {
    origin: http::Uri,
    host: String,
    port: u16,
    name: ServerName<'static>,
    roots: PathBuf,
    token: PathBuf,
    domains: Vec<Arc<str>>,
    waits: Mutex<Waits>,
}

/// An open connection, in the shape that tonic calls on.
struct Connection(SendRequest<tonic::body::Body>);

// === AuthorityClient ===

impl AuthorityClient {
    /// An authority at `address` (`https://host:port`). `roots` is a file of certificates that both
    /// the authority and the mesh's peers are believed by, `token` a file with the service account's
    /// token; both are read again whenever they are needed.
    ///
    /// # Errors
    /// When the address is not of that form.
    pub fn new(
        address: &str,
        roots: PathBuf,
        token: PathBuf,
        domains: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Self, IdentityError> {
        let wrong = |reason: &str| IdentityError::Away {
            address: address.to_owned(),
            reason: reason.to_owned(),
        };
        let origin: http::Uri = address.parse().map_err(|_| wrong("not an address"))?;
        if origin.scheme_str() != Some("https") {
            return Err(wrong("the address must begin with https://"));
        }
        let host = origin.host().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = origin.port_u16().ok_or_else(|| wrong("the address has no port"))?;
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong("not a host's name"))?;
        let domains = domains.into_iter().collect();
        let waits = Mutex::default();
        Ok(Self { origin, host, port, name, roots, token, domains, waits })
    }

    /// Whom the file of roots says to believe, now.
    ///
    /// # Errors
    /// When it cannot be read, or holds no certificate.
    pub fn trust(&self) -> Result<Trust, IdentityError> {
        Trust::new(certificates(&read(&self.roots)?)?, self.domains.iter().cloned())
    }

    /// Obtains a certificate. Shortly after a failure it answers the same without asking.
    ///
    /// # Errors
    /// When the authority is away, refuses, or answers what cannot be used.
    pub(super) async fn issue(
        &self,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        self.waits().check(identity, Instant::now())?;
        let asked = tokio::time::timeout(TIMEOUT, self.ask(identity, ttl, now)).await;
        match asked.unwrap_or_else(|_| Err(self.away(format!("no answer in {TIMEOUT:?}")))) {
            Ok(issued) => {
                self.waits().succeeded(identity);
                Ok(issued)
            }
            Err(error) => Err(self.waits().failed(identity, error, Instant::now()).into()),
        }
    }

    async fn ask(
        &self,
        identity: &SpiffeId,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        let trust = self.trust()?;
        let (key, csr) = SigningRequest::make(identity)?;
        let mut request = Request::new(CertificateRequest {
            csr,
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Metadata::impersonating(identity.to_string())),
        });
        let token = format!("Bearer {}", read(&self.token)?.trim());
        let token = token.parse().map_err(|_| self.away("the token's file is malformed"))?;
        request.metadata_mut().insert("authorization", token);
        let stream = self.connect(&trust).await?;
        let (connection, driver) = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.away(error))?;
        let call = create_certificate(Connection(connection), self.origin.clone(), request);
        let (mut call, mut driver) = (pin!(call), pin!(driver));
        let answer = tokio::select! {
            answer = &mut call => answer,
            // What the call has received before the connection ended is still its answer.
            _ = &mut driver => call.await,
        };
        let answer = answer.map_err(|status| self.failed(identity, &status))?;
        let issued = Issued {
            chain: certificates(&answer.cert_chain.join("\n"))?,
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        };
        usable(issued, &trust, now)
            .map_err(|reason| IdentityError::Refused { identity: identity.clone(), reason })
    }

    async fn connect(
        &self,
        trust: &Trust,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, IdentityError> {
        // The default and not the mesh's own provider: an istiod may speak TLS 1.2.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| self.away(error))?
            .with_root_certificates(trust.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let socket = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| self.away(error))?;
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(self.name.clone(), socket)
            .await
            .map_err(|error| self.away(error))
    }

    fn failed(&self, identity: &SpiffeId, status: &Status) -> IdentityError {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                self.away(status.message())
            }
            code => IdentityError::Refused {
                identity: identity.clone(),
                reason: format!("{} ({code:?})", status.message()),
            },
        }
    }

    fn away(&self, reason: impl std::fmt::Display) -> IdentityError {
        let address = format!("{}:{}", self.host, self.port);
        IdentityError::Away { address, reason: reason.to_string() }
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer without what peers have anyway, if it leads to a trusted root. Whether it is the
/// right identity's and the key's is seen when it is made into [`super::Credentials`].
fn usable(mut issued: Issued, trust: &Trust, now: SystemTime) -> Result<Issued, String> {
    if issued.chain.len() > LONGEST_CHAIN {
        return Err(format!("its answer has {} certificates", issued.chain.len()));
    }
    let mut first = true;
    issued.chain.retain(|one| std::mem::take(&mut first) || !is_self_issued(one));
    trust
        .verify_chain(&issued.chain, now)
        .map_err(|error| format!("its answer is not by a trusted root: {error}"))?;
    Ok(issued)
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path)
        .map_err(|source| IdentityError::Unreadable { path: path.to_owned(), source })
}

// === Connection ===

impl Service<http::Request<tonic::body::Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
