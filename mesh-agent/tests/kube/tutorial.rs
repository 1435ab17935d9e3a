//! A well-known tutorial of Istio, step by step: the same manifests, the same commands, and what it
//! promises, counted. One word is changed: nothing is pulled, as no registry is within reach.

use xtask::kube::imported;

use crate::support::{Mesh, eventually, mesh};

const DEPLOYMENT: &str = include_str!("../../../deploy/samples/tutorial/deployment.yaml");
const RULE: &str = include_str!("../../../deploy/samples/tutorial/dr.yaml");
const ROUTE: &str = include_str!("../../../deploy/samples/tutorial/vs.yaml");
const FORTIO: &str = include_str!("../../../deploy/samples/tutorial/fortio-deploy.yaml");

/// Requests of one run. A tenth of them, give or take six standard deviations (sqrt(n p q) = 13.4).
const REQUESTS: usize = 2000;
const TENTH: std::ops::RangeInclusive<usize> = 120..=280;

/// Requests that the pods of a version have answered since they started.
fn answered(mesh: &Mesh, version: &str) -> usize {
    let selector = format!("app=nginx,version={version}");
    let words = ["logs", "-l", &selector, "--tail=-1", "--max-log-requests=30"];
    mesh.kubectl(&words).lines().filter(|line| line.contains("GET / HTTP")).count()
}

/// The tutorial's load from within the cluster; how many of its requests each version answered.
fn load(mesh: &Mesh) -> (usize, usize) {
    let before = (answered(mesh, "A"), answered(mesh, "B"));
    let path = "jsonpath={.items[0].metadata.name}";
    let pod = mesh.kubectl(&["get", "pods", "-l", "app=fortio", "-o", path]);
    let count = REQUESTS.to_string();
    let fortio = ["fortio", "load", "-c", "2", "-qps", "0", "-n", &count, "-loglevel", "Warning"];
    let exec = ["kubectl", "exec", &pod, "-c", "fortio", "--"];
    let words = [&exec, &fortio[..], &["http://nginx-service:8000"]].concat();
    let output = mesh.lab.command(&words).output().unwrap();
    // It reports on standard error.
    let report = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(report.contains(&format!("Code 200 : {REQUESTS} (100.0 %)")), "{report}");
    let mut after = before;
    eventually("the logs are complete", || {
        after = (answered(mesh, "A"), answered(mesh, "B"));
        after.0 + after.1 >= before.0 + before.1 + REQUESTS
    });
    (after.0 - before.0, after.1 - before.1)
}

#[test]
fn the_tutorial_keeps_what_it_promises() {
    let Some(mesh) = mesh() else { return };
    let apply = |manifest: &str| mesh.apply("default", manifest);
    mesh.kubectl(&["label", "namespace", "default", "istio-injection=enabled"]);
    apply(&imported(DEPLOYMENT));
    apply(&imported(FORTIO));
    for deployment in ["nginx", "nginx-b", "fortio-deploy"] {
        mesh.kubectl(&["rollout", "status", "deployment", deployment, "--timeout=180s"]);
    }
    mesh.wait_enrolled("default", 3);
    // Without a route the pods of a Service share the load, the quicker one with the larger part.
    let (a, b) = load(mesh);
    println!("without a route: {a} to A, {b} to B");
    assert!(a.min(b) > REQUESTS / 20 && a + b == REQUESTS, "{a} {b}");
    apply(RULE);
    apply(ROUTE);
    eventually("the route is in force", || {
        let routes = mesh.meshctl(&["routes", "nginx-service"]);
        routes.iter().all(|routes| routes.contains("nginx-vs") && routes.contains("v2"))
    });
    let (a, b) = load(mesh);
    println!("1 and 1 replicas: {a} to A, {b} to B");
    assert!(TENTH.contains(&b) && a + b == REQUESTS, "{a} {b}");
    // However many pods there are of each.
    mesh.kubectl(&["scale", "deployment", "nginx", "--replicas=8"]);
    mesh.kubectl(&["scale", "deployment", "nginx-b", "--replicas=18"]);
    for deployment in ["nginx", "nginx-b"] {
        mesh.kubectl(&["rollout", "status", "deployment", deployment, "--timeout=180s"]);
    }
    mesh.wait_enrolled("default", 27);
    let (a, b) = load(mesh);
    println!("8 and 18 replicas: {a} to A, {b} to B");
    assert!(TENTH.contains(&b) && a + b == REQUESTS, "{a} {b}");
    for manifest in [ROUTE, RULE, FORTIO, DEPLOYMENT] {
        let delete = ["delete", "--wait=false", "-f", "-"];
        mesh.lab.kubectl_stdin(&delete, manifest).unwrap();
    }
    eventually("all pods are gone", || mesh.kubectl(&["get", "pods", "-o", "name"]).is_empty());
    mesh.kubectl(&["label", "namespace", "default", "istio-injection-"]);
    eventually("nothing of it is left at the agents", || {
        ["workloads", "services"]
            .into_iter()
            .all(|what| mesh.meshctl(&[what]).iter().all(|found| !found.contains("nginx")))
    });
}
