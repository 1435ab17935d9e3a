//! Real Kubernetes on one machine: etcd and the API server alone on loopback, or a whole cluster
//! whose nodes are namespaces, with containerd, kubelet and kube-proxy in each.
//!
//! Where [`crate::lab`] plays Kubernetes, quickly, this is Kubernetes: for what the other cannot
//! show (the API server's own checks, tokens, webhooks, the container runtime, upgrades). No limit
//! of memory, CPU or processes is enforced where the machine keeps those controllers as cgroup v1.
//!
//! Map: [`binaries`] (where the programs come from), [`pki`], [`images`], [`ground`] (folder,
//! processes, clean-up), [`network`], [`control_plane`], [`node`], [`cli`].
//!
//! Invariant: nothing of the machine is changed, and whatever a lab makes is named `klab-<name>` or
//! is in `target/lab/kube/run/<name>`, and is removed by its guardian.

mod binaries;
mod children;
pub mod cli;
mod control_plane;
mod ground;
mod images;
mod network;
mod node;
mod pki;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lab::{host, wait_for};
use crate::tool::workspace;
use binaries::Binaries;
use children::Children;
use control_plane::{API_SERVER, CONTROLLERS, ETCD, Place, Ports, SCHEDULER};
use ground::Ground;

pub use binaries::{Need, Obstacle};
pub use images::{imported, tutorial_images};
pub use node::KubeNode;

const COREDNS: &str = include_str!("coredns.yaml");
/// What starting may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries to reach an API server that starts.
const POLL: Duration = Duration::from_millis(80);
/// How often a port may be taken by somebody else between being found free and being used.
const TRIES: usize = 4;
/// Lines of a log in an error's message.
const LOG_LINES: usize = 5;
const FACTS: &str = "lab.json";
const GRACE: Duration = Duration::from_secs(40);

/// The container runtime of the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Containerd {
    /// 2.3, with NRI
    #[default]
    #[value(name = "2")]
    Two,
    /// What Debian has: 1.6, without NRI
    Debian,
}

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// Small letters, digits and dashes; labs of different names do not meet.
    pub name: String,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Archives of images for every node, beside the lab's own (`registry.lab/{busybox, tools,
    /// nginx}:1`).
    pub images: Vec<PathBuf>,
    /// The container runtime.
    pub containerd: Containerd,
    /// Whether names of Services resolve (CoreDNS).
    pub dns: bool,
    /// How long a node may be silent until it counts as not ready.
    pub grace: Duration,
}

/// A cluster, or an API server alone. Dropping it removes everything, unless it was kept.
#[derive(Debug)]
pub struct KubeLab {
    // First: its end kills those that `children` then collects.
    ground: Ground,
    children: Children,
    facts: Facts,
    url: String,
    kubeconfig: PathBuf,
}

/// What another process needs to know of a lab.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Facts {
    place: Place,
    binaries: Binaries,
    nodes: Vec<String>,
}

/// What keeps this machine from running Kubernetes, if anything. The first time it unpacks or
/// builds the programs.
#[must_use]
pub fn obstacle(need: Need) -> Option<Obstacle> {
    binaries::prepare(need).err()
}

/// A program of Kubernetes', such as `helm` or `kubectl`, by itself. The first time it unpacks or builds
/// them.
///
/// # Errors
/// What keeps this machine from having it.
pub fn program(name: &str) -> Result<PathBuf, Obstacle> {
    Ok(binaries::prepare(Need::Controllers)?.folder.join(name))
}

/// Where everything is kept that labs share.
fn folder() -> PathBuf {
    workspace().join("target/lab/kube")
}

// === impl KubeOptions ===

impl KubeOptions {
    /// A cluster with nodes `node-a`, `node-b` and so on, containerd 2, and DNS.
    #[must_use]
    pub fn new(name: &str, nodes: usize) -> Self {
        let nodes = ('a'..='z').take(nodes).map(|letter| format!("node-{letter}")).collect();
        Self {
            name: name.to_owned(),
            nodes,
            images: Vec::new(),
            containerd: Containerd::default(),
            dns: true,
            grace: GRACE,
        }
    }
}

