//! The mesh on a cluster with nodes, installed by Helm and used as people use it.

use std::time::{Duration, Instant};

use crate::support::{Mesh, eventually, mesh};

/// Two web servers over both nodes, behind a Service, and a client.
const APPLICATION: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: web}}
      containers:
      - name: nginx
        image: registry.lab/nginx:1
        ports: [{name: http, containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5}
        livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http, nodePort: NODEPORT}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: registry.lab/tools:1, command: [sleep, '100000']}]
";

/// Probed in the two ways that a web server is not.
const HEALTH: &str = "
apiVersion: v1
kind: Pod
metadata: {name: health, labels: {app: health}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: fortio
    image: fortio/fortio:latest_release
    imagePullPolicy: IfNotPresent
    readinessProbe: {grpc: {port: 8079}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 5}
    livenessProbe: {exec: {command: [/usr/bin/fortio, version]}, periodSeconds: 1, failureThreshold: 2, timeoutSeconds: 5}
";

/// Its first container only ends well if it is in the mesh.
const INIT: &str = "
apiVersion: v1
kind: Pod
metadata: {name: init, labels: {app: init}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers:
  - name: first
    image: registry.lab/tools:1
    command: [curl, -sSf, -m, '15', 'http://web']
  containers:
  - name: c
    image: registry.lab/tools:1
    command: [sleep, '100000']
";

pub(crate) const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
";

pub(crate) const PERMISSIVE: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: PERMISSIVE}}
";

pub(crate) fn deploy(mesh: &Mesh, namespace: &str, port: u16) {
    mesh.namespace(namespace);
    mesh.apply(namespace, &APPLICATION.replace("NODEPORT", &port.to_string()));
    mesh.lab.wait_pods_ready(namespace, "app").unwrap();
    eventually("the service answers", || mesh.get(namespace, "client", "http://web").is_ok());
}

/// Names, UIDs and restarts of a namespace's pods.
pub(crate) fn pods(mesh: &Mesh, namespace: &str) -> String {
    let columns = "custom-columns=N:.metadata.name,U:.metadata.uid,R:.status.containerStatuses[*].restartCount";
    mesh.kubectl(&["-n", namespace, "get", "pods", "-o", columns])
}

