//! Whole meshes on one machine: nodes and pods as network namespaces with cgroups and real
//! processes. Used by the demo, the tests and the benchmarks, and by hand.
//!
//! It plays kubelet, the EndpointSlice controller, kube-proxy and cluster DNS, and nothing else: the
//! mesh is the shipped agent, one per node, which reads the manifests that a cluster would hold from
//! a folder.
//!
//! Invariants: no network namespace has a name and nothing touches the host's own one; every process
//! of a lab is in the lab's cgroup, so killing that and unmounting is a complete clean-up, which a
//! guardian process does when the owner goes away for whatever reason.

mod cgroup;
pub mod cli;
mod cluster;
mod dns;
mod endpoints;
mod guardian;
mod images;
mod manifest;
mod node;
mod pod;
mod proxy;
pub mod server;
mod wire;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use cgroup::Cgroup;
use cluster::Cluster;
use guardian::Guardian;
use images::Programs;
use node::Node;

pub use pod::{Conversation, Pod};
pub use wire::{WireCapture, WireReport};

/// Ten times what starting anything takes on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks at something that takes its time.
const POLL: Duration = Duration::from_millis(30);

/// Where labs keep their files; tmpfs, and short, as socket paths have 108 bytes.
const RUN: &str = "/run/malha-lab";

/// What keeps this machine from running a lab, if anything.
#[must_use]
pub fn missing_privileges() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("the lab makes network namespaces and loads eBPF: run it as root".to_owned());
    }
    if let Err(error) = Cgroup::mount_point() {
        return Some(format!("{error:#}"));
    }
    for program in ["ip", "nft", "nsenter", "unshare", "nginx", "curl", "tcpdump"] {
        if crate::tool::find(program).is_none() {
            return Some(format!("`{program}` is missing: run `cargo xtask setup`"));
        }
    }
    None
}

/// How a lab is made.
#[derive(Debug)]
pub struct LabBuilder {
    nodes: usize,
    workers: usize,
    agent: Option<PathBuf>,
    name: Option<String>,
}

impl LabBuilder {
    /// Number of nodes, named `node1`, `node2`, …
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Worker threads of each agent.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// The agent's binary; without one the lab is a cluster without a mesh. `meshctl`, `malha-echo`
    /// and `malha-load` are looked for beside it.
    #[must_use]
    pub fn agent(mut self, agent: &Path) -> Self {
        self.agent = Some(std::path::absolute(agent).unwrap_or_else(|_| agent.to_owned()));
        self
    }

    /// A name to find the lab by; unique by default.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Makes the nodes and starts their agents.
    ///
    /// # Errors
    /// What is missing on this machine, or why an agent does not get ready.
    pub fn build(self) -> anyhow::Result<Lab> {
        if let Some(reason) = missing_privileges() {
            bail!(reason);
        }
        guardian::sweep()?;
        let id = self.name.unwrap_or_else(unique_name);
        let run_dir = Path::new(RUN).join(&id);
        ensure!(!run_dir.exists(), "lab {id} exists already: {}", run_dir.display());
        std::fs::create_dir_all(&run_dir)?;
        // First of all: whoever is killed while making a lab is swept up after by the next.
        std::fs::write(run_dir.join("owner"), std::process::id().to_string())?;
        for dir in ["config", "bpf", "pods", "nodes"] {
            std::fs::create_dir_all(run_dir.join(dir))?;
        }
        let cgroup = Cgroup::create(&format!("malha-lab-{id}"))?;
        let guardian = Guardian::start(&run_dir, &cgroup)?;
        let programs = Programs::find(self.agent.as_deref())?;
        if self.agent.is_some() {
            // One file system for the lab: unmounting it frees every pin.
            run("mount", &["-t", "bpf", "bpf", &text(&run_dir.join("bpf"))])?;
        }
        let fabric = node::Fabric::create(&cgroup)?;
        let nodes = (1..=self.nodes)
            .map(|index| Node::create(index, self.nodes, &fabric, &cgroup, &run_dir).map(Arc::new))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let cluster = Arc::new(Mutex::new(Cluster::new(run_dir.clone(), nodes.clone(), programs)));
        for node in &nodes {
            dns::serve(node, cluster.clone())?;
        }
        let lab = Lab {
            run_dir,
            nodes,
            _fabric: fabric,
            cluster,
            workers: self.workers,
            agent: self.agent,
            guardian,
        };
        lab.start_agents()?;
        Ok(lab)
    }
}

/// A running lab. Dropping it removes everything.
pub struct Lab {
    run_dir: PathBuf,
    nodes: Vec<Arc<Node>>,
    /// Holds the network between the nodes.
    _fabric: node::Fabric,
    cluster: Arc<Mutex<Cluster>>,
    workers: usize,
    agent: Option<PathBuf>,
    guardian: Guardian,
}

