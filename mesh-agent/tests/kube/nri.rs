//! Pods that are captured before their first process, as the container runtime tells of them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use xtask::kube::{Containerd, KubeNode, KubeOptions};

use crate::support::{Mesh, NAMESPACE, agent, eventually, mesh, pgrep, signal};

/// A server that takes mutual TLS only, and a client to find out when it does.
const SERVER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: nginx, image: registry.lab/nginx:1}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, labels: {app: outside, istio.io/dataplane-mode: none}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: registry.lab/tools:1, command: [sleep, '100000']}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

/// How many pods start at once.
const PODS: usize = 20;

/// Pods that have one process, which connects at once and once only.
fn clients(server: &str) -> String {
    (0..PODS).fold(String::new(), |mut all, index| {
        write!(
            all,
            "
---
apiVersion: v1
kind: Pod
metadata: {{name: first-{index}, labels: {{app: first}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: registry.lab/tools:1, command: [curl, -sS, -f, -m, '15', 'http://{server}/']}}]
"
        )
        .unwrap();
        all
    })
}

/// Phases of a namespace's pods with a label, and what they have written.
fn ended(mesh: &Mesh, namespace: &str, selector: &str) -> Option<(String, String)> {
    let path = "jsonpath={.items[*].status.phase}";
    let phases = mesh.kubectl(&["-n", namespace, "get", "pods", "-l", selector, "-o", path]);
    let over = phases.split_whitespace().filter(|phase| matches!(*phase, "Succeeded" | "Failed"));
    if over.count() < PODS {
        return None;
    }
    let logs = ["-n", namespace, "logs", "-l", selector, "--prefix", "--max-log-requests=20"];
    Some((phases, mesh.kubectl(&logs)))
}

#[test]
fn the_first_connection_of_a_pods_first_process_is_in_the_mesh() {
    let Some(mesh) = mesh() else { return };
    let namespace = "first";
    mesh.namespace_in_mesh(namespace);
    mesh.apply(namespace, SERVER);
    mesh.wait_enrolled(namespace, 1);
    mesh.lab.wait_pods_ready(namespace, "app=outside").unwrap();
    let path = "jsonpath={.spec.clusterIP}";
    let server = mesh.kubectl(&["-n", namespace, "get", "service", "web", "-o", path]);
    let url = format!("http://{server}");
    eventually("the server takes mutual TLS only", || {
        mesh.get(namespace, "outside", &url).is_err()
    });
    mesh.apply(namespace, &clients(&server));
    let mut found = None;
    eventually("all clients end", || {
        found = ended(mesh, namespace, "app=first");
        found.is_some()
    });
    let (phases, logs) = found.unwrap();
    let succeeded = phases.split_whitespace().filter(|phase| *phase == "Succeeded").count();
    assert_eq!(succeeded, PODS, "{phases}\n{logs}");
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

/// A pod on one node, in a namespace that is in the mesh.
fn idle(name: &str, node: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers: [{{name: c, image: registry.lab/tools:1, command: [sleep, '100000']}}]
"
    )
}

/// How many pods there are at once, and how often.
const CROWD: usize = 50;
const ROUNDS: usize = 3;

fn crowd() -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd}}
spec:
  replicas: {CROWD}
  selector: {{matchLabels: {{app: crowd}}}}
  template:
    metadata: {{labels: {{app: crowd}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{{name: c, image: registry.lab/tools:1, command: [sleep, '100000']}}]
"
    )
}

/// The number of a line of `meshctl status`, over all agents.
fn count(mesh: &Mesh, line: &str) -> u64 {
    let of = |status: &String| -> u64 {
        let found = status.lines().find(|found| found.trim().starts_with(line));
        let number = found.and_then(|found| found.split_whitespace().last()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {line} in {status}"))
    };
    mesh.meshctl(&["status"]).iter().map(of).sum()
}

/// Resident memory of both agents, MiB.
fn memory(mesh: &Mesh) -> u64 {
    let of = |node: KubeNode<'_>| -> u64 {
        let file = format!("/proc/{}/status", agent(&node));
        let found = node.exec(&["grep", "VmRSS", &file]).unwrap().stdout;
        let text = String::from_utf8_lossy(&found).into_owned();
        text.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
    };
    mesh.lab.nodes().map(of).sum::<u64>() / 1024
}

