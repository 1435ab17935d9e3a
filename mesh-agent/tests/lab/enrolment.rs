//! Issue 8, line 3: what is not enrolled is untouched; enrolling and withdrawing break no open
//! connection.

use crate::support::{self, HOLDER, SHOP, SHOP_PODS};

/// Holds one HTTP connection and makes a request on it for every line.
const KEEP_ALIVE: &str = r#"
import http.client, sys
c = http.client.HTTPConnection("far.shop", 80, timeout=20)
for line in sys.stdin:
    c.request("GET", "/" + line.strip())
    answer = c.getresponse(); answer.read()
    print(answer.status, flush=True)
"#;

#[test]
fn a_pod_outside_the_mesh_is_untouched() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.wait_ready("outside/stranger").unwrap();
    let stranger = lab.pod("outside/stranger").unwrap();
    let enrolled = lab.meshctl("node1", &["-o", "json", "workloads"]).unwrap();
    let enrolled: serde_json::Value = serde_json::from_str(&enrolled).unwrap();
    let row = enrolled["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "stranger")
        .expect("the agent knows the pod");
    assert_eq!(row["state"], "not selected", "{row}");
    // Permissive by default: it still reaches the mesh in plaintext, seen with its own address.
    let answer = support::json(
        &stranger,
        &["curl", "-sS", "--max-time", "20", "http://far.shop.svc.cluster.local/x"],
    );
    let remote: std::net::SocketAddr = answer["remote"].as_str().unwrap().parse().unwrap();
    assert!(stranger.ips.contains(&remote.ip().to_canonical()), "{answer}");
    let listening = support::ok(&stranger, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]);
    // 15001, 15006, 15008 in hexadecimal.
    for port in [":3A99", ":3A9E", ":3AA0"] {
        assert!(!listening.contains(port), "no listener of the mesh in its namespace");
    }
}

#[test]
fn enrolling_and_withdrawing_break_no_open_connection() {
    let Some(lab) = support::lab(2) else { return };
    let without = SHOP.replace(", labels: { istio.io/dataplane-mode: malha }", "");
    assert_ne!(without, SHOP);
    lab.apply(&without).unwrap();
    for name in SHOP_PODS {
        lab.wait_ready(name).unwrap();
    }
    let client = lab.pod("shop/client").unwrap();
    let mut before = client.converse(&["python3", "-c", HOLDER, "far.shop"]).unwrap();
    assert_eq!(before.line().unwrap(), "connected");
    assert_eq!(before.ask("one").unwrap(), "one");

    lab.apply(SHOP).unwrap();
    for name in SHOP_PODS {
        lab.wait_enrolled(&lab.pod(name).unwrap()).unwrap();
    }
    assert_eq!(before.ask("two").unwrap(), "two", "older than the enrolment, and alive");
    let mut during = client.converse(&["python3", "-c", HOLDER, "far.shop"]).unwrap();
    assert_eq!(during.line().unwrap(), "connected");
    assert_eq!(during.ask("three").unwrap(), "three");
    let mut http = client.converse(&["python3", "-c", KEEP_ALIVE]).unwrap();
    assert_eq!(http.ask("in-the-mesh").unwrap(), "200");
    let connections = lab.meshctl("node1", &["-o", "json", "connections"]).unwrap();
    assert!(connections.contains("spiffe://cluster.local/ns/shop/sa/echo"), "{connections}");
    assert!(connections.contains("not in mesh"), "older than the enrolment: {connections}");

    lab.apply(&without).unwrap();
    for name in SHOP_PODS {
        lab.wait_withdrawn(&lab.pod(name).unwrap()).unwrap();
    }
    assert_eq!(before.ask("four").unwrap(), "four");
    assert_eq!(during.ask("five").unwrap(), "five", "made in the mesh, alive after withdrawal");
    assert_eq!(http.ask("withdrawn").unwrap(), "200", "requests go on, on an open connection");
    let mut after = client.converse(&["python3", "-c", HOLDER, "far.shop"]).unwrap();
    assert_eq!(after.line().unwrap(), "connected");
    assert_eq!(after.ask("six").unwrap(), "six");
}