impl Lab {
    /// Two nodes, two workers, no agent.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder { nodes: 2, workers: 2, agent: None, name: None }
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_agents(&self) -> anyhow::Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let ca = self.run_dir.join("ca");
        run(&text(agent), &["ca", "--out", &text(&ca)])?;
        for node in &self.nodes {
            node.start_agent(agent, &self.run_dir, self.workers)?;
        }
        self.nodes.iter().try_for_each(|node| node.wait_for_agent(DEADLINE))
    }

    /// Kills a node's agent (SIGKILL) and starts another one.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart_agent(&self, node: &str) -> anyhow::Result<()> {
        let agent = self.agent.as_ref().context("this lab has no agents")?;
        let node = self.node(node)?;
        node.kill_agent()?;
        node.start_agent(agent, &self.run_dir, self.workers)?;
        node.wait_for_agent(DEADLINE)
    }

    /// Applies manifests as `kubectl apply` would.
    ///
    /// # Errors
    /// A manifest that cannot be read or run; the message names object and field.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.cluster().apply(manifests)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.cluster().delete(kind, namespace, name)
    }

    /// A pod by `namespace/name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        self.cluster().pod(name)
    }

    /// The pods of a Deployment, by `namespace/name`.
    #[must_use]
    pub fn pods_of(&self, deployment: &str) -> Vec<Pod> {
        self.cluster().pods_of(deployment)
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.cluster().pods()
    }

    /// Waits until a pod's ports are open.
    ///
    /// # Errors
    /// When they are not in time; the message holds the end of its log.
    pub fn wait_ready(&self, name: &str) -> anyhow::Result<Pod> {
        let pod = self.pod(name)?;
        let ready = wait(|| {
            let mut cluster = self.cluster();
            cluster.watch()?;
            Ok(cluster.is_ready(name))
        });
        ready.with_context(|| format!("pod {name} is not ready: {}", pod.log_tail()))?;
        Ok(pod)
    }

    /// Waits until every pod is ready.
    ///
    /// # Errors
    /// As [`Lab::wait_ready`].
    pub fn wait_all_ready(&self) -> anyhow::Result<()> {
        for pod in self.pods() {
            self.wait_ready(&pod.name)?;
        }
        Ok(())
    }

    /// Waits until a pod is announced as enrolled, and every agent has read so: before that, others
    /// reach it in plaintext.
    ///
    /// # Errors
    /// When it is not in time; the message holds the end of its agent's log.
    pub fn wait_enrolled(&self, pod: &Pod) -> anyhow::Result<()> {
        self.wait_announced(pod, true)?;
        for node in &self.nodes {
            wait(|| self.knows_enrolled(&node.name, pod)).with_context(|| {
                format!("{} does not know that pod {} is enrolled", node.name, pod.name)
            })?;
        }
        Ok(())
    }

    fn knows_enrolled(&self, node: &str, pod: &Pod) -> anyhow::Result<bool> {
        let text = self.meshctl(node, &["-o", "json", "workloads"])?;
        let reply: serde_json::Value = serde_json::from_str(&text)?;
        let rows = reply["workloads"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(rows.iter().any(|row| row["uid"] == *pod.uid && row["enrolled"] == true))
    }

    /// Waits until a pod is not announced any more, and its node has withdrawn it.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_withdrawn(&self, pod: &Pod) -> anyhow::Result<()> {
        self.wait_announced(pod, false)?;
        let line = format!("pod withdrawn pod={}", pod.name);
        wait(|| Ok(self.agent_log(&pod.node)?.contains(&line)))
            .with_context(|| format!("pod {} is not withdrawn", pod.name))
    }

    fn wait_announced(&self, pod: &Pod, wanted: bool) -> anyhow::Result<()> {
        let dir = self.config_dir().join(".malha");
        let announced = || -> anyhow::Result<bool> {
            let Ok(files) = std::fs::read_dir(&dir) else { return Ok(false) };
            for file in files {
                let content = std::fs::read_to_string(file?.path()).unwrap_or_default();
                if content.lines().any(|line| line.contains(&*pod.uid)) {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        wait(|| Ok(announced()? == wanted)).with_context(|| {
            let log = self.agent_log(&pod.node).unwrap_or_default();
            format!("pod {} is not {}: {}", pod.name, state(wanted), tail(&log))
        })
    }

    /// Names of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    fn node(&self, name: &str) -> anyhow::Result<&Arc<Node>> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// What a node's agent has logged.
    ///
    /// # Errors
    /// When there is no such node or log.
    pub fn agent_log(&self, node: &str) -> anyhow::Result<String> {
        let node = self.node(node)?;
        std::fs::read_to_string(&node.agent_log).context("read the agent's log")
    }

    /// Resident memory of a node's agent, in KiB.
    #[must_use]
    pub fn agent_memory_kib(&self, node: &str) -> u64 {
        self.node(node).ok().and_then(|node| node.agent_memory_kib()).unwrap_or(0)
    }

    /// Asks a node's agent by `meshctl`.
    ///
    /// # Errors
    /// When it fails; the message holds what it wrote.
    pub fn meshctl(&self, node: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let meshctl = self.cluster().programs().meshctl.clone().context("no meshctl was built")?;
        let socket = self.node(node)?.admin_socket.clone();
        crate::tool::output(Command::new(meshctl).arg("--socket").arg(socket).args(arguments))
    }

    /// Records what passes a node's uplink from now on.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture_wire(&self, node: &str) -> anyhow::Result<WireCapture> {
        WireCapture::start(self.node(node)?, &self.run_dir)
    }

    /// The folder that the agents read.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.run_dir.join("config")
    }

    /// The lab's files.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Removes everything, as dropping does, and says if something is left.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.guardian.finish()
    }
}

fn state(enrolled: bool) -> &'static str {
    if enrolled { "enrolled" } else { "taken from the announcement" }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Waits until `done`, or [`DEADLINE`] passes.
fn wait(mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + DEADLINE;
    while !done()? {
        ensure!(Instant::now() < end, "not within {DEADLINE:?}");
        pause();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the lab waits for other processes")]
fn pause() {
    std::thread::sleep(POLL);
}

fn unique_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    crate::tool::output(Command::new(program).args(arguments)).map(drop)
}
