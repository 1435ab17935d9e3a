//! Envoy against Envoy: that the peer's two configurations do what the mesh is tested with.
//!
//! The mesh takes no part. What is shown: a byte stream passes both ways through HBONE, and each
//! side refuses the other's wrong identity, so that a refusal in a test of the mesh means something.

#![expect(clippy::unwrap_used, reason = "a test's helpers, too, fail by panicking")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use socket2::{Domain, Socket, Type};
use xtask::peers::envoy::{self, HboneClient, HboneServer, TlsFiles};
use xtask::peers::{Process, Record};

const DEADLINE: Duration = Duration::from_secs(20);
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/stock";
const STRANGER: &str = "spiffe://cluster.local/ns/shop/sa/stranger";
const MIB: usize = 1 << 20;

#[test]
fn a_mebibyte_is_echoed_through_the_tunnel() {
    echoes_a_mebibyte(Ipv4Addr::LOCALHOST.into());
}

#[test]
fn an_authority_may_be_ipv6() {
    echoes_a_mebibyte(Ipv6Addr::LOCALHOST.into());
}

fn echoes_a_mebibyte(application: IpAddr) {
    let Some(binary) = binary() else { return };
    let pair = Pair::start(&binary, &Expectations { application, ..Expectations::default() });
    let sent = noise(MIB);
    let echoed = exchange(pair.entrance, &sent).expect("the tunnel carries the stream");
    assert_eq!(echoed.len(), MIB);
    assert_eq!(checksum(&echoed), checksum(&sent));

    let client = pair.client.next_record(DEADLINE).unwrap();
    assert_eq!(client.peer.as_deref(), Some(SERVER));
    assert_eq!(client.tls.as_deref(), Some("TLSv1.3"));
    let server = pair.server.next_record(DEADLINE).unwrap();
    let expected = Record {
        authority: Some(pair.application.to_string()),
        peer: Some(CLIENT.to_owned()),
        tls: Some("TLSv1.3".to_owned()),
        flags: server.flags.clone(),
        status: Some(200),
        received: Some(MIB as u64),
        sent: Some(MIB as u64),
        ..Record::default()
    };
    assert_eq!(server, expected);
}

#[test]
fn a_wrong_server_is_refused_by_the_client() {
    let Some(binary) = binary() else { return };
    let pair = Pair::start(&binary, &Expectations { server: STRANGER, ..Expectations::default() });
    pair.assert_refused();
    let failure = pair.client.next_record(DEADLINE).unwrap().failure.unwrap_or_default();
    assert!(failure.contains("CERTIFICATE_VERIFY_FAILED"), "{failure}");
}

#[test]
fn a_wrong_client_is_refused_by_the_server() {
    let Some(binary) = binary() else { return };
    let pair = Pair::start(&binary, &Expectations { client: STRANGER, ..Expectations::default() });
    pair.assert_refused();
    let refusal = pair.server.next_record(DEADLINE).unwrap();
    let failure = refusal.failure.unwrap_or_default();
    assert!(failure.contains("CERTIFICATE_VERIFY_FAILED"), "{failure}");
    assert_eq!(refusal.peer.as_deref(), Some(CLIENT));
}

#[test]
fn another_authority_is_not_found() {
    let Some(binary) = binary() else { return };
    let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
    let expectations = Expectations { authority: Some(elsewhere), ..Expectations::default() };
    let pair = Pair::start(&binary, &expectations);
    pair.assert_refused();
    assert_eq!(pair.server.next_record(DEADLINE).unwrap().status, Some(404));
}

/// What each side is told to expect; by default what the other side really is.
struct Expectations {
    server: &'static str,
    client: &'static str,
    /// Where the application listens.
    application: IpAddr,
    /// The authority that the server serves, if not the application's.
    authority: Option<SocketAddr>,
}

impl Default for Expectations {
    fn default() -> Self {
        Self {
            server: SERVER,
            client: CLIENT,
            application: Ipv4Addr::LOCALHOST.into(),
            authority: None,
        }
    }
}

/// Application, Envoy server, Envoy client, on loopback.
struct Pair {
    client: Process,
    server: Process,
    entrance: SocketAddr,
    application: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _files: tempfile::TempDir,
}

impl Pair {
    fn start(binary: &Path, expectations: &Expectations) -> Self {
        let files = tempfile::tempdir().unwrap();
        let authority = Authority::new(files.path());
        let (application, accepted) = echo(expectations.application);
        let (_entrance_held, entrance) = reserve();
        let (_tunnel_held, tunnel) = reserve();
        let server = envoy::server_config(&HboneServer {
            listen: tunnel,
            authority: expectations.authority.unwrap_or(application),
            target: application,
            tls: authority.issue("server", SERVER),
            accepted_client: expectations.client.to_owned(),
        });
        let client = envoy::client_config(&HboneClient {
            listen: entrance,
            tunnel,
            authority: application,
            tls: authority.issue("client", CLIENT),
            expected_server: expectations.server.to_owned(),
        });
        let (server, client) = (start(binary, &server), start(binary, &client));
        Self { client, server, entrance, application, accepted, _files: files }
    }

    fn assert_refused(&self) {
        let echoed = exchange(self.entrance, b"must not arrive").unwrap_or_default();
        assert_eq!(echoed, b"");
        assert_eq!(self.accepted.load(Ordering::SeqCst), 0, "the application was reached");
    }
}

fn start(binary: &Path, config: &str) -> Process {
    let mut command = Command::new(binary);
    command.args(envoy::arguments(config));
    Process::start(command).unwrap()
}

fn binary() -> Option<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
    match envoy::ensure(&cache) {
        Ok(binary) => Some(binary),
        Err(error) => {
            eprintln!("SKIPPED (peer): envoy cannot be obtained: {error:#}");
            None
        }
    }
}

/// A root and the certificates that it signs, as files.
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.join("root.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str, identity: &str) -> TlsFiles {
        let mut params = CertificateParams::default();
        // rcgen's default subject is the root's too: OpenSSL and BoringSSL take such a leaf for
        // self-signed. SPIFFE leaves have none.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let files = TlsFiles {
            cert: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}-key.pem")),
            root: self.folder.join("root.pem"),
        };
        fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

/// A free port, kept from other programs while the socket lives; Envoy shares it by SO_REUSEPORT.
fn reserve() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// An application that returns what it gets, and the count of connections that reached it.
fn echo(at: IpAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            counter.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || echo_one(stream));
        }
    });
    (address, accepted)
}

fn echo_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut back = stream.try_clone()?;
    io::copy(&mut stream, &mut back)?;
    back.shutdown(Shutdown::Write)
}

/// Sends all, ends its side, and returns what came back until the other side's end.
fn exchange(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut out = stream.try_clone()?;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            out.write_all(bytes)?;
            out.shutdown(Shutdown::Write)
        });
        let mut echoed = Vec::new();
        let read = stream.read_to_end(&mut echoed);
        writer.join().expect("the writer does not panic")?;
        read.map(|_| echoed)
    })
}

/// Bytes without a period that a swapped or repeated frame could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// FNV-1a: the order of the bytes counts.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
