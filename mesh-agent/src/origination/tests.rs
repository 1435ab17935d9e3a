//! Whom TLS is spoken with, over in-memory streams: a server with a certificate of a test's own root.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::model::{Alpn, ClientFiles, TlsOrigination};

const DAY: Duration = Duration::from_secs(86_400);

/// A root, and what it has signed.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, as PEM.
struct Leaf {
    certificate: String,
    key: KeyPair,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = params(&[]);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self, names: &[&str]) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names).signed_by(&key, &self.0).unwrap();
        let chain = vec![certificate.der().clone()];
        Leaf { certificate: certificate.pem(), key, chain }
    }

    /// A list with this certificate's number on it.
    fn revokes(&self, serial: u64) -> String {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: (now - DAY).into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: (now - DAY).into(),
            next_update: (now + DAY).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(self.0.der().clone()).unwrap();
        Arc::new(store)
    }
}

/// Number 7; names with `://` are URIs.
fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from(7));
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
}

/// Files of the pod `pod`, and how often they were read.
#[derive(Clone, Default)]
struct Pod {
    files: Arc<std::sync::Mutex<HashMap<&'static str, String>>>,
    reads: Arc<AtomicUsize>,
}

impl Pod {
    fn with(files: &[(&'static str, &str)]) -> Self {
        let pod = Self::default();
        for (path, content) in files {
            pod.write(path, content);
        }
        pod
    }

    fn write(&self, path: &'static str, content: &str) {
        self.files.lock().unwrap().insert(path, content.to_owned());
    }

    fn reader(&self) -> ReadInPod {
        let pod = self.clone();
        Arc::new(move |uid, path| {
            assert_eq!(uid, "pod");
            pod.reads.fetch_add(1, Ordering::Relaxed);
            let files = pod.files.lock().unwrap();
            let found = files.get(path).map(|content| content.clone().into_bytes());
            found.ok_or_else(|| Error::from(ErrorKind::NotFound))
        })
    }
}

fn to(settings: TlsOrigination, server_name: Option<&str>) -> TlsTarget {
    TlsTarget {
        names: settings.names.clone(),
        settings: Arc::new(settings),
        server_name: server_name.map(Into::into),
        alpn: Alpn::Http1,
    }
}

fn names(names: &[&str]) -> Arc<[Arc<str>]> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

/// What a server saw.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    server_name: Option<String>,
    alpn: Option<Vec<u8>>,
    client: bool,
}

/// Speaks with a server that has `leaf`, and asks for client certificates of `clients`.
async fn speak(
    origination: &Origination,
    to: &TlsTarget,
    leaf: &Leaf,
    clients: Option<&Ca>,
) -> Result<Seen, String> {
    let uid: Arc<str> = "pod".into();
    let config = origination.config(&uid, to).await.map_err(|error| error.to_string())?;
    let builder = ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(ca.roots(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(leaf.key.serialize_der().into());
    let mut server = builder.with_single_cert(leaf.chain.clone(), key).unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await.ok()?;
        let (_, session) = stream.get_ref();
        let seen = Seen {
            server_name: session.server_name().map(str::to_owned),
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            client: session.peer_certificates().is_some(),
        };
        stream.write_all(b"hello").await.ok()?;
        stream.shutdown().await.ok()?;
        Some(seen)
    };
    let ask = async {
        let endpoint = "192.0.2.1".parse().unwrap();
        let mut io = handshake(config, to, endpoint, near).await?;
        let mut text = String::new();
        io.read_to_string(&mut text).await?;
        Ok(text)
    };
    let (seen, said) = tokio::join!(serve, ask);
    match said.map_err(|error: Error| error.to_string())?.as_str() {
        "hello" => seen.ok_or_else(|| "the server failed".to_owned()),
        other => Err(format!("the server said {other:?}")),
    }
}

#[tokio::test]
async fn a_certificate_must_be_for_the_server_name() {
    let ca = Ca::new("ours");
    let origination = Origination::new(ca.roots(), Pod::default().reader());
    let leaf = ca.leaf(&["api.example.com", "*.wild.example.com", "192.0.2.1"]);
    let seen = |name: Option<&str>| Seen {
        server_name: name.map(str::to_owned),
        alpn: Some(b"http/1.1".to_vec()),
        client: false,
    };
    let simple = |name| to(TlsOrigination::default(), name);
    for name in ["api.example.com", "a.wild.example.com"] {
        let found = speak(&origination, &simple(Some(name)), &leaf, None).await;
        assert_eq!(found, Ok(seen(Some(name))));
    }
    // An address is checked, and not sent.
    for name in [None, Some("192.0.2.1"), Some("not a name")] {
        let found = speak(&origination, &simple(name), &leaf, None).await;
        assert_eq!(found, Ok(seen(None)), "{name:?}");
    }
    for name in ["other.example.com", "a.b.wild.example.com", "192.0.2.2"] {
        let found = speak(&origination, &simple(Some(name)), &leaf, None).await.unwrap_err();
        assert!(found.contains("not valid for name"), "{name}: {found}");
    }
    let theirs = Ca::new("theirs").leaf(&["api.example.com"]);
    let found = speak(&origination, &simple(Some("api.example.com")), &theirs, None).await;
    assert!(found.as_ref().is_err_and(|error| error.contains("UnknownIssuer")), "{found:?}");
    let mozilla = Origination::new(roots(None).unwrap(), Pod::default().reader());
    let found = speak(&mozilla, &simple(Some("api.example.com")), &leaf, None).await;
    assert!(found.as_ref().is_err_and(|error| error.contains("UnknownIssuer")), "{found:?}");
}

#[tokio::test]
async fn any_of_the_listed_names_will_do() {
    let ca = Ca::new("ours");
    let origination = Origination::new(ca.roots(), Pod::default().reader());
    let leaf = ca.leaf(&["api.example.com", "*.wild.example.com", "spiffe://td/ns/a/sa/b"]);
    for (listed, is_taken) in [
        (&["none.example.com", "api.example.com"][..], true),
        (&["API.example.com"], true),
        (&["a.wild.example.com"], true),
        (&["*.wild.example.com"], true),
        (&["spiffe://td/ns/a/sa/b"], true),
        (&["spiffe://td/ns/a/sa/c", "192.0.2.1"], false),
        // The name that is asked for does not count then.
        (&["none.example.com"], false),
    ] {
        let settings = TlsOrigination { names: names(listed), ..TlsOrigination::default() };
        let to = to(settings, Some("api.example.com"));
        let found = speak(&origination, &to, &leaf, None).await;
        assert_eq!(found.is_ok(), is_taken, "{listed:?}: {found:?}");
        if let Err(error) = found {
            assert!(error.contains("has none of the names"), "{error}");
        }
    }
    let settings = TlsOrigination { names: names(&["api.example.com"]), ..Default::default() };
    let theirs = Ca::new("theirs").leaf(&["api.example.com"]);
    let found = speak(&origination, &to(settings, None), &theirs, None).await;
    assert!(found.as_ref().is_err_and(|error| error.contains("UnknownIssuer")), "{found:?}");
}

#[tokio::test]
async fn nothing_is_checked_where_the_rule_says_so() {
    let origination = Origination::new(Ca::new("ours").roots(), Pod::default().reader());
    let settings = TlsOrigination { skip_verify: true, ..TlsOrigination::default() };
    let theirs = Ca::new("theirs").leaf(&["other.example.com"]);
    let found = speak(&origination, &to(settings, Some("api.example.com")), &theirs, None).await;
    assert_eq!(found.unwrap().server_name.as_deref(), Some("api.example.com"));
}

#[tokio::test]
async fn what_is_spoken_inside_is_offered() {
    let ca = Ca::new("ours");
    let origination = Origination::new(ca.roots(), Pod::default().reader());
    let leaf = ca.leaf(&["api.example.com"]);
    for (alpn, expected) in
        [(Alpn::None, None), (Alpn::Http1, Some(&b"http/1.1"[..])), (Alpn::Http2, Some(b"h2"))]
    {
        let to = TlsTarget { alpn, ..to(TlsOrigination::default(), Some("api.example.com")) };
        let seen = speak(&origination, &to, &leaf, None).await.unwrap();
        assert_eq!(seen.alpn.as_deref(), expected);
    }
}

fn mutual() -> TlsOrigination {
    TlsOrigination {
        roots: Some("/tls/ca.pem".into()),
        client: Some(ClientFiles {
            certificate: "/tls/cert.pem".into(),
            key: "/tls/key.pem".into(),
        }),
        ..TlsOrigination::default()
    }
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let (server, client) = (servers.leaf(&["api.example.com"]), clients.leaf(&["client"]));
    let pod = Pod::with(&[
        ("/tls/ca.pem", &servers.0.pem()),
        ("/tls/cert.pem", &client.certificate),
        ("/tls/key.pem", &client.key.serialize_pem()),
    ]);
    let origination = Origination::new(Ca::new("others").roots(), pod.reader());
    let name = Some("api.example.com");
    let seen = speak(&origination, &to(mutual(), name), &server, Some(&clients)).await.unwrap();
    assert!(seen.client);
    // Without one, and with one that the server does not know.
    let simple = TlsOrigination { client: None, ..mutual() };
    let found = speak(&origination, &to(simple, name), &server, Some(&clients)).await;
    assert!(found.is_err(), "{found:?}");
    let found = speak(&origination, &to(mutual(), name), &server, Some(&servers)).await;
    assert!(found.is_err(), "{found:?}");
}

#[tokio::test]
async fn what_cannot_be_had_is_an_error_that_names_the_file() {
    let ca = Ca::new("ours");
    let leaf = ca.leaf(&["api.example.com"]);
    let pod = Pod::with(&[("/tls/ca.pem", &ca.0.pem())]);
    let origination = Origination::new(ca.roots(), pod.reader());
    let uid: Arc<str> = "pod".into();
    let failed = async |settings: TlsOrigination| {
        origination.config(&uid, &to(settings, None)).await.unwrap_err().to_string()
    };
    let certificate = "file /tls/cert.pem of the client's pod: ";
    assert_eq!(failed(mutual()).await, format!("{certificate}entity not found"));
    pod.write("/tls/cert.pem", "nothing");
    pod.write("/tls/key.pem", &leaf.key.serialize_pem());
    tokio::time::pause();
    let later = || tokio::time::advance(Duration::from_secs(6));
    later().await;
    assert_eq!(failed(mutual()).await, format!("{certificate}no certificate (PEM) in it"));
    pod.write("/tls/cert.pem", &ca.leaf(&[]).certificate);
    later().await;
    let found = failed(mutual()).await;
    assert!(found.starts_with("unusable TLS settings: "), "{found}");
    let secret = TlsOrigination { secret: Some("keys".into()), ..TlsOrigination::default() };
    let expected = "credentialName `keys` is a Secret, and an agent may read none";
    assert_eq!(failed(secret).await, expected);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused() {
    let ca = Ca::new("ours");
    let leaf = ca.leaf(&["api.example.com"]);
    let settings = || TlsOrigination { revoked: Some("/tls/crl.pem".into()), ..Default::default() };
    for (serial, is_taken) in [(7, false), (8, true)] {
        let pod = Pod::with(&[("/tls/crl.pem", &ca.revokes(serial))]);
        let origination = Origination::new(ca.roots(), pod.reader());
        let found =
            speak(&origination, &to(settings(), Some("api.example.com")), &leaf, None).await;
        assert_eq!(found.is_ok(), is_taken, "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_are_read_again_after_a_while_and_what_was_good_stays() {
    let ca = Ca::new("ours");
    let pod = Pod::with(&[("/tls/ca.pem", &ca.0.pem())]);
    let origination = Origination::new(ca.roots(), pod.reader());
    let settings = TlsOrigination { client: None, ..mutual() };
    let (uid, to): (Arc<str>, _) = ("pod".into(), to(settings, Some("api.example.com")));
    let config = async || origination.config(&uid, &to).await.unwrap();
    let reads = || pod.reads.load(Ordering::Relaxed);
    let first = config().await;
    assert!(Arc::ptr_eq(&first, &config().await));
    assert_eq!(reads(), 1);
    let begin = Instant::now();
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(Arc::ptr_eq(&first, &config().await), "the same content, the same sessions");
    assert_eq!(reads(), 2);
    tokio::time::advance(Duration::from_secs(6)).await;
    pod.write("/tls/ca.pem", "half");
    assert!(Arc::ptr_eq(&first, &config().await));
    pod.write("/tls/ca.pem", &Ca::new("next").0.pem());
    assert!(Arc::ptr_eq(&first, &config().await), "not looked at again so soon");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(!Arc::ptr_eq(&first, &config().await));
    assert_eq!((reads(), begin.elapsed()), (4, Duration::from_secs(18)));
}

#[tokio::test]
async fn one_configuration_for_all_pods_where_no_file_is_named() {
    let origination = Origination::new(Ca::new("ours").roots(), Pod::default().reader());
    let to = to(TlsOrigination::default(), Some("api.example.com"));
    let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
    let first = origination.config(&one, &to).await.unwrap();
    let other = TlsTarget { server_name: Some("b.example.com".into()), ..to.clone() };
    assert!(Arc::ptr_eq(&first, &origination.config(&two, &other).await.unwrap()));
    let listed = TlsTarget { names: names(&["a"]), ..to };
    assert!(!Arc::ptr_eq(&first, &origination.config(&one, &listed).await.unwrap()));
}

#[test]
fn roots_of_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let ca = Ca::new("ours").0.pem();
    std::fs::write(file.path(), format!("{ca}{ca}{}", Ca::new("other").0.pem())).unwrap();
    assert_eq!(roots(Some(file.path())).unwrap().len(), 3);
    std::fs::write(file.path(), "nothing").unwrap();
    let error = roots(Some(file.path())).unwrap_err().to_string();
    assert!(error.ends_with("no certificate (PEM) in it"), "{error}");
    assert!(roots(Some("/nonexistent".as_ref())).is_err());
    assert!(roots(None).unwrap().len() > 50);
}
