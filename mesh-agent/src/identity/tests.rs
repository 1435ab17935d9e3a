//! Handshakes between real rustls connections in memory, and renewal in paused time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{
    ClientConnection, Connection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection,
};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn cart() -> SpiffeId {
    id("spiffe://cluster.local/ns/shop/sa/cart")
}

fn front() -> SpiffeId {
    id("spiffe://cluster.local/ns/shop/sa/front")
}

fn trust(ca: &LocalCa) -> Trust {
    Trust::new([ca.certificate().clone()], ["cluster.local".into()]).unwrap()
}

fn credentials(ca: &LocalCa, identity: &SpiffeId, trust: &Trust) -> Credentials {
    let issued = ca.issue(identity, DAY, SystemTime::now()).unwrap();
    Credentials::new(identity, issued, trust).unwrap()
}

struct Session {
    client: ClientConnection,
    server: ServerConnection,
}

/// Moves bytes until neither side has any. The first error, by the side that found it.
fn shake(mut client: ClientConnection, mut server: ServerConnection) -> Result<Session, String> {
    fn carry(from: &mut Connection, to: &mut Connection) -> Result<bool, rustls::Error> {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets()?;
        }
        Ok(!wire.is_empty())
    }
    let (mut left, mut right) = (Connection::from(client), Connection::from(server));
    loop {
        let sent = carry(&mut left, &mut right).map_err(|error| format!("server: {error}"))?;
        let answered = carry(&mut right, &mut left).map_err(|error| format!("client: {error}"))?;
        if !sent && !answered {
            break;
        }
    }
    (client, server) = match (left, right) {
        (Connection::Client(client), Connection::Server(server)) => (client, server),
        _ => unreachable!(),
    };
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Session { client, server })
}

fn connect(from: &Credentials, to: &Credentials, expected: &SpiffeId) -> Result<Session, String> {
    let (config, name) = from.client(expected);
    shake(
        ClientConnection::new(config, name).unwrap(),
        ServerConnection::new(Arc::clone(to.server())).unwrap(),
    )
}

#[test]
fn both_sides_know_each_other() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let (client, server) = (credentials(&ca, &front(), &trust), credentials(&ca, &cart(), &trust));
    let session = connect(&client, &server, &cart()).unwrap();
    let now = SystemTime::now();
    assert_eq!(established_peer(&session.client, now).unwrap(), cart());
    assert_eq!(established_peer(&session.server, now).unwrap(), front());
    assert_eq!(session.server.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(session.server.server_name(), None, "the identity is not shown on the wire");
}

#[test]
fn tls_1_3_with_a_post_quantum_key_exchange() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let (client, server) = (credentials(&ca, &front(), &trust), credentials(&ca, &cart(), &trust));
    let session = connect(&client, &server, &cart()).unwrap();
    assert_eq!(session.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let group = session.client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(session.client.handshake_kind(), Some(HandshakeKind::Full), "no second hello");
    let suite = session.client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[test]
fn a_client_of_tls_1_2_is_refused() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let server = credentials(&ca, &cart(), &trust);
    let issued = ca.issue(&front(), DAY, SystemTime::now()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS12])
    .unwrap()
    .dangerous()
    .with_custom_certificate_verifier(trust.server_verifier())
    .with_client_auth_cert(issued.chain, issued.key)
    .unwrap();
    let error = shake(
        ClientConnection::new(Arc::new(old), server_name(&cart())).unwrap(),
        ServerConnection::new(Arc::clone(server.server())).unwrap(),
    );
    let error = error.err().unwrap();
    assert!(error.starts_with("server: peer is incompatible"), "{error}");
}