#[test]
fn a_label_takes_running_pods_into_the_mesh_and_out_again() {
    let Some(mesh) = mesh() else { return };
    let namespace = "label";
    deploy(mesh, namespace, 30081);
    let before = pods(mesh, namespace);
    // A connection that is open all the while.
    let address = mesh.kubectl(&[
        "-n",
        namespace,
        "get",
        "service",
        "web",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    let open = format!(
        "exec >/dev/null 2>&1; (printf 'GET / HTTP/1.1\\r\\nHost: web\\r\\n\\r\\n'; sleep 20; \
         printf 'GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n'; sleep 1) \
         | nc {address} 80 > /tmp/open &"
    );
    mesh.exec(namespace, "client", &["sh", "-c", &open]).unwrap();
    eventually("it is answered", || {
        mesh.exec(namespace, "client", &["grep", "-c", "^HTTP/1.1 200", "/tmp/open"])
            .is_ok_and(|count| count.trim() == "1")
    });
    let start = Instant::now();
    mesh.kubectl(&["label", "namespace", namespace, "istio-injection=enabled"]);
    mesh.wait_enrolled(namespace, 3);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    println!("three running pods in the mesh {took:?} after the label");
    for _ in 0..20 {
        mesh.get(namespace, "client", "http://web").unwrap();
    }
    let seen = mesh.meshctl(&["connections"]).join("\n");
    assert!(seen.contains(namespace), "{seen}");
    // What counts: who does not speak mutual TLS is refused, who is in the mesh is served.
    mesh.apply(namespace, STRICT);
    mesh.namespace("outside");
    mesh.apply("outside", &APPLICATION.replace("NODEPORT", "30082"));
    mesh.lab.wait_pods_ready("outside", "app=client").unwrap();
    eventually("a client outside is refused", || {
        mesh.get("outside", "client", "http://web.label.svc.cluster.local").is_err()
    });
    mesh.get(namespace, "client", "http://web").unwrap();
    eventually("the connection from before is served to its end", || {
        mesh.exec(namespace, "client", &["grep", "-c", "^HTTP/1.1 200", "/tmp/open"])
            .is_ok_and(|count| count.trim() == "2")
    });
    let events = mesh.kubectl(&["-n", namespace, "get", "events"]);
    assert!(
        events.contains("in the mesh as spiffe://cluster.local/ns/label/sa/default"),
        "{events}"
    );
    assert_eq!(pods(mesh, namespace), before, "no pod was restarted");
    mesh.kubectl(&["label", "namespace", namespace, "istio-injection-"]);
    mesh.wait_enrolled(namespace, 0);
    eventually("it is served to everybody again", || {
        mesh.get("outside", "client", "http://web.label.svc.cluster.local").is_ok()
    });
    mesh.get(namespace, "client", "http://web").unwrap();
    assert_eq!(pods(mesh, namespace), before, "no pod was restarted");
    mesh.kubectl(&["delete", "namespace", namespace, "outside", "--wait=false"]);
}

#[test]
fn probes_pass_where_only_mutual_tls_does_and_nothing_else_of_the_node() {
    let Some(mesh) = mesh() else { return };
    let namespace = "probes";
    deploy(mesh, namespace, 30083);
    mesh.apply(namespace, HEALTH);
    mesh.lab.wait_pods_ready(namespace, "app=health").unwrap();
    mesh.kubectl(&["label", "namespace", namespace, "istio.io/dataplane-mode=malha"]);
    mesh.wait_enrolled(namespace, 4);
    let node = mesh.lab.node("node-a").unwrap();
    // The lab's daemons are all in one cgroup, which is the kubelet's: not from there.
    let command = "mkdir -p /sys/fs/cgroup/other && echo $$ > /sys/fs/cgroup/other/cgroup.procs && \
                   exec curl -sS -f -m 5 $1";
    let from_node = |url: &str| {
        node.exec(&["sh", "-c", command, "sh", url]).is_ok_and(|output| output.status.success())
    };
    let pod = mesh.pod_ip(namespace, "app=web", "node-a");
    let (direct, by_port) = (format!("http://{pod}/"), format!("http://{}:30083/", node.ips()[0]));
    mesh.apply(namespace, PERMISSIVE);
    eventually("the node is served", || from_node(&direct) && from_node(&by_port));
    mesh.apply(namespace, STRICT);
    eventually("the node is refused", || !from_node(&direct) && !from_node(&by_port));
    let before = pods(mesh, namespace);
    // Ten rounds of each probe.
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let ready = mesh.kubectl(&[
            "-n",
            namespace,
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ]);
        assert_eq!(ready, "2", "HTTP or TCP probes fail");
        let path = "jsonpath={.status.containerStatuses[0].ready}";
        let ready = mesh.kubectl(&["-n", namespace, "get", "pod", "health", "-o", path]);
        assert_eq!(ready, "true", "gRPC or exec probes fail");
        assert!(!from_node(&direct), "the node is served at a probed port");
        mesh.get(namespace, "client", "http://web").unwrap();
    }
    assert_eq!(pods(mesh, namespace), before, "no container was restarted");
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn every_container_of_a_pod_is_in_the_mesh() {
    let Some(mesh) = mesh() else { return };
    let namespace = "containers";
    deploy(mesh, namespace, 30085);
    mesh.kubectl(&["label", "namespace", namespace, "istio.io/dataplane-mode=malha"]);
    mesh.wait_enrolled(namespace, 3);
    mesh.apply(namespace, STRICT);
    mesh.namespace("beyond");
    mesh.apply("beyond", &APPLICATION.replace("NODEPORT", "30086"));
    mesh.lab.wait_pods_ready("beyond", "app=client").unwrap();
    eventually("who is not in the mesh is refused", || {
        mesh.get("beyond", "client", "http://web.containers").is_err()
    });
    mesh.apply(namespace, INIT);
    mesh.lab.wait_pods_ready(namespace, "app=init").unwrap();
    mesh.get(namespace, "init", "http://web").unwrap();
    let debug = ["debug", "init", "-c", "debug", "--image=registry.lab/tools:1", "--"];
    let words = [&["-n", namespace], &debug[..], &["curl", "-sSf", "-m", "15", "http://web"]];
    mesh.kubectl(&words.concat());
    let path = "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    let mut code = String::new();
    eventually("the ephemeral container ends", || {
        code = mesh.kubectl(&["-n", namespace, "get", "pod", "init", "-o", path]);
        !code.is_empty()
    });
    assert_eq!(code, "0", "an ephemeral container is not in the mesh");
    mesh.kubectl(&["delete", "namespace", namespace, "beyond", "--wait=false"]);
}

#[test]
fn mesh_config_holds_for_pods_of_the_mesh() {
    let Some(mesh) = mesh() else { return };
    let namespace = "registry";
    deploy(mesh, namespace, 30084);
    mesh.kubectl(&["label", "namespace", namespace, "istio.io/dataplane-mode=malha"]);
    mesh.wait_enrolled(namespace, 3);
    // The mesh knows nothing of a node's address; the kubelet answers there.
    let kubelet = format!("https://{}:10250/healthz", mesh.lab.node("node-b").unwrap().ips()[0]);
    let words = ["curl", "-sk", "-m", "5", "-o", "/dev/null", &kubelet];
    let reaches = || mesh.exec(namespace, "client", &words).is_ok();
    assert!(reaches());
    mesh.kubectl(&["create", "namespace", "istio-system"]);
    mesh.apply(
        "istio-system",
        "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
",
    );
    eventually("what the mesh does not know is refused", || !reaches());
    mesh.get(namespace, "client", "http://web").unwrap();
    mesh.kubectl(&["delete", "namespace", "istio-system"]);
    eventually("it is reached again", reaches);
    mesh.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}
