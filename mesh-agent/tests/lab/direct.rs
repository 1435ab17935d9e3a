//! Same node, direct: pods of one node reach the `tcp` ports of a namespace that asks for it past the
//! agent, with the share that is theirs, and are back with the agent as soon as it may not be.

use std::collections::BTreeMap;

use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, HOLDER, SHOP, SHOP_PODS, STRICT, of_family};

/// Two servers behind one port, one on each node.
const SERVICE: &str = r#"
kind: Service
apiVersion: v1
metadata: { name: who, namespace: shop }
spec:
  selector: { app: echo }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: tcp-who, port: 7000, targetPort: 7100 }]
---
kind: Service
apiVersion: v1
metadata: { name: near-who, namespace: shop }
spec:
  selector: { app: echo, version: near }
  ports: [{ name: tcp-who, port: 9000, targetPort: 9000 }]
"#;

/// Says its name and the client's address and port.
const WHO: &str = r#"
import socket, sys
listener = socket.create_server(("::", 7100), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
print("ready", flush=True)
while True:
    connection, peer = listener.accept()
    with connection:
        address = peer[0].removeprefix("::ffff:")
        connection.sendall(f"{sys.argv[1]} {address} {peer[1]}".encode())
"#;

/// Connects `count` times to `address`, and counts what it finds: the server's name, and whether
/// nobody was in between, which is when the server sees the client's own port.
const ASK: &str = r#"
import collections, socket, sys
address, count = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
found = collections.Counter()
for _ in range(count):
    with socket.socket(family) as s:
        s.settimeout(20)
        try:
            s.connect((address, 7000))
            name, peer, port = s.recv(100).decode().split()
        except OSError as error:
            found[f"error {error}"] += 1
            continue
        own = s.getsockname()
        # Whatever is done, the application sees what it dialled, and is seen by its address.
        assert s.getpeername()[:2] == (address, 7000), s.getpeername()
        assert own[0].removeprefix("::ffff:") == peer, (own, peer)
        found[f"{name} {'direct' if str(own[1]) == port else 'proxied'}"] += 1
for key, value in sorted(found.items()):
    print(key, value, sep="|")
"#;

fn ask(pod: &Pod, address: &str, count: u32) -> BTreeMap<String, u32> {
    let text = support::ok(pod, &["python3", "-c", ASK, address, &count.to_string()]);
    let row = |line: &str| {
        let (key, value) = line.split_once('|').expect("a row");
        (key.to_owned(), value.parse().expect("a count"))
    };
    text.lines().map(row).collect()
}

fn servers(lab: &Lab) -> Vec<Conversation> {
    let start = |name: &&str| {
        let pod = lab.pod(&format!("shop/{name}")).unwrap();
        let mut server = pod.converse(&["python3", "-c", WHO, name]).unwrap();
        assert_eq!(server.line().unwrap(), "ready");
        server
    };
    ["near", "far"].iter().map(start).collect()
}

fn hold(pod: &Pod) -> Conversation {
    let mut held = pod.converse(&["python3", "-c", HOLDER, "near-who.shop"]).unwrap();
    assert_eq!(held.line().unwrap(), "connected");
    assert_eq!(held.ask("one").unwrap(), "one");
    held
}

/// Rows of `meshctl connections` about direct connections.
fn direct_rows(lab: &Lab) -> Vec<serde_json::Value> {
    let text = lab.meshctl("node1", &["-o", "json", "connections"]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = list["connections"].as_array().unwrap();
    rows.iter().filter(|row| row["state"] == "direct").cloned().collect()
}

/// The agent ends the connection, once it has followed the configuration.
fn ends(held: &mut Conversation) {
    support::eventually("the connection ends", || match held.ask("still").unwrap().as_str() {
        "reset" => Some(()),
        _ => None,
    });
}

fn counter(lab: &Lab, name: &str) -> u64 {
    let text = lab.meshctl("node1", &["-o", "json", "status"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["capture"]["counters"][name].as_u64().unwrap_or_else(|| panic!("{name} in {text}"))
}

#[test]
fn pods_of_one_node_reach_each_other_past_the_agent() {
    let label = "istio.io/dataplane-mode: malha";
    let direct = SHOP.replace(label, &format!("{label}, malha.dev/same-node: direct"));
    assert_ne!(direct, SHOP);
    let log = ["--log-level", "info,access=debug"];
    let Some(lab) = support::lab_with(2, &log) else { return };
    support::apply(&lab, &[&direct, SERVICE, STRICT].join("\n---\n"), SHOP_PODS);
    let _servers = servers(&lab);
    let client = lab.pod("shop/client").unwrap();
    let addresses: Vec<String> =
        lab.service_ips("shop/who").unwrap().iter().map(ToString::to_string).collect();
    let [v4, v6] = addresses.as_slice() else { panic!("both families: {addresses:?}") };
    let is_direct = || ask(&client, v4, 20).contains_key("near direct");
    support::eventually("the first direct connection", || is_direct().then_some(()));

    for address in [v4, v6, &format!("::ffff:{v4}")] {
        let found = ask(&client, address, 200);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["far proxied", "near direct"], "{address}");
        // Each endpoint is drawn as often as the other: 5.6 standard deviations.
        assert!(found.values().all(|count| (60..=140).contains(count)), "{address}: {found:?}");
    }
    // It is this connection of this pod's that is let through: STRICT refuses all others.
    let near = lab.pod("shop/near").unwrap();
    let stranger = lab.pod("outside/stranger").unwrap();
    let to = format!("{}", of_family(&near, true));
    let script = format!(
        "import socket\ns = socket.create_connection((\"{to}\", 7100), 20)\nprint(s.recv(100))"
    );
    let refused = stranger.exec(&["python3", "-c", &script]).unwrap();
    assert!(!refused.status.success(), "{refused:?}");

    told(&lab, &client);
    ended(&lab, &client, &direct, &is_direct);
    ruled(&lab, &client, &direct, &is_direct);
    outlives_agents(&lab, &client, &is_direct);
}

/// The agent tells of connections that it does not carry.
fn told(lab: &Lab, client: &Pod) {
    let held = hold(client);
    let service = lab.service_ips("shop/near-who").unwrap()[0];
    support::eventually("it is listed", || match direct_rows(lab).as_slice() {
        [row] => (row["destination"] == format!("{service}:9000")).then_some(()),
        _ => None,
    });
    let row = direct_rows(lab).remove(0);
    assert_eq!(row["workload"], "shop/client");
    assert_eq!(row["peer"], "spiffe://cluster.local/ns/shop/sa/echo");
    drop(held);
    support::eventually("it is not listed", || direct_rows(lab).is_empty().then_some(()));
    let log = lab.agent_log("node1").unwrap();
    let line = log.lines().rev().find(|line| line.contains("near-who.shop.svc.cluster.local"));
    let line = line.expect("a line of the access log");
    for expected in ["bytes_received=4", "bytes_sent=4", "destination=\"shop/near\""] {
        assert!(line.contains(expected), "{expected}: {line}");
    }
    assert!(counter(lab, "outbound_direct") > 0);
    assert_eq!(counter(lab, "flows_lost"), 0);
}

/// The namespace takes its wish back: what is open ends, what is new goes through the agent.
fn ended(lab: &Lab, client: &Pod, direct: &str, is_direct: &dyn Fn() -> bool) {
    let mut held = hold(client);
    lab.apply(SHOP).unwrap();
    ends(&mut held);
    support::eventually("no direct connection", || (!is_direct()).then_some(()));
    let address = lab.service_ips("shop/who").unwrap()[0].to_string();
    let found = ask(client, &address, 50);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["far proxied", "near proxied"]);
    // What the agent carries stays when the kernel could.
    let mut carried = hold(client);
    lab.apply(direct).unwrap();
    support::eventually("direct again", || is_direct().then_some(()));
    assert_eq!(carried.ask("three").unwrap(), "three");
}

/// A rule that only the agent can follow comes and goes.
fn ruled(lab: &Lab, client: &Pod, direct: &str, is_direct: &dyn Fn() -> bool) {
    let rule = r"
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: { name: echo, namespace: shop }
spec: { host: '*.shop.svc.cluster.local', trafficPolicy: { loadBalancer: { simple: RANDOM } } }
";
    let mut held = hold(client);
    lab.apply(rule).unwrap();
    ends(&mut held);
    support::eventually("no direct connection", || (!is_direct()).then_some(()));
    lab.delete_manifests(rule).unwrap();
    support::eventually("direct again", || is_direct().then_some(()));
    // A mistake in the label is named, and is no wish.
    let mistaken = direct.replace("same-node: direct", "same-node: straight");
    lab.apply(&mistaken).unwrap();
    let expected = "`straight` is neither `direct` nor `proxied`";
    support::eventually("a diagnostic", || {
        lab.meshctl("node1", &["config", "diagnostics"]).ok()?.contains(expected).then_some(())
    });
    support::eventually("no direct connection", || (!is_direct()).then_some(()));
    lab.apply(direct).unwrap();
    support::eventually("direct again", || is_direct().then_some(()));
}

/// Agents come and go; the connection is none of theirs, until it may not be any more.
fn outlives_agents(lab: &Lab, client: &Pod, is_direct: &dyn Fn() -> bool) {
    let mut held = hold(client);
    lab.replace_agent("node1").unwrap();
    assert_eq!(held.ask("two").unwrap(), "two");
    lab.kill_agent("node1").unwrap();
    assert_eq!(held.ask("three").unwrap(), "three");
    lab.start_agent("node1").unwrap();
    assert_eq!(direct_rows(lab).len(), 1, "also one that is older than the agent");
    assert_eq!(held.ask("four").unwrap(), "four");
    support::eventually("direct again", || is_direct().then_some(()));
    lab.apply(SHOP).unwrap();
    ends(&mut held);
}
