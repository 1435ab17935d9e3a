//! Agents are replaced, the next beside the old one: no request fails and no connection is cut. Agents
//! are killed: what they held is refused until they are back, and nothing goes past them.

use std::path::Path;
use std::time::{Duration, Instant};

use mesh_common::maps::LAYOUT_VERSION;
use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support::{self, HOLDER, Load, SHOP, SHOP_PODS, of_family};

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
    // An agent that carries bytes cannot tell when a connection may be cut: they live shorter than it
    // drains.
    (
        "kept TCP connections",
        &["--rate", "40", "--concurrency", "8", "--connection-age", "2", "http://ways:82/"],
    ),
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
    // To the next one it looks like an agent whose maps are of another layout.
    let pins = lab.run_dir().join("bpf/node2");
    let (own, other) = (pins.join(LAYOUT_VERSION), pins.join("v0"));
    std::fs::rename(&own, &other).expect("the maps of this version are pinned");
    lab.replace_agent("node2").expect("the next agent serves and the old one ends");
    assert_eq!((own.is_dir(), other.exists()), (true, false), "other versions are removed");
    lab.replace_agent("node1").expect("the next agent serves and the old one ends");
    let failed: String = loads.into_iter().filter_map(|load| load.finish(20).err()).collect();
    assert_eq!(failed, "");
}

#[test]
fn an_agent_goes_on_when_the_next_one_crashes() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let [client, far, stranger] =
        ["shop/client", "shop/far", "outside/stranger"].map(|name| lab.wait_ready(name).unwrap());
    let [old, other] = ["node1", "node2"].map(|node| lab.agent_pid(node));
    let pins = lab.run_dir().join("bpf/node1");
    let before = pinned(&pins);
    let ways = [
        (&client, "http://far.shop/"),
        (&client, "http://near.shop/"),
        (&far, "http://near.shop/"),
        (&stranger, "http://near.shop.svc.cluster.local/"),
    ];
    for round in 0..2 {
        let mut carried = client.converse(&["python3", "-c", HOLDER, "far.shop"]).unwrap();
        assert_eq!(carried.line().unwrap(), "connected");
        lab.fail_to_replace_agent("node1").expect("it starts beside the other one");
        for (pod, url) in ways {
            let what = format!("{url} from {}, round {round}", pod.name);
            support::eventually(&what, || (asks(pod, url)? == "200").then_some(()));
        }
        assert_eq!(carried.ask("after").unwrap(), "after", "the old agent's connections go on");
        // It is this one's socket again, and its listeners: a pod that comes now is taken in.
        let status = lab.meshctl("node1", &["status"]).unwrap();
        assert!(status.contains("node1"), "{status}");
        let name = format!("late{round}");
        lab.apply(&support::client(&name, "node1")).unwrap();
        let late = lab.wait_ready(&format!("shop/{name}")).unwrap();
        lab.wait_enrolled(&late).unwrap();
        assert_eq!(asks(&late, "http://far.shop/"), Some("200".into()));
    }
    assert_eq!([lab.agent_pid("node1"), lab.agent_pid("node2")], [old, other]);
    // An upgrade that succeeds is as ever.
    lab.replace_agent("node1").expect("the next agent serves and the old one ends");
    for (pod, url) in ways {
        assert_eq!(asks(pod, url), Some("200".into()), "{url} from {}", pod.name);
    }
    assert_eq!(pinned(&pins).len(), before.len() + 2, "two pods more");
}

/// A pod in the mesh whose connections to port 9000 are not.
const PARTLY: &str = r#"
kind: Pod
apiVersion: v1
metadata:
  name: partly
  namespace: shop
  annotations: { traffic.sidecar.istio.io/excludeOutboundPorts: "9000" }
spec:
  nodeName: node1
  serviceAccountName: client
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
"#;

/// What no wire may show.
const SECRET: &str = "x-never-in-plaintext";

