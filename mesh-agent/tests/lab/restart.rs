//! The agents of both nodes are replaced one after the other, the next beside the old one: no
//! request fails and no connection is cut.

use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::{self, SHOP, SHOP_PODS};

/// A server whose port is declared in every way that the mesh takes it, and a second client.
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
    - { name: tcp-echo, port: 9000, targetPort: 9000 }
"#;

/// Traffic of one client pod; each kind ends by itself when its standard input does, or is counted.
const KINDS: [(&str, &[&str]); 6] = [
    ("kept connections", &["http", "--rate", "40", "--concurrency", "8", "http://ways/"]),
    ("idle connections", &["http", "--rate", "4", "--concurrency", "16", "http://ways/"]),
    (
        "new connections",
        &["http", "--rate", "40", "--concurrency", "8", "--new-connections", "http://ways/"],
    ),
    ("HTTP/2", &["http", "--rate", "40", "--concurrency", "8", "--http2", "http://ways:81/"]),
    (
        "new TCP connections",
        &["http", "--rate", "40", "--concurrency", "8", "--new-connections", "http://ways:82/"],
    ),
    ("kept TCP connections", &["http", "--rate", "40", "--concurrency", "8", "http://ways:82/"]),
];

/// What has failed of a load, if anything.
fn finish(name: &str, child: Child) -> Option<String> {
    // `wait_with_output` closes its standard input first.
    let output = child.wait_with_output().expect("the load ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the load's report");
    assert!(report["succeeded"].as_u64().unwrap() > 20, "{name}: {report}");
    let only_200 = report["statuses"].as_object().is_some_and(|statuses| statuses.len() == 1);
    let whole = report["failed"] == 0 && only_200;
    let told = ["succeeded", "statuses", "errors", "error_examples"].map(|key| &report[key]);
    (!whole).then(|| format!("{name}: {told:?}\n"))
}

#[test]
fn agents_are_replaced_under_load_without_a_failed_request() {
    let Some(lab) = support::lab_with(2, &["--drain-seconds", "8"]) else { return };
    support::apply(&lab, &[SHOP, "---", MORE].join("\n"), SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    // Longer than any of the agents takes to be replaced, shorter than it may drain.
    let long = ["malha-load", "tcp", "ping", "--interval-ms", "100", "--messages", "50"];
    let long = [&long[..], &["--connections", "4", "far:9000"]].concat();
    let long = client.spawn(&long).expect("the load starts");
    let loads: Vec<(&str, Child)> = KINDS
        .iter()
        .map(|(name, words)| {
            let (mode, rest) = words.split_first().expect("a mode");
            let more = ["malha-load", mode, "--until-eof", "--discard", "--timeout-ms", "60000"];
            let mut command = client.command(&[&more, rest].concat()).unwrap();
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            (*name, command.spawn().expect("the load starts"))
        })
        .collect();
    lab.replace_agent("node1").expect("the next agent serves and the old one ends");
    let output = long.wait_with_output().expect("the load ends");
    let report: Value = serde_json::from_slice(&output.stdout).expect("the load's report");
    assert_eq!((&report["succeeded"], &report["failed"]), (&200.into(), &0.into()), "{report}");
    for node in ["node2", "node1"] {
        lab.replace_agent(node).expect("the next agent serves and the old one ends");
    }
    let failed: String =
        loads.into_iter().filter_map(|(name, child)| finish(name, child)).collect();
    assert_eq!(failed, "");
}