#[test]
fn another_service_account_is_refused_by_the_client() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let (client, server) = (credentials(&ca, &front(), &trust), credentials(&ca, &cart(), &trust));
    for wrong in [
        "spiffe://cluster.local/ns/shop/sa/card",
        "spiffe://cluster.local/ns/other/sa/cart",
        "spiffe://other.domain/ns/shop/sa/cart",
    ] {
        let error = connect(&client, &server, &id(wrong)).err().unwrap();
        assert!(error.starts_with("client: "), "{error}");
        let reason = "the peer is spiffe://cluster.local/ns/shop/sa/cart, which is not";
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn another_root_is_refused_by_both_sides() {
    let (ours, theirs) =
        (LocalCa::generate("cluster.local").unwrap(), LocalCa::generate("cluster.local").unwrap());
    let both = Trust::new(
        [ours.certificate().clone(), theirs.certificate().clone()],
        ["cluster.local".into()],
    )
    .unwrap();
    let server = credentials(&ours, &cart(), &trust(&ours));
    let client = credentials(&theirs, &front(), &both);
    let error = connect(&client, &server, &cart()).err().unwrap();
    assert!(error.starts_with("server: invalid peer certificate"), "{error}");

    let server = credentials(&theirs, &cart(), &both);
    let client = credentials(&ours, &front(), &trust(&ours));
    let error = connect(&client, &server, &cart()).err().unwrap();
    assert!(error.starts_with("client: invalid peer certificate"), "{error}");
}

#[test]
fn another_trust_domain_of_the_same_root_is_refused_by_the_server() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let server = credentials(&ca, &cart(), &trust);
    let stranger = id("spiffe://other.domain/ns/shop/sa/front");
    let error = connect(&credentials(&ca, &stranger, &trust), &server, &cart()).err().unwrap();
    assert!(error.starts_with("server: "), "{error}");
    let reason = "spiffe://other.domain/ns/shop/sa/front is of a trust domain that is not accepted";
    assert!(error.contains(reason), "{error}");
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let server = credentials(&ca, &cart(), &trust);
    let mut anonymous = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(trust.server_verifier())
        .with_no_client_auth();
    anonymous.alpn_protocols = vec![b"h2".to_vec()];
    let error = shake(
        ClientConnection::new(Arc::new(anonymous), server_name(&cart())).unwrap(),
        ServerConnection::new(Arc::clone(server.server())).unwrap(),
    );
    assert_eq!(error.err().unwrap(), "server: peer sent no certificates");
}

#[test]
fn expired_certificates_are_refused_by_both_sides() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let old = |identity: &SpiffeId| {
        let issued = ca.issue(identity, HOUR, SystemTime::now() - 2 * HOUR).unwrap();
        Credentials::new(identity, issued, &trust).unwrap()
    };
    let error = connect(&credentials(&ca, &front(), &trust), &old(&cart()), &cart()).err().unwrap();
    assert!(error.starts_with("client: invalid peer certificate: certificate expired"), "{error}");
    let error = connect(&old(&front()), &credentials(&ca, &cart(), &trust), &cart()).err().unwrap();
    assert!(error.starts_with("server: invalid peer certificate: certificate expired"), "{error}");
}

#[test]
fn certificates_that_name_nobody_or_two_are_refused() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    assert_eq!(peer_identity(&[]), Err(PeerError::NoCertificate));
    assert_eq!(peer_identity(&[CertificateDer::from(vec![1])]), Err(PeerError::Malformed));
    let root = peer_identity(&[ca.certificate().clone()]);
    assert!(matches!(root, Err(PeerError::Spiffe(_))), "{root:?}");
    let plain = rcgen::generate_simple_self_signed(["cart.shop".to_owned()]).unwrap();
    assert_eq!(peer_identity(&[plain.cert.der().clone()]), Err(PeerError::UriNames(0)));
    let mut two = rcgen::CertificateParams::default();
    two.subject_alt_names = [cart(), front()]
        .map(|name| rcgen::SanType::URI(name.to_string().try_into().unwrap()))
        .to_vec();
    let two = two.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    assert_eq!(peer_identity(&[two.der().clone()]), Err(PeerError::UriNames(2)));
}

#[test]
fn sessions_are_resumed_with_the_same_identity() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let (client, server) = (credentials(&ca, &front(), &trust), credentials(&ca, &cart(), &trust));
    connect(&client, &server, &cart()).unwrap();
    let again = connect(&client, &server, &cart()).unwrap();
    assert_eq!(again.client.handshake_kind(), Some(HandshakeKind::Resumed));
    let now = SystemTime::now();
    assert_eq!(established_peer(&again.client, now).unwrap(), cart());
    assert_eq!(established_peer(&again.server, now).unwrap(), front());
    let later = established_peer(&again.server, now + 2 * DAY);
    assert_eq!(later, Err(PeerError::Expired(front())), "a session does not outlive its peer");
}

