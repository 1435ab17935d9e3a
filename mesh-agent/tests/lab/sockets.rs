//! Other people's ways to open a socket: each is captured, or passes as if the mesh were not there.
//!
//! The server's namespace accepts mutual TLS only, so an answer proves that a connection was
//! captured, and the echo says which source address it saw.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use xtask::lab::{Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS, STRICT};

/// Opens sockets in every way and prints for each one `name`, `what the server saw`, `getsockname`.
const WAYS: &str = include_str!("sockets.py");

/// Ways that this kernel may lack; `sockets.py` says which it does.
const MAY_BE_MISSING: [&str; 2] = ["mptcp", "io_uring"];

fn table(command: &mut Command) -> BTreeMap<String, Vec<String>> {
    let output = command.stdin(Stdio::null()).output().expect("python starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{error}");
    let row = |line: &str| {
        let mut words = line.split('\t').map(str::to_owned);
        (words.next().unwrap_or_default(), words.collect())
    };
    text.lines().map(row).collect()
}

/// `python3 -c sockets.py ARGUMENTS` in the pod's namespaces, in a cgroup below the container's.
fn nested(pod: &Pod, arguments: &[&str]) -> Command {
    let cgroup = pod.cgroup.join("main/nested");
    std::fs::create_dir_all(&cgroup).expect("a cgroup below the container's");
    let mut command = Command::new("sh");
    command.args(["-c", "echo 0 >\"$1\" && shift && exec \"$@\"", "nested"]);
    command.arg(cgroup.join("cgroup.procs")).args(["nsenter", "--target"]);
    command.arg(pod.pid().expect("the container runs").to_string());
    command.args(["--mount", "--uts", "--net", "python3", "-c", WAYS]).args(arguments);
    command
}

#[test]
fn every_way_to_open_a_socket_is_captured_or_passes() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[SHOP, "---", STRICT].join("\n"), SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let far = lab.pod("shop/far").unwrap();
    let (v4, v6) = (far.v4().unwrap().to_string(), far.v6().unwrap().to_string());
    let own = [client.v4().unwrap().to_string(), client.v6().unwrap().to_string()];
    let arguments = [v4.as_str(), &v6, &own[0], &own[1]];
    let words = [&["python3", "-c", WAYS], arguments.as_slice()].concat();
    for (place, mut command) in [
        ("container", client.command(&words).unwrap()),
        ("nested cgroup", nested(&client, &arguments)),
    ] {
        let table = table(&mut command);
        assert!(table.len() >= 20, "{table:?}");
        for (way, row) in &table {
            if row[0] == "unsupported" && MAY_BE_MISSING.contains(&way.as_str()) {
                xtask::test::skipped(&format!("{way}: this kernel has none"));
                continue;
            }
            let expected = &own[usize::from(way.ends_with("-v6"))];
            assert_eq!(&row[0], expected, "{place}, {way}: what the server sees: {row:?}");
            assert_eq!(&row[1], expected, "{place}, {way}: getsockname: {row:?}");
        }
    }
    uncaptured(&lab, &client, &v4);
    older_than_the_enrolment(&lab, &v4);
}

/// What is no TCP of the pod's own namespace is left alone.
fn uncaptured(lab: &Lab, client: &Pod, far: &str) {
    let udp = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 5353))
print("ready", flush=True)
data, peer = s.recvfrom(100)
s.sendto(peer[0].encode(), peer)
print(data.decode(), flush=True)
"#;
    let far_pod = lab.pod("shop/far").unwrap();
    let mut server = far_pod.converse(&["python3", "-c", udp]).unwrap();
    assert_eq!(server.line().unwrap(), "ready");
    let ask = format!(
        r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
s.connect(("{far}", 5353))
s.send(b"datagram")
print(s.recv(100).decode(), s.getpeername()[0])
"#
    );
    let seen = support::ok(client, &["python3", "-c", &ask]);
    assert_eq!(seen.trim(), format!("{} {far}", client.v4().unwrap()));
    assert_eq!(server.line().unwrap(), "datagram");
    inner_network(lab, client, far);
    // A namespace of its own inside the pod: no address, and the kernel's own answer.
    let inner = format!(
        "import socket\ntry: socket.create_connection((\"{far}\", 8080), 20)\n\
         except OSError as error: print(error.errno)"
    );
    let seen = support::ok(client, &["unshare", "--net", "python3", "-c", &inner]);
    assert_eq!(seen.trim(), libc::ENETUNREACH.to_string());
}

