//! Real Kubernetes by itself, without the mesh: it comes up, does what clusters do, and is gone.
//!
//! A machine that cannot run it says so loudly and does nothing.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use xtask::kube::{KubeLab, KubeOptions, Need, obstacle};
use xtask::lab::wait_for;

const WEB: &str = include_str!("kube.yaml");
/// Virtual addresses and names reach a node a moment after the API server knows them.
const SOON: Duration = Duration::from_secs(20);

/// Whether the test can run; if not, the line that says so.
fn can_run(need: Need) -> bool {
    let obstacle = obstacle(need);
    if let Some(obstacle) = &obstacle {
        xtask::test::skipped(&format!("kube: {obstacle}"));
    }
    obstacle.is_none()
}

/// Processes whose command line names the lab's folder, namespaces, cgroups and mounts of the name.
fn traces(dir: &Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let folder = format!("{}/", dir.display());
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&folder) {
            found.push(line);
        }
    }
    let named = format!("klab-{name}");
    let spaces = fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok);
    let spaces = spaces.map(|entry| entry.path().display().to_string());
    found.extend(spaces.filter(|path| path.contains(&named)));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        if let [_, path, "cgroup2", ..] = fields[..] {
            let cgroup = Path::new(path).join(&named);
            found.extend(cgroup.exists().then(|| cgroup.display().to_string()));
        }
        if line.contains(&folder) || line.contains(&named) {
            found.push(line.to_owned());
        }
    }
    found.extend(dir.exists().then(|| folder.clone()));
    found
}

/// Drops the lab; nothing of it may be left.
fn gone(lab: KubeLab, name: &str) {
    let dir: PathBuf = lab.dir().to_owned();
    assert_ne!(traces(&dir, name), Vec::<String>::new(), "the search itself");
    drop(lab);
    assert_eq!(traces(&dir, name), Vec::<String>::new());
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn an_api_server_alone_answers_and_goes() {
    if !can_run(Need::Api) {
        return;
    }
    let lab = KubeLab::api_only("api").unwrap();
    let twin = KubeLab::api_only("api").unwrap_err().to_string();
    assert_eq!(twin, "Kubernetes lab api is up already");
    let version = lab.kubectl(&["version", "--output=json"]).unwrap();
    assert!(version.contains("serverVersion"), "{version}");
    lab.kubectl(&["create", "serviceaccount", "web"]).unwrap();
    let token = lab.kubectl(&["create", "token", "web", "--audience=mesh"]).unwrap();
    assert_eq!(token.trim().split('.').count(), 3, "a JWT: {token}");

    lab.stop_api_server().unwrap();
    assert!(lab.raw("/readyz").is_err());
    lab.start_api_server().unwrap();
    lab.kubectl(&["get", "serviceaccount", "web"]).unwrap();

    let address = lab.server_url().strip_prefix("https://").unwrap().to_owned();
    gone(lab, "api");
    TcpListener::bind(&address).expect("its port is free");
}

#[test]
fn the_manifest_is_what_the_chart_renders() {
    if !can_run(Need::Controllers) {
        return;
    }
    let wanted = xtask::manifest::text().unwrap();
    let path = xtask::manifest::path();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(found == wanted, "run `cargo xtask manifest`: the chart has changed");
    // Kustomize takes it, and with it another namespace and image.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(&path, folder.path().join("malha.yaml")).unwrap();
    let kustomization = "namespace: mesh\nresources: [malha.yaml]\n\
                         images: [{name: malha/mesh-agent, newName: here/agent, newTag: '7'}]\n";
    fs::write(folder.path().join("kustomization.yaml"), kustomization).unwrap();
    let mut kubectl = Command::new(xtask::kube::program("kubectl").unwrap());
    let made = kubectl.arg("kustomize").arg(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for traces in ["malha-system", "malha/mesh-agent"] {
        assert!(!text.contains(traces), "{traces} is left in {text}");
    }
    assert!(text.contains("image: here/agent:7") && text.contains("namespace: mesh"), "{text}");
}

#[test]
fn a_cluster_of_two_nodes_serves_and_goes() {
    if !can_run(Need::Nodes) {
        return;
    }
    let lab = KubeLab::up(&KubeOptions::new("test", 2)).unwrap();
    lab.kubectl_stdin(&["apply", "-f", "-"], WEB).unwrap();
    lab.wait_pods_ready("default", "app=web").unwrap();
    lab.wait_pods_ready("default", "app=client").unwrap();
    let places = ["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"];
    let places = lab.kubectl(&places).unwrap();
    let mut places: Vec<&str> = places.split(' ').collect();
    places.sort_unstable();
    assert_eq!(places, ["node-a", "node-b"], "a pod on each node");

    let addresses = ["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"];
    let addresses = lab.kubectl(&addresses).unwrap();
    let addresses: Vec<&str> = addresses.split(' ').collect();
    assert!(matches!(addresses[..], [v4, v6] if v4.contains('.') && v6.contains(':')));
    let ask = |family: &str, host: &str| {
        let url = format!("http://{host}/");
        let words = ["exec", "client", "--", "curl", "-sS", "-m", "5", family, &url];
        let answer =
            wait_for(SOON, &format!("an answer from {url}"), || Ok(lab.kubectl(&words).ok()));
        assert!(answer.unwrap().starts_with("web-"), "{host}");
    };
    ask("-4", addresses[0]);
    ask("-6", &format!("[{}]", addresses[1]));
    ask("-4", "web.default.svc.cluster.local");
    ask("-6", "web");

    let node = lab.node("node-b").unwrap();
    assert_eq!(text(&node.exec(&["hostname"]).unwrap()), "node-b\n");
    let first = text(&node.exec(&["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"]).unwrap());
    assert!(first.contains("node-init.sh"), "the node's own processes: {first}");

    node.crash().unwrap();
    assert!(node.exec(&["true"]).is_err());
    ask("-4", addresses[0]);
    node.power_on().unwrap();
    lab.wait_pods_ready("default", "app=web").unwrap();

    gone(lab, "test");
}
