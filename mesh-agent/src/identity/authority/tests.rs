//! The client against authorities of this process's own: an honest one, and others.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use tempfile::NamedTempFile;
use tokio::net::TcpListener;

use super::*;
use crate::api::istio_ca::{CertificateResponse, CertificateService, answer};
use crate::identity::{Credentials, LocalCa, PeerError, certificate_pem};

const HOUR: Duration = Duration::from_secs(3600);

/// What the authority does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Signs for somebody else than it is asked for.
    OtherIdentity,
    /// Signs a key of its own.
    OtherKey,
    /// Signs with a root that nobody trusts.
    OtherRoot,
    Refuses,
    Silent,
}

struct Fake {
    ca: LocalCa,
    signer: LocalCa,
    manner: Manner,
    asked: AtomicUsize,
}

impl CertificateService for Fake {
    async fn create_certificate(
        &self,
        request: Request<CertificateRequest>,
    ) -> Result<tonic::Response<CertificateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer t.o.k");
        let request = request.into_inner();
        let mut identity: SpiffeId = request.impersonated()?.unwrap().parse().unwrap();
        let mut csr = request.csr.clone();
        match self.manner {
            Manner::Honest | Manner::OtherRoot => {}
            Manner::OtherIdentity => identity.service_account = "other".into(),
            Manner::OtherKey => csr = SigningRequest::make(&identity).unwrap().1,
            Manner::Refuses => return Err(Status::permission_denied("no pod")),
            Manner::Silent => std::future::pending().await,
        }
        let ttl = Duration::from_secs(request.validity_duration.unsigned_abs());
        let csr = SigningRequest::read(&csr).unwrap();
        let chain = self.signer.sign(&csr, &identity, ttl, SystemTime::now()).unwrap();
        let mut cert_chain: Vec<String> = chain.iter().map(certificate_pem).collect();
        cert_chain.push(self.signer.certificate_pem().to_owned());
        Ok(tonic::Response::new(CertificateResponse { cert_chain }))
    }
}

struct Ground {
    client: AuthorityClient,
    fake: Arc<Fake>,
    roots: NamedTempFile,
    _token: NamedTempFile,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

async fn ground(manner: Manner) -> Ground {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let signer = match manner {
        Manner::OtherRoot => LocalCa::generate("cluster.local").unwrap(),
        _ => LocalCa::load(ca.certificate_pem(), &ca.key_pem()).unwrap(),
    };
    let names = [ServerName::try_from("localhost").unwrap()];
    let issued = ca.issue_server(&names, HOUR, SystemTime::now()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // The lowest that an istiod may insist on.
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(issued.chain, issued.key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (roots, token) = (file(ca.certificate_pem()), file("t.o.k\n"));
    let fake = Arc::new(Fake { ca, signer, manner, asked: AtomicUsize::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "owned by `Ground`")]
    let server = {
        let fake = Arc::clone(&fake);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let fake = Arc::clone(&fake);
                let service = hyper::service::service_fn(move |request| {
                    let fake = Arc::clone(&fake);
                    async move { Ok::<_, std::convert::Infallible>(answer(fake, request).await) }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
    };
    let client = AuthorityClient::new(
        &format!("https://localhost:{port}"),
        roots.path().to_owned(),
        token.path().to_owned(),
        ["cluster.local".into()],
    )
    .unwrap();
    Ground { client, fake, roots, _token: token, server }
}

fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

async fn issue(ground: &Ground) -> Result<Issued, IdentityError> {
    ground.client.issue(&cart(), HOUR, SystemTime::now()).await
}

#[tokio::test]
async fn an_honest_answer_becomes_credentials() {
    let ground = ground(Manner::Honest).await;
    let issued = issue(&ground).await.unwrap();
    assert_eq!(issued.chain.len(), 1, "the root is not sent to peers");
    let trust = ground.client.trust().unwrap();
    let credentials = Credentials::new(&cart(), issued, &trust).unwrap();
    assert!(credentials.not_after() <= SystemTime::now() + HOUR);
}

#[tokio::test]
async fn anothers_name_or_key_never_becomes_credentials() {
    let ground = ground(Manner::OtherIdentity).await;
    let trust = ground.client.trust().unwrap();
    let issued = issue(&ground).await.unwrap();
    let error = Credentials::new(&cart(), issued, &trust).unwrap_err();
    let is_other = |source: &PeerError| matches!(source, PeerError::OtherIdentity(_));
    assert!(
        matches!(&error, IdentityError::Unusable { source, .. } if is_other(source)),
        "{error}"
    );
    let ground = self::ground(Manner::OtherKey).await;
    let trust = ground.client.trust().unwrap();
    let issued = issue(&ground).await.unwrap();
    let error = Credentials::new(&cart(), issued, &trust).unwrap_err();
    assert!(matches!(error, IdentityError::Tls { .. }), "{error}");
}

#[tokio::test]
async fn a_root_that_is_not_trusted_signs_nothing_here() {
    let ground = ground(Manner::OtherRoot).await;
    let error = issue(&ground).await.err().unwrap();
    assert!(error.to_string().contains("not by a trusted root"), "{error}");
}

#[tokio::test]
async fn the_roots_are_those_of_the_moment() {
    let ground = ground(Manner::Honest).await;
    let other = LocalCa::generate("cluster.local").unwrap();
    std::fs::write(ground.roots.path(), other.certificate_pem()).unwrap();
    let error = issue(&ground).await.err().unwrap();
    assert!(error.to_string().contains("certificate authority localhost:"), "{error}");
    let both = format!("{}{}", other.certificate_pem(), ground.fake.ca.certificate_pem());
    std::fs::write(ground.roots.path(), both).unwrap();
    tokio::time::sleep(Duration::from_millis(550)).await;
    issue(&ground).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_remembered_for_a_moment() {
    let ground = ground(Manner::Refuses).await;
    let first = issue(&ground).await.err().unwrap().to_string();
    assert!(first.ends_with("refused: no pod (PermissionDenied)"), "{first}");
    assert_eq!(issue(&ground).await.err().unwrap().to_string(), first);
    assert_eq!(ground.fake.asked.load(Ordering::Relaxed), 1);
    tokio::time::sleep(Duration::from_millis(550)).await;
    issue(&ground).await.err().unwrap();
    assert_eq!(ground.fake.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_authority_that_is_silent_or_gone_holds_nobody_up() {
    let ground = ground(Manner::Silent).await;
    let begun = Instant::now();
    let error = issue(&ground).await.err().unwrap();
    assert!(error.to_string().ends_with("no answer in 5s"), "{error}");
    assert!(begun.elapsed() < TIMEOUT + Duration::from_secs(2));
    let begun = Instant::now();
    issue(&ground).await.err().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(100), "not asked again at once");
}

#[test]
fn addresses_are_checked() {
    let make = |address: &str| {
        AuthorityClient::new(address, PathBuf::new(), PathBuf::new(), ["cluster.local".into()])
    };
    for address in ["https://a.b.svc:15012", "https://127.0.0.1:1", "https://[::1]:1"] {
        assert!(make(address).is_ok(), "{address}");
    }
    for address in ["a.b.svc:15012", "http://a:1", "https://a", "https://", "https://a b:1"] {
        assert!(make(address).is_err(), "{address}");
    }
}
