//! Builds labs for tests and asks their pods.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use mesh_agent::identity::LocalCa;
use serde_json::Value;
use xtask::lab::{Lab, LabBuilder, Pod};

/// Ten times what anything here takes on a quiet machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A lab with agents, or `None` (said loudly) where it cannot run.
pub(crate) fn lab(workers: usize) -> Option<Lab> {
    lab_with(workers, &[])
}

/// The same, with more arguments for the agents.
pub(crate) fn lab_with(workers: usize, arguments: &[&str]) -> Option<Lab> {
    built(|lab| lab.workers(workers).agent_arguments(arguments))
}

/// The same with two workers, whose agents log so much.
pub(crate) fn lab_logged(level: &str) -> Option<Lab> {
    built(|lab| lab.log_level(level))
}

fn built(chosen: impl FnOnce(LabBuilder) -> LabBuilder) -> Option<Lab> {
    if let Some(reason) = xtask::lab::missing_privileges() {
        xtask::test::skipped(&format!("lab: {reason}"));
        return None;
    }
    let agent = Path::new(env!("CARGO_BIN_EXE_mesh-agent"));
    let lab = chosen(Lab::builder().nodes(2).agent(agent)).build();
    Some(lab.expect("the lab comes up"))
}

/// Applies manifests and waits until all pods run and those of `enrolled` are in the mesh.
pub(crate) fn apply(lab: &Lab, manifests: &str, enrolled: &[&str]) {
    lab.apply(manifests).expect("manifests are applied");
    for name in enrolled {
        let pod = lab.wait_ready(name).expect("the pod runs");
        lab.wait_enrolled(&pod).expect("the pod is enrolled");
    }
}

