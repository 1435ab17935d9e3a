//! Routes below HTTP: a service's `tcp` routes split connections by weight, its `tls` routes choose a
//! backend by the server name, which only the backend decrypts.

use std::process::Command;

use xtask::lab::{Conversation, Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS, STRICT};

/// The line that a server of the port says first has its pod's name.
const BANNER: u16 = 9100;

/// Split by weight, and by the server name.
const ROUTES: &str = r#"
kind: Service
apiVersion: v1
metadata: { name: talk, namespace: shop }
spec:
  selector: { app: echo }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: tcp, port: 9100 }, { name: tls, port: 443, targetPort: 8443 }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: talk, namespace: shop }
spec:
  hosts: [talk, near.example, '*.far.example']
  tls:
  - match: [{ port: 443, sniHosts: [near.example] }]
    route: [{ destination: { host: talk, subset: near } }]
  - match: [{ port: 443, sniHosts: ['*.far.example'] }]
    route: [{ destination: { host: talk, subset: far } }]
  tcp:
  - match: [{ port: 9100 }]
    route:
    - { destination: { host: talk, subset: near }, weight: 90 }
    - { destination: { host: talk, subset: far }, weight: 10 }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: talk, namespace: shop }
spec:
  host: talk
  subsets:
  - { name: near, labels: { version: near } }
  - { name: far, labels: { version: far } }
"#;

/// Says its name first, or takes TLS and says its name and the one that it was asked for.
const SERVER: &str = r#"
import socket, ssl, sys, threading
name, port, certificate, key = sys.argv[1:]
context = None
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    def wanted(connection, name, _):
        connection.wanted = name
    context.sni_callback = wanted
listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
def serve(raw):
    try:
        if context is None:
            raw.sendall(f"{name}\n".encode())
            raw.close()
            return
        with context.wrap_socket(raw, server_side=True) as connection:
            connection.sendall(f"{name} {getattr(connection, 'wanted', None)}\n".encode())
    except (OSError, ssl.SSLError):
        pass
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"#;

/// Connects as often as it is told, and prints what each server said.
const CLIENT: &str = r#"
import socket, sys
for _ in range(int(sys.argv[3])):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as s:
        print(s.makefile().readline().strip())
"#;

/// A TLS client; the server's certificate is the lab's own.
const TLS_CLIENT: &str = r#"
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as raw:
    with context.wrap_socket(raw, server_hostname=sys.argv[3] or None) as s:
        print(s.makefile().readline().strip())
"#;

/// A certificate and its key, as files that pods see.
pub(crate) fn certificate(lab: &Lab, name: &str) -> (String, String) {
    let path = |end: &str| lab.shared_dir().join(format!("{name}.{end}"));
    let [certificate, key] = ["crt", "key"].map(|end| path(end).to_str().unwrap().to_owned());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=lab", "-keyout", &key, "-out", &certificate])
        .output()
        .expect("openssl starts");
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}

/// Starts a server by a command; with a certificate it takes TLS. Dropped, it ends.
pub(crate) fn serve(
    command: impl Fn(&[&str]) -> anyhow::Result<Command>,
    (name, port): (&str, u16),
    files: Option<&(String, String)>,
) -> Conversation {
    let (certificate, key) = files.map_or(("", ""), |(certificate, key)| (certificate, key));
    let words = ["python3", "-c", SERVER, name, &port.to_string(), certificate, key];
    let mut server = Conversation::start(&mut command(&words).unwrap()).expect("python starts");
    assert_eq!(server.line().unwrap(), "ready");
    server
}

/// What a TLS server says to a client that asks for `sni`; empty: for no name.
pub(crate) fn tls(pod: &Pod, address: &str, port: u16, sni: &str) -> String {
    let words = ["python3", "-c", TLS_CLIENT, address, &port.to_string(), sni];
    support::ok(pod, &words).trim().to_owned()
}

/// How many of `count` connections each of the two servers took.
fn split(client: &Pod, count: u32) -> (u32, u32) {
    let words = ["python3", "-c", CLIENT, "talk.shop", &BANNER.to_string(), &count.to_string()];
    let said = support::ok(client, &words);
    let of = |name: &str| u32::try_from(said.lines().filter(|line| *line == name).count()).unwrap();
    let (near, far) = (of("near"), of("far"));
    assert_eq!(near + far, count, "{said}");
    (near, far)
}

#[test]
fn connections_are_split_by_weight_and_by_server_name() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, &[SHOP, STRICT, ROUTES].join("\n---\n"), SHOP_PODS);
    let files = certificate(&lab, "talk");
    let servers = ["near", "far"].map(|name| {
        let pod = lab.pod(&format!("shop/{name}")).unwrap();
        let start = |port, files| serve(|words| pod.command(words), (name, port), files);
        [start(BANNER, None), start(8443, Some(&files))]
    });
    let client = lab.pod("shop/client").unwrap();
    support::eventually("the routes are in force", || {
        let (near, far) = split(&client, 40);
        (near > far).then_some(())
    });

    let (near, far) = split(&client, 1000);
    // Five standard deviations of a binomial(1000, 0.1) are 47.
    assert!(far.abs_diff(100) <= 47, "{near} and {far}");
    for (sni, expected) in [
        ("near.example", "near near.example"),
        ("a.far.example", "far a.far.example"),
        ("A.FAR.example", "far A.FAR.example"),
    ] {
        for _ in 0..10 {
            assert_eq!(tls(&client, "talk.shop", 443, sni), expected);
        }
    }
    // A name of no route, and none at all: any endpoint of the service.
    for sni in ["other.example", ""] {
        let said = tls(&client, "talk.shop", 443, sni);
        assert!(["near", "far"].iter().any(|name| said.starts_with(name)), "{sni}: {said}");
    }

    // Weights change for new connections.
    let turned = ROUTES.replace("weight: 90", "weight: 0").replace("weight: 10", "weight: 100");
    lab.apply(&turned).unwrap();
    support::eventually("the weights have changed", || (split(&client, 20).0 == 0).then_some(()));
    drop(servers);
}
