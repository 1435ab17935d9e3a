//! What a test holds of a lab: pods to run commands in, agents to ask or to kill, the wire.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::agent::{Agent, last_lines};
use super::container::JOIN;
use super::kubelet::PodName;
use super::manifest::{DEFAULT_NAMESPACE, Key, list_at};
use super::pod::{self, rfc3339};
use super::wire::WireCapture;
use super::{Lab, PATIENCE, Shared, host, image};

/// What an agent logs when a configuration holds.
const IN_FORCE: &str = "configuration in force";
/// An agent reads its folder only once this long nothing has changed there (50 ms, less what the
/// clocks may differ): an earlier line is about an earlier change.
const AGENT_QUIET: Duration = Duration::from_millis(40);
/// By then an agent has read its folder however busy that was (500 ms), and compiled it.
const AGENT_PATIENCE: Duration = Duration::from_millis(800);

/// A pod as it was when it was asked for; commands run in its first container.
#[derive(Clone, Debug)]
pub struct Pod {
    shared: Arc<Shared>,
    /// `namespace/name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Its node's name.
    pub node: String,
    /// IPv4, then IPv6.
    pub ips: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: Value,
    /// Its network namespace, as a file.
    pub netns: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
}

impl Pod {
    fn new(shared: &Arc<Shared>, pod: &pod::Pod) -> Self {
        Self {
            shared: Arc::clone(shared),
            name: format!("{}/{}", pod.namespace, pod.name),
            uid: pod.uid.clone(),
            node: pod.node.clone(),
            ips: pod.ips.clone(),
            labels: pod.facts().labels.clone(),
            netns: host::netns_path(&pod.sandbox.netns),
            cgroup: pod.sandbox.cgroup.clone(),
        }
    }

    fn key(&self) -> PodName {
        let (namespace, name) = split_name(&self.name);
        (namespace.to_owned(), name.to_owned())
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v4(&self) -> anyhow::Result<Ipv4Addr> {
        let mut v4 =
            self.ips.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        v4.next().context("the pod has no IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub fn v6(&self) -> anyhow::Result<Ipv6Addr> {
        let mut v6 =
            self.ips.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        v6.next().context("the pod has no IPv6 address")
    }

    /// Its first address, IPv4.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        // A pod always has both.
        self.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// A command in the pod's first container, not started yet.
    ///
    /// # Errors
    /// The pod is gone, or the container does not run.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let state = self.shared.lock();
        let pod = state.kubelet.pods.get(&self.key()).filter(|pod| pod.uid == self.uid);
        let pod = pod.with_context(|| format!("Pod {} is gone", self.name))?;
        let container = pod.containers.first().context("a pod without containers")?;
        container.enter(&pod.sandbox, words)
    }

    /// Words that run what follows them in the pod, from any shell or process of root's.
    ///
    /// # Errors
    /// The pod is gone, or the container does not run.
    pub fn enter_command(&self) -> anyhow::Result<Vec<String>> {
        let command = self.command(&[])?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        Ok(words.map(|word| word.to_string_lossy().into_owned()).collect())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It cannot be started. A command that fails is no error: see [`Pod::run`].
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(words)?;
        command.stdin(Stdio::null()).output().with_context(|| format!("run {words:?}"))
    }

    /// Runs a command that must succeed; what it wrote to standard output.
    ///
    /// # Errors
    /// It cannot be started, or it fails; the message has what it wrote to standard error.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.exec(words)?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{words:?} in {}: {}: {}", self.name, output.status, error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a command whose output is read later, by `wait_with_output`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, words: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.command(words)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("start {words:?}"))
    }

    /// Starts a command to talk with, line by line.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn converse(&self, words: &[&str]) -> anyhow::Result<Conversation> {
        Conversation::start(&mut self.command(words)?).with_context(|| format!("start {words:?}"))
    }

    /// What its containers have written so far.
    ///
    /// # Errors
    /// The pod is gone.
    pub fn log(&self) -> anyhow::Result<String> {
        let state = self.shared.lock();
        let pod = state.kubelet.pods.get(&self.key());
        let pod = pod.with_context(|| format!("Pod {} is gone", self.name))?;
        let logs = pod.containers.iter().map(|one| fs::read(one.log(&pod.sandbox)));
        Ok(logs.map(|log| String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()).collect())
    }

    /// Process of its first container.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.shared.lock().kubelet.pods.get(&self.key())?.containers.first()?.pid()
    }

    /// How often its containers were started again.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        let state = self.shared.lock();
        let pod = state.kubelet.pods.get(&self.key());
        pod.map_or(0, |pod| pod.containers.iter().map(|container| container.restarts).sum())
    }
}

