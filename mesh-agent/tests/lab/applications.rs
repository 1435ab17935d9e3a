//! Databases and a broker in the mesh: protocols that speak first, that negotiate TLS inside, that
//! stay silent for long, each on a port that says nothing and on one that is declared.

use std::process::{Command, Stdio};

use xtask::lab::Pod;

use crate::support::{self, SHOP, STRICT};

const USES: &str = include_str!("applications.py");

/// Name, image, its port, how a Service declares it, and what the container is told.
const APPLICATIONS: [(&str, &str, u16, &str, &str); 4] = [
    (
        "postgres",
        "postgres",
        5432,
        "name: tcp-postgres",
        "args: [postgres, -c, ssl=on, -c, ssl_cert_file=/etc/ssl/certs/ssl-cert-snakeoil.pem, \
         -c, ssl_key_file=/etc/ssl/private/ssl-cert-snakeoil.key], \
         env: [{ name: POSTGRES_PASSWORD, value: secret }]",
    ),
    (
        "mariadb",
        "mariadb",
        3306,
        "name: declared, appProtocol: mysql",
        "env: [{ name: MARIADB_ROOT_PASSWORD, value: secret }]",
    ),
    ("redis", "redis", 6379, "name: redis", ""),
    (
        "mosquitto",
        "eclipse-mosquitto",
        1883,
        "name: tcp",
        r#"command: [sh, -c, "printf 'listener 1883\nallow_anonymous true\n' >/run/conf && \
         exec /usr/sbin/mosquitto -c /run/conf"]"#,
    ),
];

/// A server on the second node, behind a port that its Service says nothing about, and one that it
/// declares.
fn server((name, image, port, declared, container): (&str, &str, u16, &str, &str)) -> String {
    let comma = if container.is_empty() { "" } else { ", " };
    format!(
        r"
kind: Pod
apiVersion: v1
metadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}
spec:
  nodeName: node2
  containers:
  - {{ name: main, image: {image}, ports: [{{ containerPort: {port} }}]{comma}{container} }}
---
kind: Service
apiVersion: v1
metadata: {{ name: {name}, namespace: shop }}
spec:
  selector: {{ app: {name} }}
  ports:
  - {{ name: undeclared, port: 100, targetPort: {port} }}
  - {{ {declared}, port: 200, targetPort: {port} }}
"
    )
}

#[test]
fn databases_and_a_broker_work_as_without_the_mesh() {
    let Some(lab) = support::lab(2) else { return };
    let clients = [("away", "node1"), ("beside", "node2")];
    let mut manifests = vec![SHOP.to_owned(), STRICT.to_owned()];
    manifests.extend(clients.map(|(name, node)| support::client(name, node)));
    manifests.extend(APPLICATIONS.map(server));
    let mut enrolled = vec!["shop/away".to_owned(), "shop/beside".to_owned()];
    enrolled.extend(APPLICATIONS.map(|(name, ..)| format!("shop/{name}")));
    let enrolled: Vec<&str> = enrolled.iter().map(String::as_str).collect();
    support::apply(&lab, &manifests.join("\n---\n"), &enrolled);
    let wire = lab.capture_wire("node1").expect("the wire is watched");
    for (client, _) in clients {
        let pod = lab.pod(&format!("shop/{client}")).unwrap();
        for port in ["100", "200"] {
            // All at once, as they would be.
            let uses: Vec<_> = APPLICATIONS
                .map(|(name, ..)| (name, in_use(&pod, name, port).spawn().expect("python starts")))
                .into();
            for (name, used) in uses {
                let output = used.wait_with_output().expect("the client ends");
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.stdout, b"ok\n", "{name} from {client}, port {port}: {said}");
            }
        }
    }
    let seen = wire.finish().expect("the wire was watched");
    assert_eq!(seen.tcp_server_ports(), [15008], "only tunnels between the nodes");
    assert_eq!(seen.not_tls(15008), 0);
}

fn in_use(pod: &Pod, name: &str, port: &str) -> Command {
    let mut command = pod.command(&["python3", "-c", USES, name, name, port]).expect("it runs");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