#[test]
fn sessions_never_cross_identities_or_certificates() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let client = credentials(&ca, &front(), &trust);
    let cart_server = credentials(&ca, &cart(), &trust);
    let front_server = credentials(&ca, &front(), &trust);
    connect(&client, &cart_server, &cart()).unwrap();

    // Another destination: nothing to resume with, and the wrong server is not let through.
    let other = connect(&client, &front_server, &front()).unwrap();
    assert_eq!(other.client.handshake_kind(), Some(HandshakeKind::Full));
    assert!(connect(&client, &front_server, &cart()).is_err());
    // Asking the cart's server for another identity offers it no ticket of the cart's.
    assert!(connect(&client, &cart_server, &front()).is_err());

    // Another source on the same node knows none of these sessions.
    connect(&client, &cart_server, &cart()).unwrap();
    let neighbour = credentials(&ca, &cart(), &trust);
    let session = connect(&neighbour, &cart_server, &cart()).unwrap();
    assert_eq!(session.client.handshake_kind(), Some(HandshakeKind::Full));

    // The server's next certificate does not take the tickets of the one before.
    let renewed = credentials(&ca, &cart(), &trust);
    let session = connect(&client, &renewed, &cart()).unwrap();
    assert_eq!(session.client.handshake_kind(), Some(HandshakeKind::Full));
}

#[test]
fn a_root_survives_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let made = LocalCa::generate("cluster.local").unwrap();
    made.write(dir.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let loaded = LocalCa::load(&read("root-cert.pem"), &read("root-key.pem")).unwrap();
    let trust = trust(&made);
    let (client, server) =
        (credentials(&loaded, &front(), &trust), credentials(&made, &cart(), &trust));
    connect(&client, &server, &cart()).unwrap();

    use std::os::unix::fs::PermissionsExt as _;
    let mode = dir.path().join("root-key.pem").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(made.write(dir.path()).is_err(), "an existing root is not replaced");

    let other = LocalCa::generate("cluster.local").unwrap();
    let error = LocalCa::load(other.certificate_pem(), &read("root-key.pem")).err().unwrap();
    assert_eq!(error.to_string(), "root certificate: the key is another certificate's");
    let leaf = rcgen::generate_simple_self_signed([]).unwrap();
    let error = LocalCa::load(&leaf.cert.pem(), &leaf.signing_key.serialize_pem()).err().unwrap();
    assert!(error.to_string().contains("not a certificate authority"), "{error}");
}

/// A store whose clock moves with Tokio's.
fn store(root_lifetime: Duration, ttl: Duration) -> (Identities, Clock) {
    let clock = Clock::Anchored { at: SystemTime::now(), since: Instant::now() };
    let ca = LocalCa::generate_at("cluster.local", root_lifetime, clock.now()).unwrap();
    let trust = trust(&ca);
    (Identities::new(Issuer::Local(ca), trust, Settings { ttl, clock }), clock)
}

#[tokio::test]
async fn one_identity_is_issued_once_and_counted() {
    let (store, _) = store(10 * DAY, DAY);
    let cart = cart();
    let (a, b) = tokio::join!(store.ensure(&cart), store.ensure(&cart));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(Arc::ptr_eq(&a, &b));
    store.release(&cart);
    assert!(Arc::ptr_eq(&a, &store.current(&cart).unwrap()), "one pod is left");
    store.release(&cart);
    assert!(store.current(&cart).is_none(), "the last pod took it along");
    store.release(&cart);
    let next = store.ensure(&cart).await.unwrap();
    assert_ne!(next.serial(), a.serial());
}