// === impl KubeLab ===

impl KubeLab {
    /// etcd and the API server on loopback: no nodes, no controllers, no privileges needed. Pods
    /// are only objects, and there is no ServiceAccount `default` in a namespace until one is made.
    ///
    /// # Errors
    /// What is missing here ([`obstacle`] says it before), or what did not come up.
    pub fn api_only(name: &str) -> anyhow::Result<Self> {
        Self::alone(name, false)
    }

    /// The same with the controllers: Services get their EndpointSlices, namespaces their
    /// ServiceAccount `default`, deleted namespaces go.
    ///
    /// # Errors
    /// As [`KubeLab::api_only`].
    pub fn api_with_controllers(name: &str) -> anyhow::Result<Self> {
        Self::alone(name, true)
    }

    fn alone(name: &str, controllers: bool) -> anyhow::Result<Self> {
        let need = if controllers { Need::Controllers } else { Need::Api };
        let binaries = binaries::prepare(need)?;
        for _ in 0..TRIES {
            let place = Place {
                address: Ipv4Addr::LOCALHOST.to_string(),
                ports: Ports::free()?,
                grace: GRACE.as_secs(),
                alone: true,
            };
            let facts = Facts { place, binaries: binaries.clone(), nodes: Vec::new() };
            let lab = Self::claim(name, facts)?;
            match lab.start_control_plane(controllers) {
                Ok(()) => return Ok(lab),
                Err(error) if !format!("{error:#}").contains("address already in use") => {
                    return Err(error);
                }
                // Dropped, and so removed, before the next try.
                Err(_) => {}
            }
        }
        bail!("{TRIES} times, ports that were free were taken before the lab could use them")
    }

    /// A cluster whose nodes are ready.
    ///
    /// # Errors
    /// What is missing here ([`obstacle`] says it before), or what did not come up.
    pub fn up(options: &KubeOptions) -> anyhow::Result<Self> {
        let nodes = &options.nodes;
        let room = 1..=network::MAX_NODES;
        ensure!(room.contains(&nodes.len()), "a cluster has 1 to {} nodes", network::MAX_NODES);
        let mut binaries = binaries::prepare(Need::Nodes)?;
        match options.containerd {
            Containerd::Debian => binaries.containerd = None,
            Containerd::Two => {
                ensure!(
                    binaries.containerd.is_some(),
                    "containerd 2 is not with KUBE_BIN's programs"
                );
            }
        }
        let mut images = images::archives()?;
        for image in &options.images {
            let path = fs::canonicalize(image);
            images.push(path.with_context(|| format!("image {}", image.display()))?);
        }
        let [address, _] = network::CONTROL;
        let place = Place {
            address: address.to_string(),
            ports: Ports::usual(),
            grace: options.grace.as_secs(),
            alone: false,
        };
        let facts = Facts { place, binaries, nodes: nodes.clone() };
        let lab = Self::claim(&options.name, facts)?;
        network::make(&lab.ground.prefix, nodes)?;
        node::write_programs(lab.dir())?;
        // Side by side with the control plane: a kubelet waits for the API server.
        for node in lab.nodes() {
            node.prepare(&images)?;
            node.power_on()?;
        }
        lab.start_control_plane(true)?;
        if options.dns {
            let bin = lab.facts.binaries.folder.display().to_string();
            lab.kubectl_stdin(&["apply", "-f", "-"], &COREDNS.replace("@BIN@", &bin))?;
        }
        lab.wait_nodes_ready()?;
        if options.dns {
            let what = ["rollout", "status", "deployment/coredns", "--timeout=120s"];
            lab.kubectl(&[&["-n", "kube-system"], &what[..]].concat())?;
        }
        Ok(lab)
    }

