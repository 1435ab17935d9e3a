//! A pod at its limit of connections is refused further ones, and nobody else is; a peer that
//! begins handshakes by the hundred and finishes none holds up nobody.

use serde_json::Value;

use crate::support::{self, SHOP, SHOP_PODS};

/// Opens connections to a tunnel port, says nothing on them, and tells when all are open.
const HALF_HANDSHAKES: &str = r#"
import socket, sys
held, refused = [], 0
for _ in range(600):
    try: held.append(socket.create_connection((sys.argv[1], 15008), 30))
    except ConnectionResetError: refused += 1
print("open", flush=True)
sys.stdin.readline()
def ended(s):
    s.settimeout(60)
    try: return not s.recv(1)
    except ConnectionResetError: return True
print(refused + sum(map(ended, held)), flush=True)
"#;

fn refused(lab: &xtask::lab::Lab, node: &str) -> u64 {
    let status = lab.meshctl(node, &["-o", "json", "status"]).expect("meshctl answers");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["capture"]["counters"]["refused_by_quota"].as_u64().expect("a counter")
}

#[test]
fn a_pod_at_its_limit_is_refused_and_its_neighbour_is_not() {
    let limit = ["--max-connections-per-pod", "150"];
    let Some(lab) = support::lab_with(2, &limit) else { return };
    let all = [SHOP_PODS, &["shop/client2"]].concat();
    // Another client of the same agent.
    let second = support::client("client2", "node1");
    support::apply(&lab, &[SHOP, "---", &second].join("\n"), &all);
    let greedy = lab.pod("shop/client").unwrap();
    let neighbour = lab.pod("shop/client2").unwrap();
    let idle = ["malha-load", "tcp", "idle", "--connections", "400", "--hold", "600", "near:9000"];
    let mut idle = greedy.converse(&idle).expect("the load starts");
    assert!(idle.line().unwrap().contains("holding"), "all have been tried");
    support::eventually("400 less 150 are refused", || {
        (refused(&lab, "node1") >= 250).then_some(())
    });
    let output = greedy.exec(&["curl", "-sS", "-m", "20", "http://near/"]).unwrap();
    assert!(!output.status.success(), "the pod is at its limit");
    let load = ["malha-load", "http", "-n", "500", "--concurrency", "8", "--new-connections"];
    let report = support::json(&neighbour, &[&load[..], &["http://near/"]].concat());
    assert_eq!((&report["statuses"]["200"], &report["failed"]), (&500.into(), &0.into()));
    drop(idle);
    support::eventually("its connections are given back", || {
        let output = greedy.exec(&["curl", "-sS", "-m", "20", "http://far/"]).ok()?;
        output.status.success().then_some(())
    });
}

#[test]
fn half_handshakes_are_bounded_and_end() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let far = lab.pod("shop/far").unwrap();
    let stranger = lab.pod("outside/stranger").unwrap();
    let address = far.ip().to_string();
    let mut attack = stranger.converse(&["python3", "-c", HALF_HANDSHAKES, &address]).unwrap();
    assert_eq!(attack.line().unwrap(), "open");
    support::eventually("more than 256 at once are refused", || {
        (refused(&lab, "node2") >= 600 - 256).then_some(())
    });
    let client = lab.pod("shop/client").unwrap();
    let tunnel = support::json(&client, &["malha-load", "http", "-n", "50", "http://near/"]);
    assert_eq!(tunnel["statuses"]["200"], 50, "other pods' tunnels are not touched: {tunnel}");
    assert_eq!(attack.ask("").unwrap(), "600", "the time-out ends those that were let in");
    support::ok(&client, &["curl", "-sS", "-m", "20", "http://far/"]);
}
