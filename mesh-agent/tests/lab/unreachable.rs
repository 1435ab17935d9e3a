//! Destinations that cannot be reached: what a captured application sees of a closed port, of a
//! host without a route and of one that does not answer, beside what an uncaptured one sees.
//!
//! `connect` of a captured socket has succeeded before the agent knows, so the first one is reset.
//! What is outside the mesh is left to the kernel from then on, until it answers.

use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS, of_family};

/// Tries `address port seconds`, and prints where it ended and how. A server says which port it
/// saw: the client's own if nothing was in between.
const ATTEMPT: &str = r#"
import errno, socket, sys
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
def attempt():
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as s:
        s.settimeout(seconds)
        step = "connect"
        try:
            s.connect((address, port))
            step = "read"
            seen = s.recv(100).decode()
            return "uncaptured" if seen == str(s.getsockname()[1]) else "captured"
        except TimeoutError:
            return f"{step} timeout"
        except OSError as error:
            return f"{step} {errno.errorcode[error.errno]}"
print(attempt())
"#;

/// Tells each client the port that it came from.
const PORTS: &str = r#"
import socket
listener = socket.create_server(("::", 9), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    connection, peer = listener.accept()
    with connection:
        connection.sendall(str(peer[1]).encode())
"#;

/// Nobody has it, and no route leads to it.
const NOWHERE: &str = "2001:db8:dead::1";

/// Whether the connection was reset, be it that the client had not even asked how its `connect` went.
fn is_reset(seen: &str) -> bool {
    ["connect ECONNRESET", "read ECONNRESET"].contains(&seen)
}

fn attempt(pod: &Pod, address: &str, port: u16, seconds: u32) -> String {
    let (port, seconds) = (port.to_string(), seconds.to_string());
    let words = ["python3", "-c", ATTEMPT, address, &port, &seconds];
    support::ok(pod, &words).trim().to_owned()
}

/// A captured client is reset once, and then sees what an uncaptured one sees.
fn once_reset(captured: &Pod, other: &Pod, address: &str, port: u16) -> String {
    let plain = attempt(other, address, port, 2);
    assert!(plain.starts_with("connect "), "{address}:{port}: {plain}");
    // The agent gives up after 10 s.
    let first = attempt(captured, address, port, 100);
    assert!(is_reset(&first), "{address}:{port}: {first}");
    for _ in 0..2 {
        assert_eq!(attempt(captured, address, port, 2), plain, "{address}:{port}");
    }
    plain
}

#[test]
fn what_cannot_be_reached_is_told_as_without_the_mesh() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.wait_all_ready().unwrap();
    let client = lab.pod("shop/client").unwrap();
    let stranger = lab.pod("outside/stranger").unwrap();
    let addresses: Vec<String> =
        support::outside_addresses(&lab).iter().map(ToString::to_string).collect();
    assert!(addresses.len() >= 2, "both families: {addresses:?}");

    for address in &addresses {
        let seen = once_reset(&client, &stranger, address, 9);
        assert_eq!(seen, "connect ECONNREFUSED", "{address}");
    }
    let nowhere = once_reset(&client, &stranger, NOWHERE, 443);
    assert!(nowhere.ends_with("UNREACH"), "{nowhere}");
    let drop = "table inet hole { chain input { type filter hook input priority 0; \
                tcp dport 10 drop; }; }";
    let dropped = lab.outside(&["nft", drop]).unwrap().output().unwrap();
    assert!(dropped.status.success(), "{dropped:?}");
    assert_eq!(once_reset(&client, &stranger, &addresses[0], 10), "connect timeout");

    // A closed port of a pod that the mesh knows goes through the mesh each time.
    let far = lab.pod("shop/far").unwrap();
    for v4 in [true, false] {
        let address = of_family(&far, v4).to_string();
        for pod in [&stranger, &client, &client] {
            let seen = attempt(pod, &address, 9, 20);
            assert!(is_reset(&seen), "{}, {address}: {seen}", pod.name);
        }
    }
    // It lives until the end: what falls back falls back to it.
    let _server = answers_again(&lab, &client, &addresses[0]);
    comes_into_the_mesh(&lab, &client);
    falls_back(&client, &addresses[0]);
}

/// Once it answers, it goes through the agent again.
fn answers_again(lab: &Lab, client: &Pod, address: &str) -> Conversation {
    let mut command = lab.outside(&["python3", "-c", PORTS]).unwrap();
    let mut server = Conversation::start(&mut command).expect("python starts");
    assert_eq!(server.line().unwrap(), "ready");
    assert_eq!(attempt(client, address, 9, 20), "uncaptured", "the first that is answered");
    assert_eq!(attempt(client, address, 9, 20), "captured");
    server
}

/// An address that nobody had becomes a Service's.
fn comes_into_the_mesh(lab: &Lab, client: &Pod) {
    let address = "203.0.113.99";
    let ask = || {
        let url = format!("http://{address}:9999/");
        client.exec(&["curl", "-sS", "--max-time", "60", &url]).unwrap().status.success()
    };
    assert!(!ask() && !ask(), "nobody has it");
    let service = format!(
        r#"
kind: Service
apiVersion: v1
metadata: {{ name: late, namespace: shop }}
spec:
  selector: {{ app: echo, version: far }}
  externalIPs: [{address}]
  ports: [{{ name: http, port: 9999, targetPort: 8080 }}]
"#
    );
    lab.apply(&service).unwrap();
    support::eventually("the Service's address", || ask().then_some(()));
    // Not through kube-proxy, which would hide the client: the mesh took it there.
    let url = format!("http://{address}:9999/");
    let seen = support::ok(client, &["curl", "-sS", &url]);
    assert!(seen.contains(&client.v4().unwrap().to_string()), "{seen}");
}

/// A client that races the families (RFC 8305) finds the one that works, from the second time on.
fn falls_back(client: &Pod, v4: &str) {
    let to = format!("name.example:9:[2001:db8:dead::2],{v4}");
    let words = ["curl", "-sv", "--http0.9", "--max-time", "60", "--resolve", &to];
    let ask = || {
        let output = client.exec(&[&words[..], &["telnet://name.example:9"]].concat()).unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let first = ask();
    // The reset comes after the connection, or before the client has looked how that went.
    let ways = [
        "Connected to name.example (2001:db8:dead::2)",
        "connect to 2001:db8:dead::2 port 9 failed: Connection reset",
    ];
    assert!(ways.iter().any(|way| first.contains(way)), "{first}");
    let second = ask();
    assert!(second.contains(&format!("Connected to name.example ({v4})")), "{second}");
}
