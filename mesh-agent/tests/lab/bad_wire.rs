//! The wire between two nodes delays, loses and reorders packets, and is cut: nothing is lost, nothing
//! passes in plaintext, and it goes on when the wire does.
//!
//! Needs netem, which not every kernel has: `cargo xtask test --stage vm` runs these in a virtual
//! machine, where everything takes ten times longer.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support::{self, HOLDER, STRICT};

/// A client and a server on the other node, by its protocols.
const PODS: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: Pod
apiVersion: v1
metadata: { name: client, namespace: shop }
spec:
  nodeName: node1
  containers: [{ name: main, image: curlimages/curl }]
---
kind: Pod
apiVersion: v1
metadata: { name: far, namespace: shop, labels: { app: far } }
spec:
  nodeName: node2
  containers: [{ name: main, image: malha/echo, args: ["--http", "8080", "--tcp", "9000"] }]
---
kind: Service
apiVersion: v1
metadata: { name: far, namespace: shop }
spec:
  selector: { app: far }
  ports:
  - { name: http, port: 80, targetPort: 8080 }
  - { name: tcp-http, port: 81, targetPort: 8080 }
  - { name: tcp, port: 9000 }
"#;

/// What `tc qdisc replace … netem` is told.
const LOSSY: &str = "delay 30ms 10ms 25% reorder 25% 50% loss 1%";
const CUT: &str = "loss 100%";

#[test]
#[ignore = "needs netem: `cargo xtask test --stage vm`"]
fn a_bad_wire_loses_nothing_and_a_cut_one_heals() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[PODS, STRICT].join("---"), &["shop/client", "shop/far"]);
    let client = lab.pod("shop/client").unwrap();
    wire(&lab, Some(LOSSY));
    for port in [80, 81] {
        whole(&client, port);
    }
    wire(&lab, None);
    cut(&lab, &client);
}

/// Both directions of the wire between the nodes.
fn wire(lab: &Lab, faults: Option<&str>) {
    for node in ["node1", "node2"] {
        let words: Vec<&str> = match faults {
            Some(faults) => ["tc", "qdisc", "replace", "dev", "eth0", "root", "netem"]
                .into_iter()
                .chain(faults.split(' '))
                .collect(),
            None => vec!["tc", "qdisc", "del", "dev", "eth0", "root"],
        };
        let output = lab.on_node(node, &words).unwrap().output().expect("tc starts");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Requests with bodies, over HTTP (80) and as bytes (81).
fn whole(client: &Pod, port: u16) {
    let url = format!("http://far:{port}/?stream");
    let fixed = ["malha-load", "http", "-n", "60", "-c", "6", "--timeout-ms", "120000"];
    let body = ["-X", "POST", "--body-size", "100000", "--expect-echo", &url];
    let report = support::json(client, &[&fixed[..], &body].concat());
    assert_eq!((&report["succeeded"], &report["failed"]), (&60.into(), &0.into()), "{report}");
}

fn cut(lab: &Lab, client: &Pod) {
    let mut held = client.converse(&["python3", "-c", HOLDER, "far"]).unwrap();
    assert_eq!(held.line().unwrap(), "connected");
    assert_eq!(held.ask("before").unwrap(), "before");
    let seen = lab.capture_wire("node1").expect("the wire is watched");
    wire(lab, Some(CUT));
    // Both are on their way while the wire is cut; the second cannot connect in time.
    let waiting = request(client, "60");
    let hurried = request(client, "5");
    assert!(!ended(hurried).status.success(), "nothing passes a cut wire");
    wire(lab, None);
    let healed = Instant::now();
    assert_eq!(held.ask("after").unwrap(), "after", "an open connection goes on");
    // Retransmissions are seconds apart by now.
    let output = ended(waiting);
    println!("{:?} after the wire healed: {output:?}", healed.elapsed());
    let answer = ended(request(client, "60"));
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!(answer["path"], "/", "{answer}");
    let took = healed.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    let seen = seen.finish().expect("the wire was watched");
    assert_eq!((seen.not_tls(15008), seen.bytes_on_port(8080)), (0, 0), "plaintext on the wire");
}

fn request(client: &Pod, seconds: &str) -> std::process::Child {
    let mut command =
        client.command(&["curl", "-sS", "--max-time", seconds, "http://far/"]).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("curl starts")
}

fn ended(request: std::process::Child) -> Output {
    request.wait_with_output().expect("curl ends")
}
