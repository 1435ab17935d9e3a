//! The lab: whole clusters on one machine, without containers or virtual machines.
//!
//! A node is a network namespace with a cgroup and a real agent; a pod is a network namespace with
//! a cgroup and real processes. The lab plays the API server, the controllers of Deployments,
//! Services and EndpointSlices, scheduler, kubelet, kube-proxy (nftables) and the cluster's name
//! server, each as far as ordinary manifests need it. It plays nothing of the mesh.
//!
//! Map: [`names`] and [`ground`] (number, folder, clean-up), [`topology`] (namespaces, links),
//! [`manifest`] and [`cluster`] (objects), [`service`], [`virtual_ip`], [`zone`], [`dns`]
//! (Services), [`image`], [`plan`], [`container`], [`pod`], [`kubelet`] (pods), [`publish`]
//! (the agents' configuration folder), [`agent`], [`wire`] and [`pcap`] (proof), [`handle`] (what
//! tests hold), [`load`] (requests), [`server`] and [`cli`] (a lab in the background).
//!
//! Invariant: whatever a lab makes is named after its number and removed by its guardian.

mod agent;
pub mod cli;
mod cluster;
pub(crate) mod container;
mod dns;
pub(crate) mod ground;
mod handle;
pub(crate) mod host;
mod image;
mod kubelet;
mod load;
mod manifest;
mod names;
pub mod pcap;
mod plan;
mod pod;
mod publish;
pub mod server;
mod service;
mod topology;
mod virtual_ip;
mod wire;
mod zone;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use agent::{Agent, AgentFiles, AgentOptions};
use cluster::Cluster;
use dns::Resolvers;
use ground::Ground;
use kubelet::Kubelet;
use publish::Publisher;
use topology::Node;
use zone::Zone;

pub use agent::TRUST_DOMAIN;
pub use cluster::Change;
pub use handle::{Conversation, Pod};
pub use host::wait_for;
pub use load::{Line, Load};
pub use manifest::Key;
pub use names::LabId;
pub use pcap::WireReport;
pub use wire::WireCapture;

/// Starting, probing and replacing anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the pods.
const TICK: Duration = Duration::from_millis(50);

/// Folder of all labs; each has a subfolder by its name, and a lock file by its number.
const RUN: &str = "/run/malha-lab";

/// Folder of a lab that every container sees at the same path.
const SHARED: &str = "shared";

/// What keeps this machine from running a lab, if anything.
#[must_use]
pub fn missing_privileges() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("the lab makes namespaces and loads eBPF: run it as root".into());
    }
    if let Err(error) = ground::cgroup_mount() {
        return Some(format!("{error:#}"));
    }
    let missing = |program: &&str| crate::tool::find(program).is_none();
    let programs = ["ip", "nft", "nsenter", "unshare", "nginx", "curl", "tcpdump"];
    let program = programs.into_iter().find(missing)?;
    Some(format!("{program} is not installed: run `cargo xtask setup`"))
}

/// How a lab is to be.
#[derive(Clone, Debug)]
pub struct LabBuilder {
    nodes: usize,
    workers: usize,
    name: Option<String>,
    agent: Option<PathBuf>,
    log_level: String,
    agent_arguments: Vec<String>,
}

impl LabBuilder {
    /// Number of nodes, 1 to 60. Default 2.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// A name to find the lab by. Default: its number.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Data threads of each agent. Default 2.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// The agent to run on every node; without one the lab is a cluster without a mesh.
    #[must_use]
    pub fn agent(mut self, program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        self.agent = Some(std::path::absolute(program).unwrap_or_else(|_| program.to_owned()));
        self
    }

