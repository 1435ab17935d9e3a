//! Tunnels over loopback TCP: our two ends, and the `h2` crate over tokio-rustls as the other.

mod ends;
mod interop;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What every certificate of these tests is also valid for; who is who is in the SPIFFE ID.
const DNS_NAME: &str = "peer.test";

pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// Octets that do not repeat at a frame's or a buffer's length.
pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + n / 251 + seed * 7) % 253) as u8).collect()
}

fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    })
}

/// A certificate authority.
struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn issue(&self, id: &SpiffeId) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new([DNS_NAME.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(id.to_string().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![certificate], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Arc::new(roots)
    }

    fn client(&self, id: &SpiffeId) -> ClientTls {
        let (chain, key) = self.issue(id);
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(self.roots())
                .with_client_auth_cert(chain, key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        ClientTls { config: Arc::new(config), server_name: DNS_NAME.try_into().unwrap() }
    }

    fn server(&self, id: &SpiffeId) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
        let (chain, key) = self.issue(id);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

/// One pod's tunnel listener, and a pool that reaches it.
struct Mesh {
    ca: Ca,
    pool: Pool,
    address: SocketAddr,
    tracker: TaskTracker,
    shutdown: CancellationToken,
    dials: Rc<Cell<usize>>,
    /// How each served connection ended.
    served: Rc<RefCell<Vec<Result<(), TunnelError>>>>,
}

impl Mesh {
    /// Serves as `sa/server`; each stream goes to `handler` in a task of its own.
    async fn new<F>(handler: impl Fn(Incoming) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let ca = Ca::new();
        let tracker = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tls, end) = (ca.server(&id("server")), shutdown.clone());
        let quota = super::Quota::unlimited();
        let served = Rc::new(RefCell::new(Vec::new()));
        let (results, tasks, handler) = (Rc::clone(&served), tracker.clone(), Rc::new(handler));
        tracker.spawn_local(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let settings = ServerSettings {
                    tls: tls.clone(),
                    address: LOCALHOST,
                    peer_identity,
                    shutdown: end.clone(),
                    handshake: quota.handshake().unwrap(),
                };
                let handler = Rc::clone(&handler);
                let (streams, results) = (tasks.clone(), Rc::clone(&results));
                tasks.spawn_local(async move {
                    let ended = serve(socket, settings, |incoming| {
                        drop(streams.spawn_local(handler(incoming)));
                    });
                    let ended = ended.await;
                    results.borrow_mut().push(ended);
                });
            }
        });
        let pool = Pool::new(tracker.clone(), peer_identity);
        Self { ca, pool, address, tracker, shutdown, dials: Rc::default(), served }
    }

    fn key(&self) -> PoolKey {
        PoolKey {
            source_uid: "uid-a".into(),
            source: id("client"),
            destination: id("server"),
            address: self.address,
        }
    }

    fn head(&self) -> ConnectHead {
        ConnectHead {
            authority: "127.0.0.1:8080".into(),
            baggage: Some("k8s.pod.name=a".into()),
            traceparent: None,
        }
    }

    /// What `connect` needs to dial, counted.
    fn dial(&self) -> impl AsyncFn() -> io::Result<super::Dialled> + use<> {
        let (address, dials) = (self.address, Rc::clone(&self.dials));
        async move || {
            dials.set(dials.get() + 1);
            dial_to(address).await
        }
    }

    async fn connect(&self, tls: &ClientTls) -> Result<TunnelStream, TunnelError> {
        self.pool.connect(&self.key(), &self.head(), tls, self.dial()).await
    }
}

/// A socket to `address`, which counts for nobody.
async fn dial_to(address: SocketAddr) -> io::Result<super::Dialled> {
    let permit = super::Quota::unlimited().socket().unwrap();
    Ok((TcpStream::connect(address).await?, permit))
}

/// Waits until `condition` holds, which it must within a second or two.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("{what} did not happen");
}