/// A network inside the pod, as Docker in Docker makes: forwarded by the pod's kernel, in plaintext.
const INNER: &str = r#"
import os, socket, subprocess, sys, time
def run(words):
    subprocess.run(words.split(), check=True)
inner = subprocess.Popen(["unshare", "--net", "sleep", "600"])
try:
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{inner.pid}/ns/net") == own:
        time.sleep(0.01)
    within = f"nsenter --target {inner.pid} --net"
    run(f"ip link add docker0 type veth peer name eth0 netns {inner.pid}")
    run("ip address add 172.31.0.1/24 dev docker0")
    run("ip link set docker0 up")
    run(f"{within} ip address add 172.31.0.2/24 dev eth0")
    run(f"{within} ip link set eth0 up")
    run(f"{within} ip route add default via 172.31.0.1")
    open("/proc/sys/net/ipv4/ip_forward", "w").write("1")
    nat = "table ip inner { chain out { type nat hook postrouting priority 100; oifname != docker0 masquerade; }; }"
    subprocess.run(["nft", nat], check=True)
    client = r"""
import socket, sys
for at in sys.argv[1:]:
    address, port = at.split(":")
    try:
        with socket.create_connection((address, int(port)), 20) as s:
            s.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            print(s.recv(100).decode().split("\r")[0], end="|")
    except ConnectionError:
        print("refused", end="|")
"""
    subprocess.run([*within.split(), "python3", "-c", client, *sys.argv[1:]], check=True)
finally:
    inner.kill()
    inner.wait()
"#;

fn inner_network(lab: &Lab, client: &Pod, far: &str) {
    let says_who = r#"
import socket
listener = socket.create_server(("", 9100))
print("ready", flush=True)
connection, peer = listener.accept()
connection.recv(100)
connection.sendall(peer[0].encode())
connection.close()
"#;
    let stranger = lab.pod("outside/stranger").unwrap();
    let mut server = stranger.converse(&["python3", "-c", says_who]).unwrap();
    assert_eq!(server.line().unwrap(), "ready");
    let (outside, inside) = (format!("{}:9100", stranger.v4().unwrap()), format!("{far}:8080"));
    let seen = support::ok(client, &["python3", "-c", INNER, &outside, &inside]);
    assert_eq!(seen, format!("{}|refused|", client.v4().unwrap()), "STRICT refuses plaintext");
}

/// A socket made before its pod came into the mesh, and connected after, is captured.
fn older_than_the_enrolment(lab: &Lab, far: &str) {
    let script = format!(
        r#"
import socket
s = socket.socket()
print("made", flush=True)
input()
s.settimeout(20)
s.connect(("{far}", 8080))
s.sendall(b"GET / HTTP/1.1\r\nhost: far\r\nconnection: close\r\n\r\n")
print(s.recv(12).decode(), flush=True)
"#
    );
    let stranger = lab.pod("outside/stranger").unwrap();
    let mut socket = stranger.converse(&["python3", "-c", &script]).unwrap();
    assert_eq!(socket.line().unwrap(), "made");
    let inside = SHOP.replace(
        "labels: { app: stranger }",
        "labels: { app: stranger, istio.io/dataplane-mode: malha }",
    );
    assert_ne!(inside, SHOP);
    lab.apply(&inside).unwrap();
    lab.wait_enrolled(&stranger).unwrap();
    assert_eq!(socket.ask("go").unwrap(), "HTTP/1.1 200");
}