#[test]
fn a_killed_agent_refuses_until_it_is_back() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[SHOP, "---", PARTLY].join("\n"), SHOP_PODS);
    let [client, partly, stranger] = ["shop/client", "shop/partly", "outside/stranger"]
        .map(|name| lab.wait_ready(name).unwrap());
    lab.wait_enrolled(&partly).unwrap();
    let pins = lab.run_dir().join("bpf/node1");
    let hold = |pod: &Pod, to: &str| {
        let mut held = pod.converse(&["python3", "-c", HOLDER, to]).unwrap();
        assert_eq!(held.line().unwrap(), "connected");
        assert_eq!(held.ask("before").unwrap(), "before");
        held
    };
    let mut uncarried = hold(&partly, "far.shop");
    for round in 0..3 {
        let mut carried = hold(&client, "far.shop");
        assert_eq!(asks(&client, "http://far.shop/"), Some("200".into()));
        let wire = lab.capture_wire("node1").expect("the wire is watched");
        let before = pinned(&pins);
        lab.kill_agent("node1").expect("it runs");
        assert_eq!(pinned(&pins), before, "kernel state stays");
        assert_eq!(carried.ask("after").unwrap(), "closed", "the agent carried it");
        assert_eq!(uncarried.ask("after").unwrap(), "after", "the agent did not carry it");
        refused(&lab, &client, &stranger);
        let seen = wire.finish().expect("the wire was watched");
        assert!(!seen.contains(SECRET.as_bytes()), "plaintext on the wire");
        assert_eq!(seen.bytes_on_port(8080), 0, "plaintext on the wire");

        let start = Instant::now();
        lab.start_agent("node1").expect("it starts again");
        // An agent is ready when its pods are enrolled: no waiting, no second try.
        for (pod, url) in [
            (&client, "http://far.shop/"),
            (&client, "http://near.shop/"),
            (&lab.pod("shop/far").unwrap(), "http://near.shop/"),
            (&stranger, "http://near.shop.svc.cluster.local/"),
        ] {
            assert_eq!(asks(pod, url), Some("200".into()), "{url}, round {round}");
        }
        let took = start.elapsed();
        println!("from the start to the fourth answer: {took:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(uncarried.ask("again").unwrap(), "again");
    }
}

/// Names of all pins; the kernel's own files are not ours.
fn pinned(pins: &Path) -> Vec<String> {
    let mut names: Vec<String> = ["shared", "links", LAYOUT_VERSION]
        .iter()
        .flat_map(|folder| std::fs::read_dir(pins.join(folder)).expect("the folder of pins"))
        .map(|entry| entry.expect("a pin").path().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Status of an answer; `None` when there is no connection.
fn asks(pod: &Pod, url: &str) -> Option<String> {
    let header = format!("{SECRET}: 1");
    let words = ["curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-w", "%{http_code}"];
    let output = pod.exec(&[&words[..], &["-H", &header, url]].concat()).expect("curl starts");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How `connect` ends.
const CONNECT: &str = r#"
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit("|", 1)
    try:
        socket.create_connection((host, int(port)), 30).close()
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"#;

/// New connections of the node's pods, and into them, plain and in the mesh.
fn refused(lab: &Lab, client: &Pod, stranger: &Pod) {
    let (near, far) = (lab.pod("shop/near").unwrap(), lab.pod("shop/far").unwrap());
    let targets = |pod: &Pod| [true, false].map(|v4| format!("{}|8080", of_family(pod, v4)));
    for (from, to) in [(client, &far), (client, &near), (stranger, &near)] {
        let words = targets(to);
        let words = [&["python3", "-c", CONNECT][..], &words.each_ref().map(|word| &**word)];
        let ends = support::ok(from, &words.concat());
        let all = ["ConnectionRefusedError"; 2];
        assert_eq!(ends.lines().collect::<Vec<_>>(), all, "{} to {}", from.name, to.name);
    }
    let answer = asks(&far, "http://near.shop/");
    assert_eq!(answer, Some("503".into()), "the other node's agent cannot reach it");
}
