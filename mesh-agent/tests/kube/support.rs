//! API servers for tests, and a follower of the configuration that they give.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mesh_agent::config::{Cluster, Diagnostic, Publish, Settings, Source};
use mesh_agent::model::Snapshot;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use xtask::kube::{KubeLab, KubeNode, KubeOptions, Need};
use xtask::lab::wait_for;

/// Ten times what anything here takes on a quiet machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Tests that need nodes run one after the other, and so do those that need an API server alone:
/// beside each other, as both wait more than they work.
static NODES: Mutex<()> = Mutex::new(());
static SERVERS: Mutex<()> = Mutex::new(());

thread_local! {
    /// What this test has taken, until its thread ends.
    static TAKEN: RefCell<Option<MutexGuard<'static, ()>>> = const { RefCell::new(None) };
}

/// Waits until no other test uses what stands behind `lock`.
fn take(lock: &'static Mutex<()>) {
    TAKEN.with_borrow_mut(|taken| {
        // With one thread for all tests the first has taken it for all of them.
        taken.get_or_insert_with(|| lock.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// An API server with etcd, or `None` (said loudly) where there can be none.
pub(crate) fn api_server(name: &str) -> Option<KubeLab> {
    if let Some(obstacle) = xtask::kube::obstacle(Need::Api) {
        xtask::test::skipped(&format!("kube: {obstacle}"));
        return None;
    }
    take(&SERVERS);
    Some(KubeLab::api_only(name).expect("the API server comes up"))
}

/// What an agent would follow.
pub(crate) struct Follower {
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) diagnostics: watch::Receiver<Arc<Vec<Diagnostic>>>,
    pub(crate) missing: watch::Receiver<Arc<[String]>>,
    /// Ends with this value.
    _task: JoinSet<()>,
}

impl Follower {
    /// Follows `lab`'s API server, with a cache if there is a folder for it.
    pub(crate) async fn new(lab: &KubeLab, cache: Option<PathBuf>) -> Self {
        Self::by(lab.kubeconfig(), cache).await
    }

    /// The same by another kubeconfig.
    pub(crate) async fn by(kubeconfig: &Path, cache: Option<PathBuf>) -> Self {
        let client = mesh_agent::config::kubernetes_client(Some(kubeconfig)).await.unwrap();
        let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        let (diagnostics, findings) = watch::channel(Arc::new(Vec::new()));
        let (missing, wants) = watch::channel(Arc::from(["configuration".to_owned()]));
        let source = Source::Cluster(Box::new(Cluster { client, cache, observe: None }));
        let publish = Publish { snapshot, diagnostics, missing };
        let (_, no_answers) = watch::channel(Arc::default());
        let mut task = JoinSet::new();
        task.spawn(async move {
            // It ends with the runtime. Earlier, and what is waited for would not come.
            let settings = Settings::default();
            let ended = mesh_agent::config::run(source, settings, no_answers, publish).await;
            ended.expect("the source goes on");
        });
        Self { snapshot: snapshots, diagnostics: findings, missing: wants, _task: task }
    }

    /// Waits until a snapshot satisfies `holds`.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        holds: impl FnMut(&Arc<Snapshot>) -> bool,
    ) -> Arc<Snapshot> {
        let wait = timeout(DEADLINE, self.snapshot.wait_for(holds)).await;
        let Ok(found) = wait else {
            panic!("not in time: {what}; missing: {:?}", self.missing.borrow());
        };
        found.unwrap().clone()
    }

    /// Waits until nothing is missing any more: told just after the first snapshot.
    pub(crate) async fn until_ready(&mut self) {
        let wait = timeout(DEADLINE, self.missing.wait_for(|missing| missing.is_empty())).await;
        let is_ready = wait.is_ok_and(|told| told.is_ok());
        assert!(is_ready, "not in time: still missing {:?}", self.missing.borrow());
    }

    /// Waits until some finding contains `text`.
    pub(crate) async fn until_said(&mut self, text: &str) {
        let said = |found: &Arc<Vec<Diagnostic>>| {
            found.iter().any(|found| found.to_string().contains(text))
        };
        let is_said = timeout(DEADLINE, self.diagnostics.wait_for(said)).await.is_ok();
        assert!(is_said, "no finding {text}: {:?}", self.diagnostics.borrow());
    }
}

/// Runs a test on a runtime of its own: labs are started and ended by blocking calls.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// A cluster of two nodes with the mesh on it, from this build, as `helm install` makes it.
pub(crate) struct Mesh {
    pub(crate) lab: KubeLab,
}

/// The cluster, one for all tests of the process, or `None` (said loudly) where there can be none.
/// The lab's guardian removes it at the end of the process.
pub(crate) fn mesh() -> Option<&'static Mesh> {
    static MESH: OnceLock<Option<Mesh>> = OnceLock::new();
    take(&NODES);
    // Where the API server is away, its controllers may find a node silent before its kubelet is heard
    // again; then all of its pods count as not ready, and a Service has nobody, mesh or not.
    let grace = Duration::from_secs(900);
    let options = KubeOptions { grace, ..KubeOptions::new("mesh", 2) };
    MESH.get_or_init(|| Mesh::on(options)).as_ref()
}

impl Mesh {
    /// A cluster of its own; `None` as for [`mesh`].
    pub(crate) fn on(options: KubeOptions) -> Option<Self> {
        let mesh = Self::without_mesh(options)?;
        let chart = xtask::tool::workspace().join("deploy/chart");
        let chart = chart.to_str().unwrap();
        let words = ["install", "malha", chart, "-n", NAMESPACE, "--create-namespace"];
        mesh.lab.helm(&words).expect("the chart is installed");
        for what in ["deployment/malha-authority", "daemonset/malha-agent"] {
            let done =
                mesh.lab.kubectl(&["-n", NAMESPACE, "rollout", "status", what, "--timeout=180s"]);
            if let Err(error) = done {
                panic!("{what}: {error}\n{}", mesh.why());
            }
        }
        Some(mesh)
    }

    /// A cluster with the images on its nodes, and nothing installed, or `None` (said loudly).
    pub(crate) fn without_mesh(options: KubeOptions) -> Option<Self> {
        take(&NODES);
        if let Some(obstacle) = xtask::kube::obstacle(Need::Nodes) {
            xtask::test::skipped(&format!("kube: {obstacle}"));
            return None;
        }
        let programs = Path::new(env!("CARGO_BIN_EXE_mesh-agent")).parent().unwrap();
        let image = programs.join(format!("../image/mesh-agent-test-{}.tar", options.name));
        let built = [env!("CARGO_BIN_EXE_mesh-agent"), env!("CARGO_BIN_EXE_meshctl")];
        xtask::image::of_programs(&built.map(Path::new), &xtask::image::default_name(), &image)
            .expect("the image is written");
        let mut images = xtask::kube::tutorial_images().expect("the tutorial's images are written");
        images.push(image);
        let lab = KubeLab::up(&KubeOptions { images, ..options }).expect("the cluster comes up");
        Some(Self { lab })
    }

    /// State and logs of the mesh's pods.
    pub(crate) fn why(&self) -> String {
        let ask = |words: &[&str]| {
            let words = [&["-n", NAMESPACE], words].concat();
            self.lab.kubectl(&words).unwrap_or_else(|error| error.to_string())
        };
        [
            ask(&["get", "pods", "-o", "wide"]),
            ask(&["get", "events"]),
            ask(&["logs", "-l", "app.kubernetes.io/part-of=malha", "--tail=30", "--prefix"]),
        ]
        .join("\n")
    }

    /// `kubectl`, which must succeed.
    pub(crate) fn kubectl(&self, words: &[&str]) -> String {
        self.lab.kubectl(words).unwrap_or_else(|error| panic!("kubectl {words:?}: {error:#}"))
    }

    /// A new namespace in which pods can be made.
    pub(crate) fn namespace(&self, name: &str) {
        self.kubectl(&["create", "namespace", name]);
        // A controller makes it, which may come late after the API server was away.
        let account = ["-n", name, "wait", "serviceaccount/default", "--for=create"];
        self.kubectl(&[&account[..], &["--timeout=60s"]].concat());
    }

    /// The same, in the mesh.
    pub(crate) fn namespace_in_mesh(&self, name: &str) {
        self.namespace(name);
        self.kubectl(&["label", "namespace", name, "istio.io/dataplane-mode=malha"]);
    }

    /// `kubectl apply` into a namespace.
    pub(crate) fn apply(&self, namespace: &str, manifest: &str) {
        self.lab.kubectl_stdin(&["-n", namespace, "apply", "-f", "-"], manifest).unwrap();
    }

    /// A command in a pod.
    pub(crate) fn exec(
        &self,
        namespace: &str,
        pod: &str,
        words: &[&str],
    ) -> anyhow::Result<String> {
        self.lab.kubectl(&[&["-n", namespace, "exec", pod, "--"], words].concat())
    }

    /// The body of a page that a pod asks for.
    pub(crate) fn get(&self, namespace: &str, pod: &str, url: &str) -> anyhow::Result<String> {
        self.exec(namespace, pod, &["curl", "-sS", "-f", "-m", "15", url])
    }

    /// What each agent's `meshctl` says.
    pub(crate) fn meshctl(&self, words: &[&str]) -> Vec<String> {
        let pods =
            self.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", "app=malha-agent", "-o", "name"]);
        let ask = |pod: &str| {
            let exec = ["-n", NAMESPACE, "exec", pod, "--", "/usr/local/bin/meshctl"];
            self.kubectl(&[&exec, words].concat())
        };
        pods.lines().map(ask).collect()
    }

    /// Waits until so many pods of a namespace take tunnels, and no other does.
    pub(crate) fn wait_enrolled(&self, namespace: &str, count: usize) {
        let path = "jsonpath={.items[*].metadata.annotations.malha\\.dev/enrolled}";
        let mut seen = String::new();
        let enrolled = || {
            seen = self.kubectl(&["-n", namespace, "get", "pods", "-o", path]);
            seen.split_whitespace().count() == count
        };
        if !soon(enrolled) {
            let events = self.kubectl(&["-n", namespace, "get", "events"]);
            panic!("not {count} enrolled: {seen:?}\n{events}\n{}", self.why());
        }
    }

    /// Address of a pod on a node.
    pub(crate) fn pod_ip(&self, namespace: &str, selector: &str, node: &str) -> String {
        let field = format!("spec.nodeName={node}");
        let path = "jsonpath={.items[0].status.podIP}";
        self.kubectl(&[
            "-n",
            namespace,
            "get",
            "pods",
            "-l",
            selector,
            "--field-selector",
            &field,
            "-o",
            path,
        ])
    }
}

/// Where the mesh is installed.
pub(crate) const NAMESPACE: &str = "malha-system";

/// Waits until something holds.
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    assert!(soon(holds), "not in time: {what}");
}

fn soon(mut holds: impl FnMut() -> bool) -> bool {
    wait_for(DEADLINE, "it", || Ok(holds().then_some(()))).is_ok()
}

/// Number of the oldest process that `pgrep` finds on a node, as the node counts.
pub(crate) fn pgrep(node: &KubeNode<'_>, words: &[&str]) -> String {
    let found = node.exec(&[&["pgrep", "-o"], words].concat()).unwrap();
    let pid = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(!pid.is_empty(), "no process {words:?} on {}", node.name);
    pid
}

/// The agent's.
pub(crate) fn agent(node: &KubeNode<'_>) -> String {
    pgrep(node, &["-f", "mesh-agent node"])
}

/// Sends a signal to a process on a node.
pub(crate) fn signal(node: &KubeNode<'_>, signal: &str, pid: &str) {
    assert!(node.exec(&["kill", signal, pid]).unwrap().status.success());
}
