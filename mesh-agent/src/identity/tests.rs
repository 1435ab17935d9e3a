//! Real handshakes in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::{ClientConnection, HandshakeKind, ServerConnection};

use super::{Credentials, LocalCa};
use crate::model::SpiffeId;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn credentials(ca: &LocalCa, identity: &str, now: SystemTime) -> Credentials {
    let identity = id(identity);
    let issued = ca.issue(&identity, DAY, now).unwrap();
    Credentials::new(identity, "cluster.local".into(), issued).unwrap()
}

/// Runs a handshake to its end and through the tickets after it.
fn handshake(
    client: &Credentials,
    expected: &str,
    server: &Credentials,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let (config, name) = client.client(&id(expected)).unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut server = ServerConnection::new(server.server()).unwrap();
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/other";

#[test]
fn both_sides_learn_who_the_other_is() {
    let (ca, now) = (LocalCa::generate("cluster.local").unwrap(), SystemTime::now());
    let (client, server) = (credentials(&ca, CLIENT, now), credentials(&ca, SERVER, now));
    let (client, server) = handshake(&client, SERVER, &server).unwrap();
    assert_eq!(super::peer_identity(client.peer_certificates().unwrap()).unwrap(), id(SERVER));
    assert_eq!(super::peer_identity(server.peer_certificates().unwrap()).unwrap(), id(CLIENT));
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn a_server_of_another_account_is_refused() {
    let (ca, now) = (LocalCa::generate("cluster.local").unwrap(), SystemTime::now());
    let (client, server) = (credentials(&ca, CLIENT, now), credentials(&ca, OTHER, now));
    let error = handshake(&client, SERVER, &server).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(r#"service_account: "other""#), "{error}");
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    let (ca, now) = (LocalCa::generate("cluster.local").unwrap(), SystemTime::now());
    let server = credentials(&ca, SERVER, now);
    let foreign = credentials(&ca, "spiffe://evil.example/ns/shop/sa/client", now);
    assert!(handshake(&foreign, SERVER, &server).is_err());
}

#[test]
fn another_root_is_refused_by_both() {
    let now = SystemTime::now();
    let ours = LocalCa::generate("cluster.local").unwrap();
    let theirs = LocalCa::generate("cluster.local").unwrap();
    let (client, server) = (credentials(&ours, CLIENT, now), credentials(&theirs, SERVER, now));
    assert!(handshake(&client, SERVER, &server).is_err());
}

#[test]
fn an_expired_certificate_is_refused() {
    let (ca, now) = (LocalCa::generate("cluster.local").unwrap(), SystemTime::now());
    let client = credentials(&ca, CLIENT, now);
    let server = credentials(&ca, SERVER, now - 2 * DAY);
    assert!(handshake(&client, SERVER, &server).is_err());
}

#[test]
fn sessions_resume_for_the_same_identity_only() {
    let (ca, now) = (LocalCa::generate("cluster.local").unwrap(), SystemTime::now());
    let (client, server) = (credentials(&ca, CLIENT, now), credentials(&ca, SERVER, now));
    let kind = |connection: &ClientConnection| connection.handshake_kind().unwrap();
    let (first, _) = handshake(&client, SERVER, &server).unwrap();
    assert_ne!(kind(&first), HandshakeKind::Resumed);
    let (second, far) = handshake(&client, SERVER, &server).unwrap();
    assert_eq!(kind(&second), HandshakeKind::Resumed);
    assert_eq!(super::peer_identity(far.peer_certificates().unwrap()).unwrap(), id(CLIENT));
    // The session with SERVER cannot stand in for OTHER: the name differs, the check runs in full.
    assert!(handshake(&client, OTHER, &server).is_err());
    // A new certificate starts without sessions.
    let renewed = credentials(&ca, CLIENT, now);
    let (third, _) = handshake(&renewed, SERVER, &server).unwrap();
    assert_ne!(kind(&third), HandshakeKind::Resumed);
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_and_old_ones_stay_usable() {
    let ca = LocalCa::generate("cluster.local").unwrap();
    // Life in real seconds: `now` of certificates is the wall clock, only the sleep is paused.
    let life = Duration::from_millis(1);
    let identities = Arc::new(super::Identities::new(ca.into(), "cluster.local".into(), life));
    let first = identities.ensure(&id(CLIENT)).unwrap();
    assert!(Arc::ptr_eq(&first, &identities.ensure(&id(CLIENT)).unwrap()), "issued once");
    let rotation = identities.clone();
    tokio::select! {
        () = rotation.run_rotation() => {}
        () = async {
            while Arc::ptr_eq(&first, &identities.current(&id(CLIENT)).unwrap()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    assert_ne!(first.serial, identities.current(&id(CLIENT)).unwrap().serial);
    identities.release(&id(CLIENT));
    assert!(identities.current(&id(CLIENT)).is_some(), "one user is left");
    identities.release(&id(CLIENT));
    assert!(identities.current(&id(CLIENT)).is_none(), "the key goes with the last user");
}
