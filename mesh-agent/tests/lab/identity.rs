//! Issue 8, line 5: wrong identities are refused on both sides, and pods of different service
//! accounts never share a connection.

use crate::support::{self, SHOP, SHOP_PODS};

/// A second client on the same node, under another account.
const OTHER: &str = r#"
kind: ServiceAccount
apiVersion: v1
metadata: { name: other, namespace: shop }
---
kind: Pod
apiVersion: v1
metadata: { name: other, namespace: shop }
spec:
  nodeName: node1
  serviceAccountName: other
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
"#;

#[test]
fn accounts_on_one_node_never_share_a_connection() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    support::apply(&lab, OTHER, &["shop/other"]);
    for name in ["shop/client", "shop/other"] {
        let pod = lab.pod(name).unwrap();
        let answer = support::json(&pod, &["curl", "-sS", "--max-time", "20", "http://far.shop/"]);
        let remote: std::net::SocketAddr = answer["remote"].as_str().unwrap().parse().unwrap();
        assert!(pod.ips.contains(&remote.ip().to_canonical()), "{answer}");
    }
    let far = lab.pod("shop/far").unwrap();
    // Keep a stream of each open, then count the tunnels that the server's node holds.
    let mut holders = Vec::new();
    for name in ["shop/client", "shop/other"] {
        let script = "import socket,sys\ns=socket.create_connection((sys.argv[1],9000),20)\n\
                      s.sendall(b'x');s.recv(1);print('open',flush=True);sys.stdin.readline()";
        let target = far.ips[0].to_string();
        let mut holder =
            lab.pod(name).unwrap().converse(&["python3", "-c", script, &target]).unwrap();
        assert_eq!(holder.line().unwrap(), "open");
        holders.push(holder);
    }
    let text = lab.meshctl("node2", &["-o", "json", "connections"]).unwrap();
    for account in ["client", "other"] {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        assert!(text.contains(&id), "{id}: {text}");
    }
    let established = support::ok(&far, &["ss", "-Htn", "state", "established"]);
    let mut tunnels = 0;
    for line in established.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(peer)) = (words.get(2), words.get(3)) else { continue };
        if local.ends_with(":15008") {
            tunnels += 1;
            let peer: std::net::SocketAddr = peer.parse().expect("an address");
            let owner = ["shop/client", "shop/other"]
                .iter()
                .find(|name| lab.pod(name).unwrap().ips.contains(&peer.ip().to_canonical()));
            assert!(owner.is_some(), "a tunnel of no source pod: {line}");
        }
    }
    assert!(tunnels >= 2, "a tunnel for each source pod: {established}");
}

/// A pod that is not captured but says that it takes tunnels: its own program does.
const FAKE: &str = r#"
kind: ServiceAccount
apiVersion: v1
metadata: { name: fake, namespace: shop }
---
kind: Pod
apiVersion: v1
metadata:
  name: fake
  namespace: shop
  labels: { istio.io/dataplane-mode: none }
  annotations: { malha.dev/enrolled: "true" }
spec:
  nodeName: node2
  serviceAccountName: fake
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
"#;

/// Takes one TLS connection on 15008 and says what came of it.
const SERVER: &str = r#"
import socket, ssl, sys
cert, key, root = sys.argv[1:]
c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
c.minimum_version = ssl.TLSVersion.TLSv1_3
c.load_cert_chain(cert, key); c.load_verify_locations(root)
c.verify_mode = ssl.CERT_REQUIRED; c.set_alpn_protocols(["h2"])
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind(("0.0.0.0", 15008)); l.listen(); print("listening", flush=True)
s, _ = l.accept(); s.settimeout(20)
try:
    t = c.wrap_socket(s, server_side=True)
    print("taken" if t.recv(3) == b"PRI" else "closed", flush=True)
except (ssl.SSLError, ConnectionError): print("refused", flush=True)
"#;

#[test]
fn a_server_of_another_account_is_refused_by_the_client() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.apply(FAKE).unwrap();
    let fake = lab.wait_ready("shop/fake").unwrap();
    let client = lab.pod("shop/client").unwrap();
    let url = format!("http://{}/", std::net::SocketAddr::new(fake.ip(), 8080));
    for (account, expected) in [("fake", "taken"), ("other", "refused")] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let files = support::issue(&lab, &identity);
        let paths = [&files.certificate, &files.key, &files.root].map(|p| p.to_str().unwrap());
        let mut server =
            fake.converse(&["python3", "-c", SERVER, paths[0], paths[1], paths[2]]).unwrap();
        assert_eq!(server.line().unwrap(), "listening");
        let output = client.spawn(&["curl", "-sS", "--max-time", "3", &url]).unwrap();
        let verdict = server.line().unwrap();
        // Python's server ends TLS 1.3 before the client has looked at its certificate: a client
        // that refuses closes at once, and never says the preface.
        let refused = verdict == "refused" || verdict == "closed";
        assert_eq!(if refused { "refused" } else { "taken" }, expected, "{identity}: {verdict}");
        output.wait_with_output().unwrap();
    }
    let log = lab.agent_log("node1").unwrap();
    assert!(log.contains("ns/shop/sa/fake"), "the log names who was expected: {log}");
}

/// Speaks TLS and the start of HTTP/2 to a pod's tunnel port.
const CLIENT: &str = r#"
import socket, ssl, sys
ip, cert, key, root = sys.argv[1:]
c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
c.check_hostname = False
c.minimum_version = ssl.TLSVersion.TLSv1_3
c.load_verify_locations(root); c.load_cert_chain(cert, key); c.set_alpn_protocols(["h2"])
try:
    s = c.wrap_socket(socket.create_connection((ip, 15008), 20))
    s.settimeout(20)
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    print("taken" if s.recv(9)[3] == 4 else "odd")
except (ssl.SSLError, ConnectionError, IndexError): print("refused")
"#;

#[test]
fn a_client_of_another_trust_domain_is_refused_by_the_server() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let stranger = lab.wait_ready("outside/stranger").unwrap();
    let far = lab.pod("shop/far").unwrap();
    // Signed by the same root: only the name's trust domain is wrong.
    for (domain, expected) in [("cluster.local", "taken"), ("evil.example", "refused")] {
        let identity = format!("spiffe://{domain}/ns/outside/sa/default");
        let files = support::issue(&lab, &identity);
        let paths = [&files.certificate, &files.key, &files.root].map(|p| p.to_str().unwrap());
        let ip = far.ip().to_string();
        let command = ["python3", "-c", CLIENT, &ip, paths[0], paths[1], paths[2]];
        assert_eq!(support::ok(&stranger, &command).trim(), expected, "{identity}");
    }
}