    /// The agents' `--log-level`. Default `info`.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// More arguments for every agent, after the lab's own.
    #[must_use]
    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.agent_arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// Builds the lab; returns when every agent serves.
    ///
    /// # Errors
    /// Not root, something is missing on this machine, or an agent does not start.
    pub fn build(self) -> anyhow::Result<Lab> {
        let count =
            u8::try_from(self.nodes).ok().filter(|count| (1..=names::MAX_NODES).contains(count));
        let count = count.with_context(|| format!("a lab has 1 to {} nodes", names::MAX_NODES))?;
        if let Some(reason) = missing_privileges() {
            bail!(reason);
        }
        let ground = Ground::claim(self.name.as_deref())?;
        fs::create_dir_all(ground.run.join(SHARED))?;
        let (id, run) = (ground.id, ground.run.clone());
        let nodes = topology::build(id, &ground.cgroup, count)?;
        let zone = Arc::new(RwLock::new(Zone::default()));
        let resolvers = Resolvers::start(&nodes, id.dns().0, &zone)?;
        let config = run.join("config");
        let publisher = Publisher::new(config.clone(), run.join("draft"))?;
        let (files, options) = self.prepare_agents(&run, config, id.dns().0)?;
        let state = State {
            cluster: Cluster::new(id),
            kubelet: Kubelet::new(id, run.clone(), nodes.clone()),
            publisher,
            rules: String::new(),
            names: BTreeMap::new(),
            agents: BTreeMap::new(),
            published: SystemTime::now(),
        };
        let shared = Arc::new(Shared {
            id,
            cgroup: ground.cgroup.clone(),
            nodes,
            files,
            options,
            zone,
            stop: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        let watcher = start_watcher(&shared)?;
        let lab = Lab {
            shared,
            watcher: Some(watcher),
            resolvers: Some(resolvers),
            ground: Some(ground),
        };
        lab.shared.lock().sync(&lab.shared)?;
        if self.agent.is_some() {
            lab.start_agents()?;
        }
        Ok(lab)
    }

    fn prepare_agents(
        &self,
        run: &Path,
        config: PathBuf,
        dns_server: Ipv4Addr,
    ) -> anyhow::Result<(AgentFiles, AgentOptions)> {
        let mut files = AgentFiles { run: run.to_owned(), config, ca: Default::default() };
        let program = self.agent.clone().unwrap_or_default();
        if self.agent.is_some() {
            let pins = run.join("bpf");
            fs::create_dir_all(&pins)?;
            host::mount("bpf", "mode=0700", &pins)?;
            let dir = run.join("ca");
            fs::create_dir_all(&dir)?;
            files.ca = agent::make_ca(&program, &dir)?;
        }
        let options = AgentOptions {
            program,
            workers: self.workers,
            log_level: self.log_level.clone(),
            dns_server,
            more: self.agent_arguments.clone(),
        };
        Ok((files, options))
    }
}

/// A running lab. Dropping it ends and removes everything.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
    resolvers: Option<Resolvers>,
    ground: Option<Ground>,
}

/// What the lab's own thread and the handles share.
#[derive(Debug)]
struct Shared {
    id: LabId,
    cgroup: PathBuf,
    nodes: Vec<Node>,
    files: AgentFiles,
    options: AgentOptions,
    zone: Arc<RwLock<Zone>>,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cluster: Cluster,
    kubelet: Kubelet,
    publisher: Publisher,
    /// The nodes' rules as last set.
    rules: String,
    /// Names outside the cluster.
    names: BTreeMap<String, Vec<IpAddr>>,
    agents: BTreeMap<String, Agent>,
    /// When the agents' folder was last written to.
    published: SystemTime,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a test's thread must not hide the lab from the others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, name: &str) -> anyhow::Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}"))
    }
}

impl State {
    /// Brings name server, rules and configuration folder up to date with objects and pods.
    fn sync(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let objects: Vec<&manifest::Object> = self.cluster.objects().collect();
        let of_kind = |kind: &'static str| {
            objects.iter().filter(move |object| object.key.kind == kind).map(|object| &object.value)
        };
        let services: Vec<&Value> = of_kind("Service").collect();
        let pods: Vec<_> = self.kubelet.pods.values().map(pod::Pod::facts).collect();
        let made: Vec<Value> =
            services.iter().flat_map(|service| service::slices(service, &pods)).collect();
        let slices: Vec<&Value> = made.iter().chain(of_kind("EndpointSlice")).collect();
        *shared.zone.write().unwrap_or_else(PoisonError::into_inner) =
            Zone::new(&services, &slices, &pods).with_names(&self.names);
        let rules = virtual_ip::rules(&services, &slices);
        if rules != self.rules {
            shared.nodes.iter().try_for_each(|node| host::nft(&node.netns, &rules))?;
            self.rules = rules;
        }
        let pods = self.kubelet.pods.values().map(pod::Pod::object);
        let made: Vec<Value> = made.into_iter().chain(pods).collect();
        if self.publisher.publish(self.cluster.objects(), &made)? {
            self.published = SystemTime::now();
        }
        Ok(())
    }

    /// One look at the pods, and what follows from it.
    fn tick(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let mut changed = self.kubelet.tick()?;
        changed |= self.kubelet.reconcile(&self.cluster)?;
        if changed { self.sync(shared) } else { Ok(()) }
    }
}

/// A path as an argument.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Waits for another process's doing, with the lab's usual patience.
fn wait(mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_for(PATIENCE, "it", || Ok(done()?.then_some(())))
}

/// Pause between two looks.
fn pause() {
    std::thread::park_timeout(TICK);
}

fn start_watcher(shared: &Arc<Shared>) -> anyhow::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let watch = move || {
        let mut last = String::new();
        while !shared.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(TICK);
            let now = match shared.lock().tick(&shared) {
                Ok(()) => String::new(),
                Err(error) => format!("{error:#}"),
            };
            if now != last && !now.is_empty() {
                crate::tool::say(&format!("lab {}: {now}", shared.id));
            }
            last = now;
        }
    };
    std::thread::Builder::new().name("lab-kubelet".into()).spawn(watch).context("start a thread")
}