/// A metric of a node's agent, summed over its labels if these contain `label`.
fn metric(mesh: &Mesh, node: &str, name: &str, label: &str) -> f64 {
    let field = format!("spec.nodeName={node}");
    let path = "jsonpath={.items[0].metadata.name}";
    let of = ["-n", NAMESPACE, "get", "pods", "-l", "app=malha-agent", "--field-selector", &field];
    let pod = mesh.kubectl(&[&of[..], &["-o", path]].concat());
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:15020/proxy/metrics");
    let text = mesh.kubectl(&["get", "--raw", &path]);
    let lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Pods of a node that were captured before their first process.
fn hooked(mesh: &Mesh, node: &str) -> f64 {
    metric(mesh, node, "malha_nri_pod_starts_total", "outcome=\"captured\"")
}

/// Makes a pod on a node and waits until it runs; how long that took.
fn start(mesh: &Mesh, namespace: &str, name: &str, node: &str) -> Duration {
    let begin = Instant::now();
    mesh.apply(namespace, &idle(name, node));
    let path = "jsonpath={.status.phase}";
    eventually("the pod runs", || {
        mesh.kubectl(&["-n", namespace, "get", "pod", name, "-o", path]) == "Running"
    });
    begin.elapsed()
}

#[test]
fn fifty_pods_at_once_come_and_go_and_nothing_is_left() {
    let Some(mesh) = mesh() else { return };
    let namespace = "crowd";
    mesh.namespace_in_mesh(namespace);
    let nothing = || (count(mesh, "Captured pods:"), count(mesh, "Certificates:")) == (0, 0);
    eventually("other tests' pods are gone", nothing);
    let mut resident = Vec::new();
    for _ in 0..ROUNDS {
        mesh.apply(namespace, &crowd());
        mesh.wait_enrolled(namespace, CROWD);
        mesh.kubectl(&["-n", namespace, "delete", "deployment", "crowd"]);
        eventually("all are gone", || {
            mesh.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]).is_empty()
        });
        eventually("the agents have let them go", nothing);
        resident.push(memory(mesh));
    }
    println!("resident memory of both agents after each round: {resident:?} MiB");
    // What the first round needed is there for the next ones.
    assert!(resident[ROUNDS - 1] <= resident[0] + 8, "it grows: {resident:?} MiB");
    let mut all = (0.0, 0.0);
    for node in mesh.lab.nodes() {
        all.0 += metric(mesh, node.name, "malha_nri_pod_start_seconds_sum", "");
        all.1 += metric(mesh, node.name, "malha_nri_pod_start_seconds_count", "");
    }
    let mean = all.0 / all.1;
    println!("the runtime waited for {} pods, {:.1} ms each in the mean", all.1, mean * 1e3);
    assert!(all.1 >= (CROWD * ROUNDS) as f64, "not all went by the runtime: {all:?}");
    // After a second the hook gives up.
    assert!(mean < 0.5, "{mean} s");
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn an_agent_that_hangs_delays_a_pod_by_no_more_than_the_runtimes_patience() {
    let Some(mesh) = mesh() else { return };
    let (namespace, name) = ("hang", "node-a");
    mesh.namespace_in_mesh(namespace);
    let usual = start(mesh, namespace, "usual", name);
    let node = mesh.lab.node(name).unwrap();
    let pid = agent(&node);
    signal(&node, "-STOP", &pid);
    let took = start(mesh, namespace, "delayed", name);
    signal(&node, "-CONT", &pid);
    println!("a pod ran after {usual:?}, and after {took:?} while the agent hung");
    // The runtime's patience is two seconds; what else it took is the machine's. Without it the pod
    // would wait for ever.
    assert!(took < Duration::from_secs(30), "{took:?} instead of {usual:?}");
    // It was not hooked, and is enrolled all the same.
    mesh.wait_enrolled(namespace, 2);
    let before = hooked(mesh, name);
    let mut index = 0;
    eventually("pods are captured before their first process again", || {
        index += 1;
        start(mesh, namespace, &format!("next-{index}"), name);
        hooked(mesh, name) > before
    });
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn a_runtime_that_starts_anew_gets_its_plugin_back() {
    let Some(mesh) = mesh() else { return };
    let (namespace, name) = ("runtime", "node-b");
    mesh.namespace_in_mesh(namespace);
    start(mesh, namespace, "before", name);
    mesh.wait_enrolled(namespace, 1);
    let node = mesh.lab.node(name).unwrap();
    signal(&node, "-KILL", &pgrep(&node, &["-x", "containerd"]));
    eventually("it is back", || {
        node.exec(&["ctr", "version"]).is_ok_and(|output| output.status.success())
    });
    let before = hooked(mesh, name);
    let mut index = 0;
    eventually("pods are captured before their first process again", || {
        index += 1;
        start(mesh, namespace, &format!("after-{index}"), name);
        hooked(mesh, name) > before
    });
    mesh.wait_enrolled(namespace, index + 1);
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn a_runtime_without_plugins_is_done_without() {
    let options = KubeOptions::new("debian", 1);
    let Some(mesh) = Mesh::on(KubeOptions { containerd: Containerd::Debian, ..options }) else {
        return;
    };
    let namespace = "plain";
    mesh.namespace_in_mesh(namespace);
    mesh.apply(namespace, SERVER);
    mesh.apply(namespace, &idle("client", "node-a"));
    mesh.wait_enrolled(namespace, 2);
    mesh.lab.wait_pods_ready(namespace, "app=outside").unwrap();
    eventually("the server takes mutual TLS only", || {
        mesh.get(namespace, "outside", "http://web").is_err()
    });
    mesh.get(namespace, "client", "http://web").unwrap();
    assert!(hooked(&mesh, "node-a") < 1.0, "this runtime has no plugins");
    mesh.kubectl(&["label", "namespace", namespace, "istio.io/dataplane-mode-"]);
    mesh.wait_enrolled(namespace, 0);
    eventually("it is served to everybody again", || {
        mesh.get(namespace, "outside", "http://web").is_ok()
    });
}
