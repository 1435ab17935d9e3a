//! Issue 8, line 1: a pod reaches services by name, virtual address and pod address, over both
//! families, on its own node and on another; addresses are those of an uncaptured connection; the
//! wire shows TLS 1.3 only.

use std::net::IpAddr;

use xtask::lab::{Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS};

/// The address of `name` in one family, as the pod resolves it.
fn resolve(pod: &Pod, name: &str, family: &str) -> IpAddr {
    let text = support::ok(pod, &["getent", &format!("ahosts{family}"), name]);
    let first = text.split_whitespace().next().expect("an address");
    first.parse().expect("an IP address")
}

fn of_family(pod: &Pod, family: &str) -> IpAddr {
    support::of_family(pod, family == "v4")
}

fn url(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

/// One request; checks every address that either end sees.
fn check(client: &Pod, server: &Pod, family: &str, dialled: IpAddr, port: u16, host: &str) {
    let format = "%{stderr}%{local_ip} %{remote_ip} %{remote_port}";
    let url = format!("http://{}/hello", url(dialled, port));
    let header = format!("host: {host}");
    let output = client
        .exec(&["curl", "-sS", "--max-time", "20", "-w", format, "-H", &header, &url])
        .expect("curl starts");
    let (text, seen) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{url}: {seen} {text}");
    let answer: serde_json::Value = serde_json::from_str(&text).expect("the echo's JSON");
    assert_eq!(answer["path"], "/hello");
    let remote: std::net::SocketAddr = answer["remote"].as_str().unwrap().parse().unwrap();
    let local: std::net::SocketAddr = answer["local"].as_str().unwrap().parse().unwrap();
    assert_eq!(remote.ip().to_canonical(), of_family(client, family), "what the server sees");
    assert_eq!(local.ip().to_canonical(), of_family(server, family), "the server's own address");
    assert_eq!(local.port(), 8080);
    let expected = format!("{} {dialled} {port}", of_family(client, family));
    assert_eq!(seen.trim(), expected, "what the client sees");
}

#[test]
fn every_address_and_family_reaches_both_nodes() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let wire = lab.capture_wire("node1").expect("tcpdump starts");
    for name in ["near", "far"] {
        let server = lab.pod(&format!("shop/{name}")).unwrap();
        for family in ["v4", "v6"] {
            let virtual_ip = resolve(&client, name, family);
            check(&client, &server, family, virtual_ip, 80, name);
            check(&client, &server, family, of_family(&server, family), 8080, "anything");
        }
        let by_name = support::json(
            &client,
            &["curl", "-sS", "--max-time", "20", &format!("http://{name}.shop/by-name")],
        );
        assert_eq!(by_name["path"], "/by-name");
    }
    let report = wire.finish().expect("the capture is readable");
    assert!(report.bytes_on_port(15008) > 1000, "tunnels were used: {report:?}");
    assert!(!report.contains(b"GET /hello"), "no request in plaintext");
    assert!(!report.contains(b"by-name"), "no request in plaintext");
    assert_eq!(report.tls_versions(), vec!["TLS 1.3"], "{report:?}");
    let tcp: Vec<u16> = report.tcp_server_ports();
    assert_eq!(tcp, vec![15008], "nothing else between the nodes");
}

#[test]
fn raw_tcp_half_close_and_reset_pass() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    for name in ["near", "far"] {
        half_close(&client, name);
        refused(&lab, &client, name);
    }
}

/// The client ends its side first; the echo of everything still comes back.
fn half_close(client: &Pod, name: &str) {
    let script = format!(
        r#"
import hashlib, socket
s = socket.create_connection(("{name}.shop", 9000), 20)
data = bytes(range(256)) * 4096
import threading
t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
t.start()
got = b""
while True:
    part = s.recv(65536)
    if not part: break
    got += part
t.join()
assert got == data, (len(got), len(data))
print("whole")
"#
    );
    assert_eq!(support::ok(client, &["python3", "-c", &script]).trim(), "whole");
}

/// A port where nobody listens ends in a reset, not in silence.
fn refused(lab: &Lab, client: &Pod, name: &str) {
    let server = lab.pod(&format!("shop/{name}")).unwrap();
    let script = format!(
        r#"
import socket
try:
    s = socket.create_connection(("{}", 7), 20)
    s.settimeout(20)
    got = s.recv(1)
    print("eof" if not got else "data")
except ConnectionError as error:
    print("refused")
"#,
        of_family(&server, "v4")
    );
    assert_eq!(support::ok(client, &["python3", "-c", &script]).trim(), "refused");
}