#[tokio::test]
async fn a_refused_identity_holds_no_reference() {
    let (store, _) = store(Duration::from_secs(30), DAY);
    let error = store.ensure(&cart()).await.unwrap_err();
    assert!(error.to_string().contains("the root certificate expires at"), "{error}");
    let error = store.ensure(&id("spiffe://else/ns/a/sa/b")).await.unwrap_err();
    assert!(error.to_string().contains("not one of cluster.local"), "{error}");
    assert!(store.list().is_empty() && store.current(&cart()).is_none());
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_at_half_life() {
    let (store, clock) = store(10 * DAY, DAY);
    let cart = cart();
    let first = store.ensure(&cart).await.unwrap();
    let current = || store.current(&cart).unwrap();
    let watch = async {
        tokio::time::sleep(DAY * 44 / 100).await;
        assert_eq!(current().serial(), first.serial(), "not before half of its life");
        tokio::time::sleep(DAY * 12 / 100).await;
        let second = current();
        assert_ne!(second.serial(), first.serial());
        tokio::time::sleep(5 * DAY).await;
        assert!(current().not_after() > clock.now() + DAY * 4 / 10);
    };
    tokio::select! {
        () = store.run_rotation() => unreachable!(),
        () = watch => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_certificate() {
    // The leaf ends with the root. Its renewal at half life still works, once or twice; then the
    // root is too short to issue anything.
    let (store, clock) = store(2 * HOUR, DAY);
    let cart = cart();
    store.ensure(&cart).await.unwrap();
    let watch = async {
        tokio::time::sleep(2 * HOUR - Duration::from_secs(20)).await;
        let (credentials, renewal) = store.list().into_iter().next().unwrap();
        assert!(renewal.failures() >= 3, "{renewal:?}");
        assert!(renewal.failures() < 10, "tried less and less often: {renewal:?}");
        assert!(credentials.not_after() > clock.now(), "still valid, still in use");
        tokio::time::sleep(HOUR).await;
        let (credentials, renewal) = store.list().into_iter().next().unwrap();
        assert!(credentials.not_after() < clock.now());
        assert!(renewal.failures() < 50, "{renewal:?}");
    };
    tokio::select! {
        () = store.run_rotation() => unreachable!(),
        () = watch => {}
    }
}

/// A certificate that signs, below another or its own root, that ends in `days`.
fn signing(
    name: &str,
    days: u32,
    above: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
) -> (rcgen::Certificate, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_after = (SystemTime::now() + days * DAY).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = match above {
        None => params.self_signed(&key).unwrap(),
        Some(above) => params.signed_by(&key, above).unwrap(),
    };
    (certificate, rcgen::Issuer::new(params, key))
}

#[test]
fn a_certificate_below_a_root_signs_under_it() {
    let (root, root_issuer) = signing("root", 2, None);
    let (middle, middle_issuer) = signing("middle", 9, Some(&root_issuer));
    let (lowest, lowest_issuer) = signing("lowest", 9, Some(&middle_issuer));
    let load = || LocalCa::load(&lowest.pem(), &lowest_issuer.key().serialize_pem()).unwrap();
    let now = SystemTime::now();
    let trust = Trust::new([root.der().clone()], ["cluster.local".into()]).unwrap();
    // As istioctl's and cert-manager's secrets have it: with the ends, or without.
    for chain in [
        format!("{}{}{}", lowest.pem(), middle.pem(), root.pem()),
        format!("{}{}", lowest.pem(), middle.pem()),
        middle.pem(),
    ] {
        let ca = load().below(&chain, &root.pem(), now).unwrap();
        let issued = ca.issue(&cart(), 9 * DAY, now).unwrap();
        assert_eq!(issued.chain.len(), 3, "all but the root");
        trust.verify_chain(&issued.chain, now).unwrap();
        let end = verify::facts(&issued.chain[0]).unwrap().not_after;
        assert!(end < now + 3 * DAY, "no longer than the root");
    }
    let refused = |chain: &str, roots: &str| {
        let error = load().below(chain, roots, now).err().unwrap().to_string();
        assert!(error.contains("the chain leads to no trusted root"), "{error}");
    };
    refused("", &root.pem());
    let other = LocalCa::generate("cluster.local").unwrap();
    refused(&middle.pem(), other.certificate_pem());
}

#[test]
fn a_root_of_its_own_is_below_nothing() {
    let made = LocalCa::generate("cluster.local").unwrap();
    let old = LocalCa::generate_at("cluster.local", 2 * HOUR, SystemTime::now()).unwrap();
    let end = made.not_after();
    let roots = format!("{}{}", old.certificate_pem(), made.certificate_pem());
    let again = LocalCa::load(made.certificate_pem(), &made.key_pem()).unwrap();
    let again = again.below(made.certificate_pem(), &roots, SystemTime::now()).unwrap();
    let issued = again.issue(&cart(), DAY, SystemTime::now()).unwrap();
    assert_eq!(issued.chain.len(), 1, "peers have the root");
    assert_eq!(again.not_after(), end);
}

#[test]
fn only_the_key_of_a_request_counts() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    let trust = trust(&ca);
    let (key, pem) = request::SigningRequest::make(&front()).unwrap();
    let request = SigningRequest::read(&pem).unwrap();
    let chain = ca.sign(&request, &cart(), HOUR, SystemTime::now()).unwrap();
    assert_eq!(peer_identity(&chain).unwrap(), cart(), "not whom the request names");
    trust.verify_chain(&chain, SystemTime::now()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Credentials::new(&cart(), Issued { chain: chain.clone(), key }, &trust).unwrap();
    let (other, _) = request::SigningRequest::make(&front()).unwrap();
    let other = rustls_pki_types::PrivateKeyDer::Pkcs8(other.serialize_der().into());
    let error = Credentials::new(&cart(), Issued { chain, key: other }, &trust).unwrap_err();
    assert!(matches!(error, IdentityError::Tls { .. }), "another's key: {error}");
}

/// The authority of a node whose agent is replaced, and a folder for keys.
fn kept(dir: &std::path::Path, ca: &LocalCa) -> Identities {
    let again = LocalCa::load(ca.certificate_pem(), &ca.key_pem()).unwrap();
    let keys = KeyDir::open(dir).unwrap();
    Identities::new(Issuer::Local(again), trust(ca), Settings::default()).with_keys(keys)
}

fn files(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn the_next_agent_goes_on_with_the_kept_certificate() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("malha/keys");
    let ca = LocalCa::generate("cluster.local").unwrap();
    let first = kept(&dir, &ca);
    let before = first.ensure(&cart()).await.unwrap();
    first.ensure(&front()).await.unwrap();
    drop(first);
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    let second = kept(&dir, &ca);
    let after = second.ensure(&cart()).await.unwrap();
    assert_eq!(after.serial(), before.serial());
    let (_, renewal) = second.list().into_iter().next().unwrap();
    assert!(renewal.due() > SystemTime::now(), "renewed when it would have been");
    assert_eq!(files(&dir), 2);
    second.forget_other_keys();
    assert_eq!(files(&dir), 1, "the other's last pod ended while no agent ran");
    second.release(&cart());
    assert_eq!(files(&dir), 0);
    second.ensure(&cart()).await.unwrap();
    std::fs::write(dir.join("other"), "not ours").unwrap();
    KeyDir::clear(&dir).unwrap();
    assert_eq!(files(&dir), 1);
    std::fs::remove_file(dir.join("other")).unwrap();
    KeyDir::clear(&dir).unwrap();
    assert!(!dir.exists());
    KeyDir::clear(&dir).unwrap();
}

#[tokio::test]
async fn a_kept_certificate_that_is_of_no_use_is_replaced() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("keys");
    let ca = LocalCa::generate("cluster.local").unwrap();
    let keys = KeyDir::open(&dir).unwrap();
    let now = SystemTime::now();
    let other = LocalCa::generate("cluster.local").unwrap();
    let short = ca.issue(&cart(), Duration::from_secs(30), now).unwrap();
    let foreign = other.issue(&cart(), DAY, now).unwrap();
    let misnamed = ca.issue(&front(), DAY, now).unwrap();
    for useless in [short, foreign, misnamed] {
        let serial = verify::facts(&useless.chain[0]).unwrap().serial;
        keys.save(&cart(), &useless).unwrap();
        let agent = kept(&dir, &ca);
        assert_ne!(agent.ensure(&cart()).await.unwrap().serial(), serial);
    }
    let file = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    for rubbish in ["", "x", "-----BEGIN CERTIFICATE-----\nAA"] {
        std::fs::write(&file, rubbish).unwrap();
        kept(&dir, &ca).ensure(&cart()).await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("PRIVATE KEY"), "replaced");
    }
}

#[tokio::test]
async fn a_change_of_roots_reaches_certificates_and_forgets_sessions() {
    let (old, new) =
        (LocalCa::generate("cluster.local").unwrap(), LocalCa::generate("cluster.local").unwrap());
    let both = Trust::new(
        [old.certificate().clone(), new.certificate().clone()],
        ["cluster.local".into()],
    )
    .unwrap();
    let again = LocalCa::load(old.certificate_pem(), &old.key_pem()).unwrap();
    let store = Identities::new(Issuer::Local(again), trust(&old), Settings::default());
    let before = store.ensure(&cart()).await.unwrap();
    let foreign = credentials(&new, &front(), &both);
    assert!(connect(&foreign, &before, &cart()).is_err());
    store.replace_trust(both.clone()).await;
    let after = store.current(&cart()).unwrap();
    assert_eq!(after.serial(), before.serial(), "the same certificate");
    assert!(!Arc::ptr_eq(&after, &before), "tunnels are opened anew");
    let session = connect(&foreign, &after, &cart()).unwrap();
    assert_eq!(session.client.handshake_kind(), Some(HandshakeKind::Full));
    let (_, renewal) = store.list().into_iter().next().unwrap();
    assert!(renewal.due() > SystemTime::now());
    store.replace_trust(trust(&new)).await;
    let (_, renewal) = store.list().into_iter().next().unwrap();
    assert!(renewal.due() <= SystemTime::now(), "no root vouches for it: another is asked for");
}