    /// A lab that was kept by [`KubeLab::keep`]; dropping this leaves it as it is.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        let ground = Ground::of_running(name)?;
        let facts = fs::read_to_string(ground.dir.join(FACTS));
        let facts = facts.with_context(|| format!("Kubernetes lab {name} is not up"))?;
        Ok(Self::on(ground, serde_json::from_str(&facts)?))
    }

    /// Removes a lab that was kept.
    ///
    /// # Errors
    /// There is none, it belongs to a running process, or something of it does not end.
    pub fn remove(name: &str) -> anyhow::Result<()> {
        ground::remove(name)
    }

    /// Leaves the lab up when its owner ends, until [`KubeLab::remove`].
    ///
    /// # Errors
    /// Its guardian is gone.
    pub fn keep(&mut self) -> anyhow::Result<()> {
        self.ground.keep()
    }

    fn claim(name: &str, facts: Facts) -> anyhow::Result<Self> {
        let lab = Self::on(Ground::claim(name, !facts.nodes.is_empty())?, facts);
        let mut server = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        server.extend(network::CONTROL.into_iter().chain(network::FIRST_SERVICE));
        let nodes = lab.nodes().map(|node| (node.name.to_owned(), node.ips().to_vec()));
        let nodes: Vec<_> = nodes.collect();
        let names = pki::Names { server: &server, url: &lab.url, nodes: &nodes };
        pki::write(lab.dir(), &names).context("make the lab's PKI")?;
        fs::write(lab.dir().join(FACTS), serde_json::to_string_pretty(&lab.facts)?)?;
        Ok(lab)
    }

    fn on(ground: Ground, facts: Facts) -> Self {
        let kubeconfig = ground.dir.join("admin.kubeconfig");
        let url = facts.place.url();
        Self { ground, children: Children::default(), facts, url, kubeconfig }
    }

    fn start_control_plane(&self, controllers: bool) -> anyhow::Result<()> {
        self.start(ETCD)?;
        self.start(API_SERVER)?;
        self.wait_answer("/readyz", &[ETCD, API_SERVER])?;
        if controllers {
            self.start(CONTROLLERS)?;
            if !self.facts.nodes.is_empty() {
                self.start(SCHEDULER)?;
            }
            let account = "/api/v1/namespaces/default/serviceaccounts/default";
            self.wait_answer(account, &[API_SERVER, CONTROLLERS])?;
        }
        Ok(())
    }

    /// Starts a process of the control plane.
    fn start(&self, process: &str) -> anyhow::Result<()> {
        let cgroup = self.ground.cgroup.as_ref().map(|cgroup| cgroup.join("cp"));
        if let Some(cgroup) = &cgroup {
            fs::create_dir_all(cgroup)?;
        }
        let log = self.log_file(process);
        let mut command = self.ground.command(process, cgroup.as_deref(), &log)?;
        if let Some(space) = self.facts.place.netns(&self.ground.prefix) {
            command.args(["nsenter", &format!("--net={}", host::netns_path(&space).display())]);
        }
        command.arg(self.facts.binaries.folder.join(process));
        command.args(self.facts.place.arguments(process, self.dir()));
        self.children.spawn(process, &mut command)
    }

    fn stop(&self, process: &str) -> anyhow::Result<()> {
        self.ground.end(process)?;
        self.children.collect(process);
        Ok(())
    }

    /// Waits until the API server answers for a path, as long as these processes run.
    fn wait_answer(&self, path: &str, processes: &[&str]) -> anyhow::Result<()> {
        let found = wait_for(PATIENCE, &format!("an answer to {path}"), || {
            if let Some(process) = processes.iter().find(|name| self.children.ended(name).is_some())
            {
                bail!("{process} has ended: {}", self.last_lines(process));
            }
            let answered = self.raw(path).is_ok();
            if !answered {
                // Each try is a program, on a machine that is busy starting others.
                std::thread::park_timeout(POLL);
            }
            Ok(answered.then_some(()))
        });
        found.with_context(|| format!("the API server says: {}", self.last_lines(API_SERVER)))
    }

    fn last_lines(&self, process: &str) -> String {
        let log = self.log(process);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }

    fn log_file(&self, process: &str) -> PathBuf {
        self.dir().join("log").join(format!("{process}.log"))
    }

    /// What a process of the control plane has written: `etcd`, `kube-apiserver`,
    /// `kube-controller-manager`, `kube-scheduler`.
    #[must_use]
    pub fn log(&self, process: &str) -> String {
        let log = fs::read(self.log_file(process)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The lab's folder, which goes with it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.ground.dir
    }

    /// A kubeconfig of a cluster administrator; all credentials are in it.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API server's URL: on loopback, or reached only from within the lab, as by
    /// [`KubeLab::command`].
    #[must_use]
    pub fn server_url(&self) -> &str {
        &self.url
    }

    /// Keys and certificates: `ca.crt`, `admin.crt`, `admin.key` and so on.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// A command beside the control plane, with the administrator's kubeconfig and Kubernetes'
    /// programs on its PATH; not started yet.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
        let own = self.facts.binaries.folder.join(program);
        let program = if own.is_file() { own } else { PathBuf::from(program) };
        let mut command = match self.facts.place.netns(&self.ground.prefix) {
            None => Command::new(program),
            Some(space) => {
                let mut command = host::command("nsenter");
                command.arg(format!("--net={}", host::netns_path(&space).display())).arg(program);
                command
            }
        };
        command.args(arguments);
        self.set_environment(&mut command);
        command
    }

    /// What clients keep between runs goes with the lab.
    fn set_environment(&self, command: &mut Command) {
        let home = self.dir().join("home");
        command.env("KUBECONFIG", &self.kubeconfig).env("KUBECACHEDIR", home.join("cache"));
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, home.join("helm"));
        }
        let own = [Some(&self.facts.binaries.folder), self.facts.binaries.containerd.as_ref()];
        let path = std::env::var_os("PATH").unwrap_or_default();
        let rest = std::env::split_paths(&path).chain(std::env::split_paths(host::PATH));
        if let Ok(path) = std::env::join_paths(own.into_iter().flatten().cloned().chain(rest)) {
            command.env("PATH", path);
        }
    }

    /// Runs kubectl as a cluster administrator; what it wrote to standard output.
    ///
    /// # Errors
    /// It failed: the message has what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.output(&[&["kubectl"], arguments].concat(), "")
    }

    /// The same with text on its standard input, as for `apply -f -`.
    ///
    /// # Errors
    /// It failed: the message has what it said.
    pub fn kubectl_stdin(&self, arguments: &[&str], text: &str) -> anyhow::Result<String> {
        self.output(&[&["kubectl"], arguments].concat(), text)
    }

    /// Runs Helm as a cluster administrator; what it wrote to standard output.
    ///
    /// # Errors
    /// It failed: the message has what it said.
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.output(&[&["helm"], arguments].concat(), "")
    }

    /// What the API server answers for a path, without starting a kubectl: cheap enough to poll.
    ///
    /// # Errors
    /// No answer, or not 2xx.
    pub fn raw(&self, path: &str) -> anyhow::Result<String> {
        let file = |name: &str| self.pki().join(name).display().to_string();
        let (ca, certificate, key) = (file("ca.crt"), file("admin.crt"), file("admin.key"));
        let url = format!("{}{path}", self.url);
        let words = ["curl", "-sS", "-f", "-m", "5", "--cacert", &ca, "--cert", &certificate];
        self.output(&[&words[..], &["--key", &key, &url]].concat(), "")
    }

    /// Has etcd forget every version of every object but the last. Who then asks the API server, once
    /// that was started anew, for what has happened since an older one is told `410 Gone`.
    ///
    /// # Errors
    /// etcd does not answer, or refuses.
    pub fn compact_etcd(&self) -> anyhow::Result<()> {
        let ask = |path: &str, body: &Value| -> anyhow::Result<Value> {
            let url = format!("{}/v3/kv/{path}", self.facts.place.etcd_url());
            let words = ["curl", "-sS", "-f", "-m", "5", "--data-binary", "@-", &url];
            Ok(serde_json::from_str(&self.output(&words, &body.to_string())?)?)
        };
        // The key is of no importance: each answer has the store's revision.
        let found = ask("range", &json!({"key": "AA=="}))?;
        let revision = found.pointer("/header/revision").context("etcd tells no revision")?;
        ask("compaction", &json!({"revision": revision, "physical": true})).map(drop)
    }

    /// Runs a command beside the control plane to its end.
    fn output(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = words.join(" ");
        let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading says why on its standard error.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{shown}`: {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until every pod that a selector chooses is ready; at least one must be there.
    ///
    /// # Errors
    /// One is not, in two minutes.
    pub fn wait_pods_ready(&self, namespace: &str, selector: &str) -> anyhow::Result<()> {
        let at = ["-n", namespace, "wait", "pod", "-l", selector];
        self.kubectl(&[&at[..], &["--for=create", "--timeout=60s"]].concat())?;
        self.kubectl(&[&at[..], &["--for=condition=Ready", "--timeout=120s"]].concat()).map(drop)
    }

    /// Waits until every node says that it is ready.
    ///
    /// # Errors
    /// One does not, in two minutes.
    pub fn wait_nodes_ready(&self) -> anyhow::Result<()> {
        for node in self.nodes() {
            let path = format!("/api/v1/nodes/{}", node.name);
            let what = format!("node {} to be ready", node.name);
            let ready = wait_for(PATIENCE, &what, || {
                if let Some(status) = self.children.ended(node.name) {
                    bail!("node {} has ended: {status}", node.name);
                }
                let object = self.raw(&path).ok().and_then(|text| serde_json::from_str(&text).ok());
                Ok(object.is_some_and(|object| is_ready(&object)).then_some(()))
            });
            ready.with_context(|| {
                let logs = ["init", "kubelet"].map(|program| node.log(program));
                logs.map(|log| log.lines().rev().take(LOG_LINES).collect::<Vec<_>>().join("\n"))
                    .join("\n")
            })?;
        }
        Ok(())
    }

    /// The nodes, in the order they were named.
    pub fn nodes(&self) -> impl Iterator<Item = KubeNode<'_>> {
        let numbered = (1..).zip(&self.facts.nodes);
        numbered.map(|(number, name)| KubeNode { lab: self, name, number })
    }

    /// A node by name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<KubeNode<'_>> {
        let found = self.nodes().find(|node| node.name == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// Kills the API server.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_api_server(&self) -> anyhow::Result<()> {
        self.stop(API_SERVER)
    }

    /// Starts it again and waits until it is ready.
    ///
    /// # Errors
    /// It runs already, or does not come up.
    pub fn start_api_server(&self) -> anyhow::Result<()> {
        ensure!(self.ground.pid(API_SERVER).is_none(), "the API server runs already");
        self.start(API_SERVER)?;
        self.wait_answer("/readyz", &[API_SERVER])?;
        self.revive()
    }

    /// Kills etcd: the API server runs on, and cannot answer.
    ///
    /// # Errors
    /// It does not run.
    pub fn stop_etcd(&self) -> anyhow::Result<()> {
        self.stop(ETCD)
    }

    /// Starts it again, with its data, and waits until the API server is ready.
    ///
    /// # Errors
    /// It runs already, or does not come up.
    pub fn start_etcd(&self) -> anyhow::Result<()> {
        ensure!(self.ground.pid(ETCD).is_none(), "etcd runs already");
        self.start(ETCD)?;
        self.wait_answer("/readyz", &[ETCD])?;
        self.revive()
    }

    /// Starts what has ended while there was no API server, as a kubelet does with static pods.
    fn revive(&self) -> anyhow::Result<()> {
        for process in [CONTROLLERS, SCHEDULER] {
            if self.children.ended(process).is_some() {
                self.children.collect(process);
                self.start(process)?;
            }
        }
        Ok(())
    }
}

/// Whether an object's condition `Ready` is true.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
