//! Issue 8, line 3: what is not enrolled is untouched; enrolling and withdrawing break no open
//! connection.

use crate::support::{self, SHOP, SHOP_PODS};

/// Holds one connection to the echo's TCP port and sends each line that it is given.
const HOLDER: &str = r#"
import socket, sys, os, time
s = socket.create_connection((sys.argv[1], 9000), 20)
s.settimeout(20)
print("connected", flush=True)
for line in sys.stdin:
    s.sendall(line.encode())
    got = b""
    while len(got) < len(line):
        part = s.recv(1000)
        if not part:
            print("closed", flush=True); sys.exit(1)
        got += part
    print(got.decode().strip(), flush=True)
"#;

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

#[test]
fn the_next_agent_takes_over_from_one_that_was_killed() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let asks = || {
        let output = client.exec(&["curl", "-sS", "--max-time", "20", "http://far.shop/"]).unwrap();
        output.status.success().then_some(output.stdout)
    };
    assert!(asks().is_some());
    for node in ["node1", "node2"] {
        lab.restart_agent(node).unwrap();
        let answer = support::eventually("the next agent serves the pods", || {
            asks().filter(|answer| answer.starts_with(b"{"))
        });
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        let remote: std::net::SocketAddr = answer["remote"].as_str().unwrap().parse().unwrap();
        assert!(client.ips.contains(&remote.ip().to_canonical()), "through the mesh: {answer}");
    }
    let status = lab.meshctl("node1", &["-o", "json", "status"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let captured = &status["capture"]["counters"]["outbound_captured"];
    assert!(captured.as_u64().unwrap() >= 1, "still captured, not passed by: {status}");
}
