//! The agents of both nodes are replaced one after the other, the next beside the old one: no
//! request fails and no connection is cut.

use serde_json::Value;

use crate::support::{self, Load, SHOP, SHOP_PODS};

/// A Service whose port is declared in every way that the mesh takes it.
const MORE: &str = r#"
kind: Service
apiVersion: v1
metadata: { name: ways, namespace: shop }
spec:
  selector: { app: echo }
  ports:
    - { name: http, port: 80, targetPort: 8080 }
    - { name: http2, port: 81, targetPort: 8080 }
    - { name: tcp-http, port: 82, targetPort: 8080 }
"#;

/// Kinds of traffic.
const KINDS: [(&str, &[&str]); 6] = [
    ("kept connections", &["--rate", "40", "--concurrency", "8", "http://ways/"]),
    ("idle connections", &["--rate", "4", "--concurrency", "16", "http://ways/"]),
    (
        "new connections",
        &["--rate", "40", "--concurrency", "8", "--new-connections", "http://ways/"],
    ),
    ("HTTP/2", &["--rate", "40", "--concurrency", "8", "--http2", "http://ways:81/"]),
    (
        "new TCP connections",
        &["--rate", "40", "--concurrency", "8", "--new-connections", "http://ways:82/"],
    ),
    ("kept TCP connections", &["--rate", "40", "--concurrency", "8", "http://ways:82/"]),
];

#[test]
fn agents_are_replaced_under_load_without_a_failed_request() {
    let Some(lab) = support::lab_with(2, &["--drain-seconds", "8"]) else { return };
    support::apply(&lab, &[SHOP, "---", MORE].join("\n"), SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    // Longer than any of the agents takes to be replaced, shorter than it may drain.
    let long = ["malha-load", "tcp", "ping", "--interval-ms", "100", "--messages", "50"];
    let long = [&long[..], &["--connections", "4", "far:9000"]].concat();
    let long = client.spawn(&long).expect("the load starts");
    let loads = KINDS.map(|(name, words)| Load::start(name, &client, words));
    lab.replace_agent("node1").expect("the next agent serves and the old one ends");
    let output = long.wait_with_output().expect("the load ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the load's report");
    assert_eq!((&report["succeeded"], &report["failed"]), (&200.into(), &0.into()), "{report}");
    for node in ["node2", "node1"] {
        lab.replace_agent(node).expect("the next agent serves and the old one ends");
    }
    let failed: String = loads.into_iter().filter_map(|load| load.finish(20).err()).collect();
    assert_eq!(failed, "");
}