/// A running command that answers line by line. Dropped, it is killed.
#[derive(Debug)]
pub struct Conversation {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    /// Starts a command to talk with.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { child, input, output })
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// The command has ended.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the command has ended");
        Ok(line.trim_end().to_owned())
    }

    /// Sends a line and reads one.
    ///
    /// # Errors
    /// The command has ended.
    pub fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{line}")?;
        self.input.flush()?;
        self.line()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Namespace and name of `namespace/name`, or of `name` in the default namespace.
pub(super) fn split_name(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name))
}

// === Pods of a Lab ===

impl Lab {
    /// A pod by `namespace/name`.
    ///
    /// # Errors
    /// There is none.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        let (namespace, own) = split_name(name);
        let state = self.shared.lock();
        let pod = state.kubelet.pods.get(&(namespace.to_owned(), own.to_owned()));
        pod.map(|pod| Pod::new(&self.shared, pod)).with_context(|| format!("Pod {name}: not found"))
    }

    /// The pods of a Deployment that are to stay, by name.
    #[must_use]
    pub fn pods_of(&self, deployment: &str) -> Vec<Pod> {
        let (namespace, name) = split_name(deployment);
        let ours = |pod: &&pod::Pod| {
            pod.namespace == namespace
                && pod.deadline.is_none()
                && pod.owner.as_ref().is_some_and(|(owner, _)| owner == name)
        };
        let state = self.shared.lock();
        state.kubelet.pods.values().filter(ours).map(|pod| Pod::new(&self.shared, pod)).collect()
    }

    /// Every pod.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        let state = self.shared.lock();
        state.kubelet.pods.values().map(|pod| Pod::new(&self.shared, pod)).collect()
    }

    /// Waits until a pod, or every pod of a Deployment (and none of an older template), is ready.
    /// Returns it, or the first of them.
    ///
    /// # Errors
    /// Not in time; the message has the end of the containers' logs.
    pub fn wait_ready(&self, name: &str) -> anyhow::Result<Pod> {
        let (namespace, own) = split_name(name);
        let ours = |pod: &&pod::Pod| {
            pod.namespace == namespace
                && (pod.name == own || pod.owner.as_ref().is_some_and(|(owner, _)| owner == own))
        };
        let ready = host::wait_for(PATIENCE, &format!("{name} to be ready"), || {
            let state = self.shared.lock();
            let hashes: std::collections::BTreeSet<_> =
                state.kubelet.pods.values().filter(ours).map(|pod| pod.owner.clone()).collect();
            let pods: Vec<_> = state.kubelet.pods.values().filter(ours).collect();
            let ready = pods.iter().all(|pod| pod.deadline.is_none() && pod.ready());
            let first = pods.first().map(|pod| Pod::new(&self.shared, pod));
            Ok(first.filter(|_| hashes.len() == 1 && ready))
        });
        self.wait_configured()?;
        ready.with_context(|| {
            let pods = self.pods().into_iter().filter(|pod| {
                let (pod_namespace, pod_name) = split_name(&pod.name);
                pod_namespace == namespace && pod_name.starts_with(own)
            });
            let logs = pods.map(|pod| {
                let log = pod.log().unwrap_or_default();
                format!("log of {}:\n{}\n", pod.name, last_lines(&log, 10))
            });
            logs.collect::<String>()
        })
    }

    /// Waits until every pod is ready.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_all_ready(&self) -> anyhow::Result<()> {
        self.pods().iter().try_for_each(|pod| self.wait_ready(&pod.name).map(drop))
    }

    /// Waits until a pod is gone.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_gone(&self, pod: &Pod) -> anyhow::Result<()> {
        host::wait_for(PATIENCE, &format!("{} to be gone", pod.name), || {
            let state = self.shared.lock();
            let there = state.kubelet.pods.get(&pod.key()).is_some_and(|one| one.uid == pod.uid);
            Ok((!there).then_some(()))
        })
    }

    /// Virtual addresses of a Service.
    ///
    /// # Errors
    /// There is no such Service.
    pub fn service_ips(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let service = self.service(name)?;
        let ips = list_at(&service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
        Ok(ips.filter_map(|ip| ip.parse().ok()).collect())
    }

    /// A Service as the API server would show it.
    ///
    /// # Errors
    /// There is no such Service.
    pub fn service(&self, name: &str) -> anyhow::Result<Value> {
        let (namespace, own) = split_name(name);
        let state = self.shared.lock();
        let object = state.cluster.get(&Key::core("Service", namespace, own));
        object.map(|one| one.value.clone()).with_context(|| format!("Service {name}: not found"))
    }

    /// A command outside the cluster (in the namespace that joins the nodes), not started yet. It
    /// reaches nodes and pods, belongs to no node, and has no name server.
    ///
    /// # Errors
    /// The lab is broken.
    pub fn outside(&self, words: &[&str]) -> anyhow::Result<Command> {
        self.beside(&self.shared.id.fabric_netns(), self.shared.cgroup.join("tools"), words)
    }

    /// A command on a node, beside its pods and its agent (kubelet's place), not started yet.
    ///
    /// # Errors
    /// There is no such node.
    pub fn on_node(&self, node: &str, words: &[&str]) -> anyhow::Result<Command> {
        let node = self.shared.node(node)?;
        self.beside(&node.netns, node.kubelet_cgroup(), words)
    }

    fn beside(&self, netns: &str, cgroup: PathBuf, words: &[&str]) -> anyhow::Result<Command> {
        fs::create_dir_all(&cgroup)?;
        let mut command = host::command("nsenter");
        command.arg(format!("--net={}", host::netns_path(netns).display()));
        command.args(["sh", "-c", JOIN, "beside"]).arg(cgroup.join("cgroup.procs")).args(words);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Starts to capture what passes a node's uplink.
    ///
    /// # Errors
    /// tcpdump is not here or does not start.
    pub fn capture_wire(&self, node: &str) -> anyhow::Result<WireCapture> {
        let node = self.shared.node(node)?;
        let unique = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let file = self.shared.files.run.join(format!("wire-{}.pcap", unique.trim()));
        WireCapture::start(node, &self.shared.cgroup, file)
    }
}

// === Agents of a Lab ===

impl Lab {
    /// Starts the agents of all nodes that have none.
    pub(super) fn start_agents(&self) -> anyhow::Result<()> {
        self.nodes().iter().try_for_each(|node| self.start_agent(node))
    }

    /// Starts a node's agent; returns when it serves.
    ///
    /// # Errors
    /// It does not start; the message has the end of its log.
    pub fn start_agent(&self, node: &str) -> anyhow::Result<()> {
        let place = self.shared.node(node)?;
        ensure!(!self.shared.options.program.as_os_str().is_empty(), "a lab without agents");
        let mut state = self.shared.lock();
        let runs = state.agents.get_mut(node).is_some_and(|agent| agent.pid().is_some());
        ensure!(!runs, "{node} has an agent already");
        // It reads only files: the lab's own thread may go on meanwhile.
        drop(state);
        let agent = Agent::start(place, &self.shared.options, &self.shared.files)?;
        self.shared.lock().agents.insert(node.to_owned(), agent);
        Ok(())
    }

    fn take_agent(&self, node: &str) -> anyhow::Result<Agent> {
        let agent = self.shared.lock().agents.remove(node);
        agent.with_context(|| format!("{node} has no agent"))
    }

    /// Ends a node's agent in order (SIGTERM).
    ///
    /// # Errors
    /// It has none, or it does not end.
    pub fn stop_agent(&self, node: &str) -> anyhow::Result<()> {
        self.take_agent(node)?.stop()
    }

    /// Kills a node's agent, as a crash would.
    ///
    /// # Errors
    /// It has none.
    pub fn kill_agent(&self, node: &str) -> anyhow::Result<()> {
        self.take_agent(node)?.kill()
    }

    /// Ends a node's agent in order and starts it again.
    ///
    /// # Errors
    /// It does not end, or does not start.
    pub fn restart_agent(&self, node: &str) -> anyhow::Result<()> {
        self.stop_agent(node)?;
        self.start_agent(node)
    }

    /// Starts the next agent of a node beside the old one, then ends the old one: an upgrade.
    ///
    /// # Errors
    /// One of them does not do its part.
    pub fn replace_agent(&self, node: &str) -> anyhow::Result<()> {
        let mut old = self.take_agent(node)?;
        self.start_agent(node)?;
        old.stop()
    }

    /// Starts the next agent of a node beside the old one, and kills it once it serves: an upgrade
    /// that fails.
    ///
    /// # Errors
    /// It does not start, or there was none before.
    pub fn fail_to_replace_agent(&self, node: &str) -> anyhow::Result<()> {
        let old = self.take_agent(node)?;
        let killed = self.start_agent(node).and_then(|()| self.kill_agent(node));
        self.shared.lock().agents.insert(node.to_owned(), old);
        killed
    }

    /// Process of a node's agent, while it runs.
    #[must_use]
    pub fn agent_pid(&self, node: &str) -> Option<u32> {
        self.shared.lock().agents.get_mut(node).and_then(Agent::pid)
    }

    /// How long a node's agent took from the start of its process until it served; the programs that
    /// lead into the node's namespace and cgroup are in it.
    ///
    /// # Errors
    /// It has none.
    pub fn agent_start_time(&self, node: &str) -> anyhow::Result<Duration> {
        let state = self.shared.lock();
        let agent = state.agents.get(node).with_context(|| format!("{node} has no agent"))?;
        Ok(agent.start_time)
    }

    /// Resident memory of a node's agent in KiB; 0 if it has none.
    #[must_use]
    pub fn agent_memory_kib(&self, node: &str) -> u64 {
        let Some(pid) = self.agent_pid(node) else { return 0 };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    }

    /// What a node's agents have logged so far.
    ///
    /// # Errors
    /// It never had one.
    pub fn agent_log(&self, node: &str) -> anyhow::Result<String> {
        let path = self.shared.files.log(node);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Asks a node's agent with `meshctl`; what it printed.
    ///
    /// # Errors
    /// `meshctl` fails.
    pub fn meshctl(&self, node: &str, words: &[&str]) -> anyhow::Result<String> {
        let beside = self.shared.options.program.with_file_name("meshctl");
        let program = if beside.is_file() { beside } else { image::built_here("meshctl")? };
        let mut command = Command::new(program);
        command.arg("--socket").arg(self.shared.files.socket(node)).args(words);
        crate::tool::output(&mut command)
    }

    /// Waits until every agent has had the time to read what was written last: until it says that
    /// it has a newer configuration, or, as a change may mean nothing to it, a moment.
    ///
    /// # Errors
    /// An agent's log cannot be read.
    pub fn wait_configured(&self) -> anyhow::Result<()> {
        let (published, nodes) = {
            let state = self.shared.lock();
            (state.published, state.agents.keys().cloned().collect::<Vec<_>>())
        };
        let from = rfc3339(published + AGENT_QUIET);
        let newer = |line: &str| line.contains(IN_FORCE) && line.get(..from.len()) >= Some(&from);
        while published.elapsed().unwrap_or_default() < AGENT_PATIENCE {
            let mut all = true;
            for node in &nodes {
                all &= self.agent_log(node)?.lines().rev().any(newer);
            }
            if all {
                return Ok(());
            }
            std::thread::park_timeout(AGENT_QUIET / 4);
        }
        Ok(())
    }

    /// Whether the pod's node has announced that the pod is in the mesh.
    #[must_use]
    pub fn enrolled(&self, pod: &Pod) -> bool {
        let list = self.shared.files.config.join(".malha").join(format!("enrolled-{}", pod.node));
        let list = fs::read_to_string(list).unwrap_or_default();
        list.lines().any(|line| line.trim() == pod.uid)
    }

    /// Waits until a pod is in the mesh, and every agent knows it: before that, others reach it in
    /// plaintext.
    ///
    /// # Errors
    /// Not in time; the message has the end of the agent's log.
    pub fn wait_enrolled(&self, pod: &Pod) -> anyhow::Result<()> {
        self.wait_mesh(pod, true)?;
        let nodes: Vec<String> = self.shared.lock().agents.keys().cloned().collect();
        nodes.iter().try_for_each(|node| {
            let what = format!("{node} to know that {} is in the mesh", pod.name);
            host::wait_for(PATIENCE, &what, || Ok(self.knows_enrolled(node, pod)?.then_some(())))
        })
    }

    fn knows_enrolled(&self, node: &str, pod: &Pod) -> anyhow::Result<bool> {
        let text = self.meshctl(node, &["-o", "json", "workloads"])?;
        let reply: Value = serde_json::from_str(&text)?;
        let known = |row: &Value| row["uid"] == *pod.uid && row["enrolled"] == true;
        Ok(list_at(&reply, "/workloads").iter().any(known))
    }

    /// Waits until a pod is out of the mesh.
    ///
    /// # Errors
    /// Not in time; the message has the end of the agent's log.
    pub fn wait_withdrawn(&self, pod: &Pod) -> anyhow::Result<()> {
        self.wait_mesh(pod, false)?;
        // The announcement goes first; only then is the pod let go.
        let count = |log: &str, event: &str| {
            let end = format!("pod={}", pod.name);
            let of_pod = |line: &&str| {
                line.contains(event) && line.split_whitespace().any(|word| word == end)
            };
            log.lines().filter(of_pod).count()
        };
        host::wait_for(PATIENCE, &format!("{} to be withdrawn", pod.name), || {
            let log = self.agent_log(&pod.node)?;
            Ok((count(&log, "pod withdrawn") >= count(&log, "pod enrolled")).then_some(()))
        })
    }

    fn wait_mesh(&self, pod: &Pod, inside: bool) -> anyhow::Result<()> {
        let what = format!("{} to be {} the mesh", pod.name, if inside { "in" } else { "out of" });
        let done =
            host::wait_for(PATIENCE, &what, || Ok((self.enrolled(pod) == inside).then_some(())));
        done.with_context(|| {
            let log = self.agent_log(&pod.node).unwrap_or_default();
            format!("log of the agent of {}:\n{}\n", pod.node, last_lines(&log, 20))
        })
    }
}