impl Lab {
    /// Two nodes, two workers, no agents.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder {
            nodes: 2,
            workers: 2,
            name: None,
            agent: None,
            log_level: "info".into(),
            agent_arguments: Vec::new(),
        }
    }

    /// The lab's number.
    #[must_use]
    pub fn id(&self) -> LabId {
        self.shared.id
    }

    /// Names of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.shared.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// Both addresses of a node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn node_addresses(&self, node: &str) -> anyhow::Result<[IpAddr; 2]> {
        Ok(self.shared.node(node)?.addresses())
    }

    /// The folder that the agents read.
    #[must_use]
    pub fn config_dir(&self) -> &Path {
        &self.shared.files.config
    }

    /// The lab's own folder: logs, sockets, certificates.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.shared.files.run
    }

    /// A folder that every container sees at the same path, read-only, for files of tests.
    #[must_use]
    pub fn shared_dir(&self) -> PathBuf {
        self.shared.files.run.join(SHARED)
    }

    /// Removes everything, as dropping does, and says if something is left.
    ///
    /// # Errors
    /// Something is left.
    pub fn down(self) -> anyhow::Result<()> {
        let run = self.shared.files.run.clone();
        let cgroup = self.shared.cgroup.clone();
        drop(self);
        let left: Vec<String> =
            [run, cgroup].iter().filter(|path| path.exists()).map(|path| text(path)).collect();
        ensure!(left.is_empty(), "the lab could not be removed in full: {}", left.join(", "));
        Ok(())
    }

    /// Takes manifests over, as `kubectl apply -f` would, all or none. Returns when the agents
    /// have had the time to take them over too (see [`Lab::wait_configured`]).
    ///
    /// # Errors
    /// A manifest is wrong (object and field are named), or a pod cannot be started.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<Vec<(Key, Change)>> {
        let objects = manifest::parse(manifests)?;
        let mut state = self.shared.lock();
        let changes = state.cluster.apply(objects)?;
        self.follow(&mut state)?;
        drop(state);
        self.wait_configured()?;
        Ok(changes)
    }

    /// Makes pods, volumes and everything else follow the objects.
    fn follow(&self, state: &mut State) -> anyhow::Result<()> {
        state.kubelet.reconcile(&state.cluster)?;
        for pod in state.kubelet.pods.values().filter(|pod| pod.deadline.is_none()) {
            pod.write_volumes(&state.cluster)?;
        }
        state.sync(&self.shared)
    }

    /// Removes the objects that these manifests name.
    ///
    /// # Errors
    /// One of them is not there; then none is removed.
    pub fn delete_manifests(&self, manifests: &str) -> anyhow::Result<Vec<(Key, Change)>> {
        let keys: Vec<Key> = manifest::parse(manifests)?.into_iter().map(|one| one.key).collect();
        let mut state = self.shared.lock();
        let changes = state.cluster.delete(&keys)?;
        self.follow(&mut state)?;
        Ok(changes)
    }

    /// Removes an object by kind (any case), namespace (empty for what has none) and name.
    ///
    /// # Errors
    /// It is not there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let mut state = self.shared.lock();
        let key = cluster::find_key(state.cluster.objects(), kind, namespace, name)?;
        state.cluster.delete(&[key])?;
        self.follow(&mut state)
    }

    /// Sets a label of an object (or removes it, with `None`), as `kubectl label` would. A pod of a
    /// Deployment is known by its own name.
    ///
    /// # Errors
    /// It is not there.
    pub fn label(
        &self,
        kind: &str,
        name: &str,
        label: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let (namespace, name) = handle::split_name(name);
        let mut state = self.shared.lock();
        let pod = state.kubelet.pods.get_mut(&(namespace.to_owned(), name.to_owned()));
        match pod.filter(|pod| kind.eq_ignore_ascii_case("pod") && pod.owner.is_some()) {
            Some(pod) => cluster::set_label(&mut pod.value, label, value),
            None => {
                let key = cluster::find_key(state.cluster.objects(), kind, namespace, name)?;
                state.cluster.label(&key, label, value)?;
            }
        }
        self.follow(&mut state)
    }

    /// Sets a Deployment's number of pods.
    ///
    /// # Errors
    /// There is no such Deployment, or a pod cannot be started.
    pub fn scale(&self, deployment: &str, replicas: usize) -> anyhow::Result<()> {
        let (namespace, name) = handle::split_name(deployment);
        let mut state = self.shared.lock();
        state.cluster.scale(namespace, name, replicas)?;
        self.follow(&mut state)
    }

    /// Writes a file into the agents' folder as it is, past every check of the lab's.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_config(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let draft = self.shared.files.run.join(format!("draft-{file}"));
        host::replace(&draft, &self.shared.files.config.join(file), text)
    }

    /// Removes a file that [`Lab::write_config`] has written.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_config(&self, file: &str) -> anyhow::Result<()> {
        fs::remove_file(self.shared.files.config.join(file))
            .with_context(|| format!("remove {file}"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            watcher.thread().unpark();
            // A panic there was printed there.
            let _ = watcher.join();
        }
        drop(self.resolvers.take());
        drop(self.ground.take());
        // Killed by now: only to be collected.
        let mut state = self.shared.lock();
        state.kubelet.pods.values_mut().for_each(pod::Pod::collect);
        state.agents.values_mut().for_each(|agent| {
            let _ = agent.pid();
        });
    }
}
