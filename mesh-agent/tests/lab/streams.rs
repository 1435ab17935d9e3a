//! TCP connections end, fail and carry bytes in the mesh as they do without it.
//!
//! The same table of cases is run uncaptured, and every captured run must give the same table: the
//! server's namespace accepts mutual TLS only, so an answer proves that the connection was captured.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS, STRICT, of_family};

/// The two applications of each case.
const CASES: &str = include_str!("streams.py");

/// The cases' ports behind Services: declared, and left to detection; and an uncaptured server.
const MORE: &str = r#"
kind: Service
apiVersion: v1
metadata: { name: near-talk, namespace: shop }
spec:
  selector: { app: echo, version: near }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: tcp-talk, port: 9100 }, { name: tcp-greet, port: 9101 }]
---
kind: Service
apiVersion: v1
metadata: { name: far-talk, namespace: shop }
spec:
  selector: { app: echo, version: far }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: tcp-talk, port: 9100 }, { name: tcp-greet, port: 9101 }]
---
kind: Service
apiVersion: v1
metadata: { name: far-undeclared, namespace: shop }
spec:
  selector: { app: echo, version: far }
  ports: [{ name: talk, port: 9100 }, { name: greet, port: 9101 }]
---
kind: Pod
apiVersion: v1
metadata: { name: distant, namespace: outside }
spec:
  nodeName: node2
  containers: [{ name: main, image: malha/echo, args: ["--http", "8080", "--tcp", "9000"] }]
"#;

/// Case -> what the client saw, what the server saw.
type Table = BTreeMap<String, String>;

fn table(client: &Pod, address: &str) -> Table {
    let text = support::ok(client, &["python3", "-c", CASES, "client", address]);
    let rows = text.lines().filter_map(|line| line.split_once('\t'));
    rows.map(|(case, seen)| (case.to_owned(), seen.to_owned())).collect()
}

fn serve(pod: &Pod) -> Conversation {
    let mut server = pod.converse(&["python3", "-c", CASES, "server"]).expect("python starts");
    assert_eq!(server.line().unwrap(), "listening");
    server
}

fn up(workers: usize) -> Option<Lab> {
    let lab = support::lab(workers)?;
    support::apply(&lab, &[SHOP, "---", MORE, "---", STRICT].join("\n"), SHOP_PODS);
    lab.wait_ready("outside/distant").expect("the pod runs");
    Some(lab)
}

#[test]
fn connections_end_as_they_do_without_the_mesh() {
    let Some(lab) = up(2) else { return };
    let pods = ["shop/near", "shop/far", "outside/distant"].map(|name| lab.pod(name).unwrap());
    let _servers = pods.each_ref().map(serve);
    let stranger = lab.pod("outside/stranger").unwrap();
    let client = lab.pod("shop/client").unwrap();
    let without = table(&stranger, &pods[2].ip().to_string());
    assert!(without.len() >= 13, "{without:?}");
    let near = [true, false].map(|v4| of_family(&pods[0], v4).to_string());
    let far = [true, false].map(|v4| of_family(&pods[1], v4).to_string());
    let names = ["near-talk.shop", "far-talk.shop", "far-undeclared.shop"];
    let mut wrong = String::new();
    for address in near.iter().chain(&far).map(String::as_str).chain(names) {
        let within = table(&client, address);
        for (case, expected) in &without {
            let seen = within.get(case);
            if seen != Some(expected) {
                wrong += &format!("{address}: {case}: {seen:?}, uncaptured {expected:?}\n");
            }
        }
    }
    assert_eq!(wrong, "");
}

#[test]
fn a_gibibyte_arrives_whole_in_both_directions() {
    let Some(lab) = up(2) else { return };
    let client = lab.pod("shop/client").unwrap();
    for target in ["near:9000", "far:9000"] {
        let bulk = ["malha-load", "tcp", "bulk", "--bytes", "1073741824", target];
        let report = support::json(&client, &bulk);
        assert_eq!(
            (&report["same"], &report["bytes_received"]),
            (&true.into(), &(1_u64 << 30).into()),
            "{report}"
        );
    }
}

#[test]
fn thousands_of_connections_at_once() {
    let Some(lab) = up(2) else { return };
    let client = lab.pod("shop/client").unwrap();
    // By address: thousands of lookups at once would only try the lab's name server.
    let [near, far] = ["shop/near", "shop/far"].map(|service| {
        let ip = lab.service_ips(service).unwrap()[0];
        SocketAddr::new(ip, 9000).to_string()
    });
    for target in [&near, &far] {
        let ping = ["malha-load", "tcp", "ping", "--connections", "2000", "--messages", "3"];
        let report =
            support::json(&client, &[&ping, &["--timeout-ms", "60000", target][..]].concat());
        assert_eq!(
            (&report["succeeded"], &report["failed"]),
            (&6000.into(), &0.into()),
            "{report}"
        );
    }
    let before = lab.agent_memory_kib("node1");
    let idle = ["malha-load", "tcp", "idle", "--connections", "9000", "--hold", "1", &far];
    let mut idle = client.converse(&idle).unwrap();
    let mut step = || serde_json::from_str::<Value>(&idle.line().unwrap()).expect("JSON");
    let open = step();
    assert_eq!((&open["open"], &open["failed"]), (&9000.into(), &0.into()), "{open}");
    let held = lab.agent_memory_kib("node1").saturating_sub(before);
    let done = step();
    assert_eq!((&done["alive"], &done["failed"]), (&9000.into(), &0.into()), "{done}");
    assert!(held < 9000 * 16, "{held} KiB for 9,000 idle connections");
}