/// Standard output of a command in a pod that must succeed.
pub(crate) fn ok(pod: &Pod, command: &[&str]) -> String {
    let output = pod.exec(command).expect("the command starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Whole programs may be among the words.
    let command: Vec<_> = command.iter().filter(|word| word.len() < 200).collect();
    assert!(
        output.status.success(),
        "{command:?}: {:?}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// JSON that a command in a pod prints.
pub(crate) fn json(pod: &Pod, command: &[&str]) -> serde_json::Value {
    let text = ok(pod, command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?}: {error}: {text}"))
}

/// A certificate and key in files, and the mesh's root.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
}

/// Issues a certificate from the lab's root, as a foreign peer that shares the trust would have.
pub(crate) fn issue(lab: &Lab, identity: &str) -> Files {
    let ca = lab.run_dir().join("ca");
    let read = |name: &str| std::fs::read_to_string(ca.join(name)).expect("the lab's root");
    let authority = LocalCa::load(&read("root-cert.pem"), &read("root-key.pem")).unwrap();
    let (life, now) = (Duration::from_secs(3600), std::time::SystemTime::now());
    let issued = authority.issue(&identity.parse().unwrap(), life, now).unwrap();
    let name = identity.replace([':', '/'], "_");
    // Pods see this folder, and not the one with the root's key.
    let shared = lab.shared_dir();
    let root = shared.join("root-cert.pem");
    std::fs::copy(ca.join("root-cert.pem"), &root).expect("the root is copied");
    let write = |suffix: &str, label: &str, der: &[u8]| {
        use base64::Engine as _;
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        let path = shared.join(format!("{name}.{suffix}"));
        let pem = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        std::fs::write(&path, pem).expect("the file is written");
        path
    };
    Files {
        certificate: write("crt", "CERTIFICATE", &issued.chain[0]),
        key: write("key", "PRIVATE KEY", issued.key.secret_der()),
        root,
    }
}

/// A pod that makes requests, as a manifest.
pub(crate) fn client(name: &str, node: &str) -> String {
    format!(
        r#"
kind: Pod
apiVersion: v1
metadata: {{ name: {name}, namespace: shop }}
spec:
  nodeName: {node}
  serviceAccountName: client
  containers: [{{ name: main, image: curlimages/curl, command: [sleep, infinity] }}]
"#
    )
}

/// Addresses of the host outside the cluster.
pub(crate) fn outside_addresses(lab: &Lab) -> Vec<IpAddr> {
    let output = lab.outside(&["hostname", "-I"]).unwrap().output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

/// Plaintext is refused in the namespace `shop`.
pub(crate) const STRICT: &str = r#"
kind: PeerAuthentication
apiVersion: security.istio.io/v1
metadata: { name: default, namespace: shop }
spec: { mtls: { mode: STRICT } }
"#;

/// Holds one connection to the echo's TCP port, sends each line that it is given and prints what comes
/// back, or how the connection has ended.
pub(crate) const HOLDER: &str = r#"
import socket, sys, os, time
s = socket.create_connection((sys.argv[1], 9000), 20)
s.settimeout(20)
print("connected", flush=True)
for line in sys.stdin:
    got = b""
    try:
        s.sendall(line.encode())
        while len(got) < len(line):
            part = s.recv(1000)
            if not part:
                print("closed", flush=True); sys.exit(1)
            got += part
    except ConnectionError:
        print("reset", flush=True); sys.exit(1)
    print(got.decode().strip(), flush=True)
"#;

/// Requests that go on until they are told to end.
pub(crate) struct Load {
    name: String,
    child: Child,
}

impl Load {
    /// Starts `malha-load http WORDS` in a pod.
    pub(crate) fn start(name: impl Into<String>, client: &Pod, words: &[&str]) -> Self {
        let fixed = ["malha-load", "http", "--until-eof", "--discard", "--timeout-ms", "60000"];
        let mut command = client.command(&[&fixed, words].concat()).expect("the pod runs");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self { name: name.into(), child: command.spawn().expect("the load starts") }
    }

    /// Ends it. More than `least` requests were answered, each with 200; else what has failed.
    pub(crate) fn finish(self, least: u64) -> Result<(), String> {
        let Self { name, child } = self;
        // `wait_with_output` closes its standard input first.
        let output = child.wait_with_output().expect("the load ends");
        let report: Value = serde_json::from_slice(&output.stdout).expect("the load's report");
        let only_200 =
            report["statuses"].as_object().is_some_and(|statuses| statuses.keys().eq(["200"]));
        let enough = report["succeeded"].as_u64().is_some_and(|count| count > least);
        let told = ["succeeded", "statuses", "errors", "error_examples"].map(|key| &report[key]);
        let whole = report["failed"] == 0 && only_200 && enough;
        if whole { Ok(()) } else { Err(format!("{name}: {told:?}\n")) }
    }
}

/// The pod's address of one family.
pub(crate) fn of_family(pod: &Pod, v4: bool) -> IpAddr {
    *pod.ips.iter().find(|ip| ip.is_ipv4() == v4).expect("both families")
}

/// Calls `probe` until it gives something, or the deadline passes.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "not in {DEADLINE:?}: {what}");
        #[expect(clippy::disallowed_methods, reason = "waits for another process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two namespaces' worth of pods: `shop` in the mesh, `outside` not. `client` on each node, an echo
/// server on each node behind `echo`.
pub(crate) const SHOP: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: shop, labels: { istio.io/dataplane-mode: malha } }
---
kind: Namespace
apiVersion: v1
metadata: { name: outside }
---
kind: ServiceAccount
apiVersion: v1
metadata: { name: client, namespace: shop }
---
kind: ServiceAccount
apiVersion: v1
metadata: { name: echo, namespace: shop }
---
kind: Pod
apiVersion: v1
metadata: { name: client, namespace: shop, labels: { app: client } }
spec:
  nodeName: node1
  serviceAccountName: client
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
---
kind: Pod
apiVersion: v1
metadata: { name: stranger, namespace: outside, labels: { app: stranger } }
spec:
  nodeName: node1
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
---
kind: Pod
apiVersion: v1
metadata: { name: near, namespace: shop, labels: { app: echo, version: near } }
spec:
  nodeName: node1
  serviceAccountName: echo
  containers:
    - name: main
      image: malha/echo
      args: ["--http", "8080", "--tcp", "9000"]
      readinessProbe: { tcpSocket: { port: 8080 } }
---
kind: Pod
apiVersion: v1
metadata: { name: far, namespace: shop, labels: { app: echo, version: far } }
spec:
  nodeName: node2
  serviceAccountName: echo
  containers:
    - name: main
      image: malha/echo
      args: ["--http", "8080", "--tcp", "9000"]
      readinessProbe: { tcpSocket: { port: 8080 } }
---
kind: Service
apiVersion: v1
metadata: { name: echo, namespace: shop }
spec:
  selector: { app: echo }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 80, targetPort: 8080 }, { name: tcp, port: 9000 }]
---
kind: Service
apiVersion: v1
metadata: { name: near, namespace: shop }
spec:
  selector: { app: echo, version: near }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 80, targetPort: 8080 }, { name: tcp, port: 9000 }]
---
kind: Service
apiVersion: v1
metadata: { name: far, namespace: shop }
spec:
  selector: { app: echo, version: far }
  ipFamilyPolicy: PreferDualStack
  ports: [{ name: http, port: 80, targetPort: 8080 }, { name: tcp, port: 9000 }]
"#;

/// The pods of [`SHOP`] that are in the mesh.
pub(crate) const SHOP_PODS: &[&str] = &["shop/client", "shop/near", "shop/far"];
