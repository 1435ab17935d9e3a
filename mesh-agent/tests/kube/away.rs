//! What runs while the API server, the authority or both are away.

use std::time::Duration;

use crate::support::{Mesh, NAMESPACE, agent, eventually, mesh, signal};

/// A server on one node and a client on the other, which asks all the time and keeps count.
const PAIR: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node-b
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
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: registry.lab/tools:1
    command: [sh, -c, ': in-NAMESPACE; while :; do if curl -sS -f -m 10 -o /dev/null http://web/ 2>/tmp/why; then echo >> /tmp/good; else date >> /tmp/bad; cat /tmp/why >> /tmp/bad; fi; sleep 0.1; done']
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

/// A Service that is made when the API server is back.
const AFTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: after}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
";

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(120);

/// Requests that have gone well since the pod started, as its node sees them, and those that have not.
fn counted(mesh: &Mesh, namespace: &str) -> (usize, usize) {
    let node = mesh.lab.node("node-a").unwrap();
    // The client's own file system, without the API server.
    let script = "pid=$(pgrep -o -f \": in-$1[;]\"); for f in good bad; do \
                  wc -l < /proc/$pid/root/tmp/$f 2>/dev/null || echo 0; done";
    let found = node.exec(&["sh", "-c", script, "sh", namespace]).unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// No request has failed since.
fn none_failed(mesh: &Mesh, namespace: &str, before: usize, what: &str) {
    let now = counted(mesh, namespace).1;
    if now == before {
        return;
    }
    let node = mesh.lab.node("node-a").unwrap();
    let script =
        "pid=$(pgrep -o -f \": in-$1[;]\"); cut -c -120 /proc/$pid/root/tmp/bad | tail -40";
    let said = node.exec(&["sh", "-c", script, "sh", namespace]).unwrap();
    let objects = ["get", "pods,endpointslices,events", "-o", "wide"];
    let objects = mesh.lab.kubectl(&[&["-n", namespace], &objects[..]].concat());
    let nodes = mesh.lab.kubectl(&["get", "events", "--field-selector=involvedObject.kind=Node"]);
    panic!(
        "{what}: {} lines of failed requests came after {before}:\n{}\n{}\n{}\n{}",
        now - before,
        String::from_utf8_lossy(&said.stdout),
        objects.unwrap_or_else(|error| error.to_string()),
        nodes.unwrap_or_else(|error| error.to_string()),
        mesh.why(),
    );
}

/// Requests go well again, and none fails for a while.
fn flows(mesh: &Mesh, namespace: &str, what: &str) {
    let (start, _) = counted(mesh, namespace);
    eventually(what, || counted(mesh, namespace).0 > start + 5);
    let (good, bad) = counted(mesh, namespace);
    eventually(what, || counted(mesh, namespace).0 > good + 20);
    none_failed(mesh, namespace, bad, what);
}

/// The manifest; the client's command tells the namespace, by which its process is found.
fn pair(namespace: &str) -> String {
    PAIR.replace("NAMESPACE", namespace)
}

fn deploy(mesh: &Mesh, namespace: &str) {
    mesh.namespace_in_mesh(namespace);
    mesh.apply(namespace, &pair(namespace));
    mesh.wait_enrolled(namespace, 2);
    flows(mesh, namespace, "requests go well");
}

/// Starts the API server, and waits until the cluster's own parts follow it again: what asks by client-go
/// waits for up to a minute between two tries by then.
fn api_server_comes_back(mesh: &Mesh, namespace: &str) {
    mesh.lab.start_api_server().unwrap();
    mesh.apply(namespace, AFTER);
    eventually("names and addresses of new Services", || {
        mesh.get(namespace, "client", "http://after").is_ok()
    });
}

fn authority(mesh: &Mesh, replicas: usize) {
    let replicas = format!("--replicas={replicas}");
    mesh.kubectl(&["-n", NAMESPACE, "scale", "deployment", "malha-authority", &replicas]);
    let of = ["-n", NAMESPACE, "get", "pods", "-l", "app=malha-authority", "-o", "name"];
    if replicas.ends_with("=0") {
        eventually("no authority is left", || mesh.kubectl(&of).is_empty());
    } else {
        let rollout = ["rollout", "status", "deployment/malha-authority", "--timeout=180s"];
        mesh.kubectl(&[&["-n", NAMESPACE], &rollout[..]].concat());
    }
}

#[test]
fn a_node_that_loses_its_power_comes_back_into_the_mesh() {
    let Some(mesh) = mesh() else { return };
    let namespace = "power";
    deploy(mesh, namespace);
    let node = mesh.lab.node("node-b").unwrap();
    node.crash().unwrap();
    node.power_on().unwrap();
    mesh.lab.wait_nodes_ready().unwrap();
    // The kubelet starts the pods' containers anew, in new sandboxes, and the agent among them.
    flows(mesh, namespace, "after the node has come back");
    mesh.wait_enrolled(namespace, 2);
    let rollout = ["rollout", "status", "daemonset/malha-agent", "--timeout=180s"];
    mesh.kubectl(&[&["-n", NAMESPACE], &rollout[..]].concat());
    let captured = |status: &String| {
        status.lines().find(|line| line.contains("Captured pods:")).map(str::to_owned)
    };
    for status in mesh.meshctl(&["status"]) {
        let captured = captured(&status).unwrap();
        assert!(captured.trim().ends_with(" 1"), "{captured}");
    }
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn traffic_flows_while_the_api_server_is_away_and_agents_start_anew() {
    let Some(mesh) = mesh() else { return };
    let namespace = "away";
    deploy(mesh, namespace);
    let (_, before) = counted(mesh, namespace);
    mesh.lab.stop_api_server().unwrap();
    let begin = std::time::Instant::now();
    flows(mesh, namespace, "without the API server");
    none_failed(mesh, namespace, before, "without the API server");
    for name in ["node-b", "node-a"] {
        let node = mesh.lab.node(name).unwrap();
        let killed = agent(&node);
        signal(&node, "-KILL", &killed);
        // The kubelet starts it anew, and it has its objects and its keys from the node's disk.
        eventually("another agent runs", || {
            node.exec(&["pgrep", "-o", "-f", "mesh-agent node"]).is_ok_and(|found| {
                let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
                !pid.is_empty() && pid != killed
            })
        });
        flows(mesh, namespace, "after an agent was killed");
    }
    let (_, bad) = counted(mesh, namespace);
    println!("{} requests failed around two kills", bad - before);
    while begin.elapsed() < AWAY {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    none_failed(mesh, namespace, bad, "without the API server");
    api_server_comes_back(mesh, namespace);
    // What comes after is taken: a pod, and what it may.
    mesh.apply(namespace, &pair(namespace).replace("name: client,", "name: late,"));
    mesh.wait_enrolled(namespace, 3);
    none_failed(mesh, namespace, bad, "when the API server comes back");
    assert!(counted(mesh, namespace).0 > 100);
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn nothing_that_runs_suffers_without_the_authority_nor_without_both() {
    let Some(mesh) = mesh() else { return };
    let namespace = "orphan";
    deploy(mesh, namespace);
    let (_, before) = counted(mesh, namespace);
    authority(mesh, 0);
    flows(mesh, namespace, "without the authority");
    // An identity that the node has already needs no authority; a new one waits for it.
    let pod = pair(namespace).replace("name: client,", "name: known,");
    mesh.apply(namespace, &pod);
    mesh.wait_enrolled(namespace, 3);
    mesh.kubectl(&["-n", namespace, "create", "serviceaccount", "new"]);
    let pod = pair(namespace).replace("name: client,", "name: waits,");
    mesh.apply(
        namespace,
        &pod.replace("  nodeName: node-a", "  serviceAccountName: new\n  nodeName: node-a"),
    );
    let why = ["-n", namespace, "get", "events", "--field-selector", "involvedObject.name=waits"];
    eventually("it is said why the pod waits", || mesh.kubectl(&why).contains("not in the mesh"));
    mesh.lab.stop_api_server().unwrap();
    flows(mesh, namespace, "without both");
    api_server_comes_back(mesh, namespace);
    authority(mesh, 2);
    mesh.wait_enrolled(namespace, 4);
    none_failed(mesh, namespace, before, "without the authority, or both");
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

/// Nothing of it is enforced yet.
const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {}
";

#[test]
fn pods_wait_outside_while_nothing_enforces_their_policy() {
    let Some(mesh) = mesh() else { return };
    let namespace = "held";
    deploy(mesh, namespace);
    let refused = mesh.lab.kubectl_stdin(&["-n", namespace, "apply", "-f", "-"], DENY);
    let refused = refused.expect_err("the webhook refuses it").to_string();
    assert!(refused.contains("acceptNotEnforced"), "{refused}");
    // It comes past the webhook all the same.
    authority(mesh, 0);
    mesh.apply(namespace, DENY);
    mesh.apply(namespace, &pair(namespace).replace("name: client,", "name: waits,"));
    let why = ["-n", namespace, "get", "events", "--field-selector", "involvedObject.name=waits"];
    eventually("it is said why the pod waits", || {
        mesh.kubectl(&why).contains("nothing of AuthorizationPolicy held/deny is enforced yet")
    });
    mesh.lab.wait_pods_ready(namespace, "app=client").unwrap();
    mesh.wait_enrolled(namespace, 2);
    flows(mesh, namespace, "pods that were in the mesh stay in it");
    mesh.kubectl(&["-n", namespace, "delete", "authorizationpolicy", "deny"]);
    mesh.wait_enrolled(namespace, 3);
    authority(mesh, 2);
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}
