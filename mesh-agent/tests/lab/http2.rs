//! HTTP/2 and gRPC as other implementations speak them pass through both agents, on a declared port
//! and on one whose protocol is detected: streams that go back and forth, trailers, deadlines, resets.

use serde_json::json;

use crate::support::{self, STRICT};

/// Debian's, for which Debian's `python3-h2` and `python3-grpcio` are: there may be another one before
/// it.
const PYTHON: &str = "/usr/bin/python3";

/// Services of the one server, and what their port says that it speaks.
const SERVICES: [(&str, &str); 3] =
    [("grpc", ", appProtocol: grpc"), ("http2", ", name: http2"), ("undeclared", "")];

const SERVER: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: ServiceAccount
apiVersion: v1
metadata: { name: client, namespace: shop }
---
kind: ConfigMap
apiVersion: v1
metadata: { name: server, namespace: shop }
data: { server.py: CODE }
---
kind: Pod
apiVersion: v1
metadata: { name: server, namespace: shop, labels: { app: server } }
spec:
  nodeName: node2
  containers:
    - name: main
      image: debian
      command: [PYTHON, /code/server.py]
      ports: [{ containerPort: 8080 }]
      volumeMounts: [{ name: code, mountPath: /code }]
  volumes: [{ name: code, configMap: { name: server } }]
---"#;

fn service(name: &str, declared: &str) -> String {
    format!(
        r#"
kind: Service
apiVersion: v1
metadata: {{ name: {name}, namespace: shop }}
spec:
  selector: {{ app: server }}
  ports: [{{ port: 80, targetPort: 8080{declared} }}]
---"#
    )
}

#[test]
fn streams_trailers_and_resets_pass() {
    use_server(include_str!("http2_server.py"), include_str!("http2_client.py"));
}

/// Calls of every kind, metadata, statuses, deadlines, cancellations, as gRPC's own library makes them.
#[test]
fn grpcs_own_library_works_as_outside() {
    use_server(include_str!("grpc_server.py"), include_str!("grpc_client.py"));
}

/// Runs the client's program on both nodes, against each Service of the server's.
fn use_server(server: &str, client: &str) {
    let Some(lab) = support::lab(2) else { return };
    let code = json!(server).to_string();
    let mut manifests = SERVER.replace("PYTHON", PYTHON).replace("CODE", &code);
    manifests += &SERVICES.map(|(name, declared)| service(name, declared)).concat();
    for node in ["node1", "node2"] {
        manifests += &support::client(node, node);
        manifests += "---";
    }
    support::apply(&lab, &(manifests + STRICT), &["shop/node1", "shop/node2", "shop/server"]);
    for node in ["node1", "node2"] {
        let pod = lab.pod(&format!("shop/{node}")).unwrap();
        for (name, _) in SERVICES {
            let host = format!("{name}.shop");
            // A minute for what takes a second: the client's own patience is per answer.
            let words = ["timeout", "60", PYTHON, "-c", client, &host];
            let output = pod.exec(&words).unwrap();
            let [said, error] = [output.stdout, output.stderr]
                .map(|text| String::from_utf8_lossy(&text).into_owned());
            let status = output.status;
            assert!(status.success(), "{name} from {node}: {status}\n{said}{error}");
        }
    }
}
