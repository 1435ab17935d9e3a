//! Databases, a cache and a broker behave in the mesh as outside: from the other node and from
//! their own, on ports that say what they speak and on ports that do not.
//!
//! The namespace accepts mutual TLS only and every port number is one that nothing is known about,
//! so an undeclared port is one whose protocol is detected, whoever speaks first.

use std::process::Child;

use xtask::lab::Lab;

use crate::support::{self, STRICT};

/// Debian's, for which Debian's database driver is: there may be another one before it.
const PYTHON: &str = "/usr/bin/python3";
/// Plays the client.
const USE: &str = include_str!("applications.py");
/// Seconds that one use of one server may take; about eight on two busy processors.
const PATIENCE: &str = "80";

/// An application: name of its Services, of its pod and in the script, port of the Services.
const APPLICATIONS: [(&str, &str); 4] =
    [("postgres", "15432"), ("mariadb", "13306"), ("redis", "16379"), ("mqtt", "11883")];

const SERVERS: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: ServiceAccount
apiVersion: v1
metadata: { name: client, namespace: shop }
---
kind: Pod
apiVersion: v1
metadata: { name: postgres, namespace: shop, labels: { app: postgres } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: postgres
      args:
        - -cssl=on
        - -cssl_cert_file=/etc/ssl/certs/ssl-cert-snakeoil.pem
        - -cssl_key_file=/etc/ssl/private/ssl-cert-snakeoil.key
      env: [{ name: POSTGRES_PASSWORD, value: secret }]
      ports: [{ containerPort: 5432 }]
---
kind: Pod
apiVersion: v1
metadata: { name: mariadb, namespace: shop, labels: { app: mariadb } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: mariadb
      env: [{ name: MARIADB_ROOT_PASSWORD, value: secret }]
      ports: [{ containerPort: 3306 }]
---
kind: Pod
apiVersion: v1
metadata: { name: redis, namespace: shop, labels: { app: redis } }
spec:
  nodeName: node2
  containers: [{ name: main, image: redis, ports: [{ containerPort: 6379 }] }]
---
kind: ConfigMap
apiVersion: v1
metadata: { name: mqtt, namespace: shop }
data: { mosquitto.conf: "listener 1883\nallow_anonymous true\n" }
---
kind: Pod
apiVersion: v1
metadata: { name: mqtt, namespace: shop, labels: { app: mqtt } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: eclipse-mosquitto
      ports: [{ containerPort: 1883 }]
      volumeMounts: [{ name: configuration, mountPath: /mosquitto/config }]
  volumes: [{ name: configuration, configMap: { name: mqtt } }]
"#;

/// A Service of an application whose only port is declared by these fields, or by none.
fn service(name: &str, app: &str, port: &str, target: &str, declared: &str) -> String {
    format!(
        r#"
kind: Service
apiVersion: v1
metadata: {{ name: {name}, namespace: shop }}
spec:
  selector: {{ app: {app} }}
  ports: [{{ port: {port}, targetPort: {target}{declared} }}]
"#
    )
}

fn manifests() -> String {
    let declared = [
        ("5432", ", name: tcp-postgres"),
        ("3306", ", appProtocol: mysql"),
        ("6379", ", name: redis"),
        ("1883", ", appProtocol: tcp"),
    ];
    let mut all = vec![SERVERS.to_owned(), STRICT.to_owned()];
    all.extend(["node1", "node2"].map(|node| support::client(&format!("client-{node}"), node)));
    for ((app, port), (target, fields)) in APPLICATIONS.iter().zip(declared) {
        all.push(service(app, app, port, target, ""));
        all.push(service(&format!("{app}-declared"), app, port, target, fields));
    }
    all.join("---")
}

/// Starts one use of a server; a word that is its alone, and the process.
fn begin(lab: &Lab, node: &str, app: &str, port: &str, suffix: &str) -> (String, Child) {
    let client = lab.pod(&format!("shop/client-{node}")).unwrap();
    let host = format!("{app}{suffix}.shop");
    let way = format!("{app}{suffix}_{node}").replace('-', "_");
    let words = ["timeout", PATIENCE, PYTHON, "-c", USE, app, &host, port, &way];
    let child = client.spawn(&words).unwrap();
    (way, child)
}

#[test]
fn databases_and_brokers_work_as_outside() {
    let Some(lab) = support::lab(2) else { return };
    let pods = ["client-node1", "client-node2", "postgres", "mariadb", "redis", "mqtt"]
        .map(|name| format!("shop/{name}"));
    support::apply(&lab, &manifests(), &pods.each_ref().map(String::as_str));
    let wire = lab.capture_wire("node1").expect("tcpdump starts");
    let mut uses = Vec::new();
    for (app, port) in APPLICATIONS {
        for node in ["node1", "node2"] {
            for suffix in ["", "-declared"] {
                uses.push(begin(&lab, node, app, port, suffix));
            }
        }
    }
    // Every one is waited for, so that one that fails leaves none behind.
    let failed: Vec<String> =
        uses.into_iter().filter_map(|(way, child)| failure(&way, child)).collect();
    let servers = || pods[2..].iter().map(|name| (name, lab.pod(name).unwrap()));
    let logs: String =
        servers().map(|(name, pod)| format!("{name}:\n{}\n", pod.log().unwrap())).collect();
    assert!(failed.is_empty(), "{}\n{logs}", failed.join("\n"));
    for (name, pod) in servers() {
        assert_eq!(pod.restarts(), 0, "{name}: {logs}");
    }
    let report = wire.finish().expect("the capture is readable");
    assert_eq!(report.tcp_server_ports(), [15008], "nothing but tunnels between the nodes");
    assert!(report.bytes_on_port(15008) > 10_000_000, "{}", report.bytes_on_port(15008));
    assert_eq!(report.not_tls(15008), 0, "TLS throughout");
}

/// What went wrong in one use, if anything did.
fn failure(way: &str, child: Child) -> Option<String> {
    let output = child.wait_with_output().expect("the client ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("{way}: {}\n{text}{error}", output.status))
}
