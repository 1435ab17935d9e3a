//! The lab by itself, without a mesh: what it plays of a cluster works, and nothing is left of it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xtask::lab::Lab;

const DEADLINE: Duration = Duration::from_secs(60);

const MANIFESTS: &str = r#"
kind: Pod
metadata: { name: client }
spec:
  nodeName: node1
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
---
kind: Deployment
metadata: { name: nginx }
spec:
  replicas: 2
  selector: { matchLabels: { app: nginx } }
  template:
    metadata: { labels: { app: nginx } }
    spec: { containers: [{ name: nginx, image: "wesleywillians/nginx-ab:b" }] }
---
kind: Service
metadata: { name: nginx }
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: { app: nginx }
  ports: [{ name: http, port: 8000, targetPort: 80, nodePort: 30080 }]
---
kind: Service
metadata: { name: headless }
spec: { clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: { app: nginx }, ports: [{ port: 80 }] }
---
kind: Service
metadata: { name: alias }
spec: { type: ExternalName, externalName: nginx.default.svc.cluster.local }
"#;

fn missing() -> bool {
    let reason = xtask::lab::missing_privileges();
    if let Some(reason) = &reason {
        xtask::test::skipped(&format!("lab: {reason}"));
    }
    reason.is_some()
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not in {DEADLINE:?}: {what}");
        #[expect(clippy::disallowed_methods, reason = "waits for another process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn services_are_reached_by_every_kind_of_address() {
    if missing() {
        return;
    }
    let lab = Lab::builder().nodes(2).build().unwrap();
    lab.apply(MANIFESTS).unwrap();
    lab.wait_all_ready().unwrap();
    let client = lab.pod("default/client").unwrap();
    let mut urls: Vec<String> =
        ["nginx:8000", "nginx.default.svc.cluster.local:8000", "headless", "alias:8000"]
            .map(|host| format!("http://{host}/"))
            .into();
    let pods = lab.pods_of("default/nginx");
    assert_eq!(pods.len(), 2);
    assert_ne!(pods[0].node, pods[1].node, "spread over the nodes");
    for node in lab.nodes() {
        for ip in lab.node_addresses(&node).unwrap() {
            urls.push(format!("http://{}/", std::net::SocketAddr::new(ip, 30080)));
        }
    }
    for ip in pods.iter().flat_map(|pod| &pod.ips) {
        urls.push(format!("http://{}/", std::net::SocketAddr::new(*ip, 80)));
    }
    for url in urls {
        for family in ["-4", "-6"] {
            // A literal or a name of one family only is not reached over the other.
            let both = ["nginx", "headless", "alias"].iter().any(|name| url.contains(name));
            if !both && (family == "-6") != url.contains('[') {
                continue;
            }
            let output = client.exec(&["curl", family, "-sS", "--max-time", "20", &url]).unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(text, "Full Cycle B", "{url} {family}: {error}");
        }
    }
    lab.down().unwrap();
}

#[test]
fn a_mistake_in_a_manifest_is_named() {
    if missing() {
        return;
    }
    let lab = Lab::builder().nodes(1).build().unwrap();
    let error = lab
        .apply("kind: Pod\nmetadata: { name: x }\nspec: { containers: [{ image: no/such }] }\n")
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("Pod default/x") && text.contains("spec.containers[0].image"), "{text}");
}

/// What a lab of this name leaves while it lives.
fn traces(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let cgroup = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    let cgroup = Path::new(cgroup.split(' ').nth(1).unwrap()).join(format!("malha-lab-{name}"));
    let mut all = vec![cgroup, Path::new("/run/malha-lab").join(name)];
    all.retain(|path| path.exists());
    all
}

struct Owner(Child);

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_is_left_of_a_lab_whose_owner_is_killed() {
    if missing() {
        return;
    }
    let name = format!("killed-{}", std::process::id());
    let mut owner = Owner(
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["lab", "serve", "2", "1", &name])
            // Its end would tell the owner to end too.
            .stdin(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let socket = Path::new("/run/malha-lab").join(&name).join("lab.sock");
    eventually("the lab is up", || socket.exists());
    assert_eq!(traces(&name).len(), 2);
    owner.0.kill().unwrap();
    owner.0.wait().unwrap();
    eventually("everything is removed", || traces(&name).is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&name), "no mount is left");
}
