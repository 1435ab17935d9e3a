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
        let answer =
            support::json(&pod, &["curl", "-sS", "--max-time", "20", "http://far.shop/"]);
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
    let sources: std::collections::BTreeSet<&str> = established
        .lines()
        .filter(|line| line.split_whitespace().nth(2).is_some_and(|l| l.ends_with(":15008")))
        .filter_map(|line| line.split_whitespace().nth(3))
        .filter_map(|peer| peer.rsplit_once(':').map(|(ip, _)| ip))
        .collect();
    assert_eq!(sources.len(), 2, "one tunnel per source pod: {established}");
}

#[test]
fn a_server_of_another_account_is_refused_by_the_client() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let far = lab.pod("shop/far").unwrap();
    support::ok(&client, &["curl", "-sS", "--max-time", "20", "http://far.shop/"]);
    // The configuration of node1 says that the pod runs as `client`; its certificate says `echo`.
    lab.override_pod("node1", "shop/far", "serviceAccountName", "client").unwrap();
    let log = support::eventually("the client's node refuses", || {
        let address = std::net::SocketAddr::new(far.ips[0], 8080);
        let output = client
            .exec(&["curl", "-sS", "--max-time", "20", &format!("http://{address}/")])
            .unwrap();
        (!output.status.success() || output.stdout.starts_with(b"upstream connect error"))
            .then(|| lab.agent_log("node1").unwrap())
    });
    assert!(log.contains("spiffe://cluster.local/ns/shop/sa/client"), "the log names both: {log}");
}

#[test]
fn a_client_of_another_trust_domain_is_refused_by_the_server() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let stranger = lab.wait_ready("outside/stranger").unwrap();
    let far = lab.pod("shop/far").unwrap();
    let dir = lab.run_dir().join("foreign");
    // Same root key, another trust domain in the name: only the name is wrong.
    for (domain, taken) in [("cluster.local", true), ("evil.example", false)] {
        let identity = format!("spiffe://{domain}/ns/outside/sa/default");
        let files = lab.issue(&dir.join(domain), &identity).unwrap();
        let script = r#"
import socket, ssl, sys
ip, cert, key, root = sys.argv[1:]
c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
c.check_hostname = False
c.minimum_version = ssl.TLSVersion.TLSv1_3
c.load_verify_locations(root); c.load_cert_chain(cert, key); c.set_alpn_protocols(["h2"])
s = c.wrap_socket(socket.create_connection((ip, 15008), 20))
s.settimeout(20)
try:
    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
    print("taken" if s.recv(9)[3] == 4 else "odd")
except (ssl.SSLError, ConnectionError, IndexError): print("refused")
"#;
        let args = [
            "python3", "-c", script, &far.ips[0].to_string(), files.certificate.to_str().unwrap(),
            files.key.to_str().unwrap(), files.root.to_str().unwrap(),
        ];
        let answer = support::ok(&stranger, &args);
        assert_eq!(answer.trim() == "taken", taken, "{identity}: {answer}");
    }
}
