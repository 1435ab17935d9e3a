//! Two nodes of one core each, a pair of pods in the mesh and the same pair outside it, with the
//! rivals between the latter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::cpu;
use super::rivals::{self, Places, Running};
use crate::build::Built;
use crate::lab::{Conversation, Lab, Pod};
use crate::tool::output;

const PODS: &str = include_str!("../../../bench/peers/pods.yaml");
/// Namespace and the values of its labels `istio.io/dataplane-mode` and `malha.dev/same-node`.
const NAMESPACES: [(&str, &str, &str); 4] = [
    ("mesh", "malha", "proxied"),
    ("shaped", "malha", "proxied"),
    ("direct", "malha", "direct"),
    ("plain", "none", "proxied"),
];
/// Retries, time-outs, limits, outlier detection and a mirror for the servers of `shaped`.
const SHAPED: &str = include_str!("../../../bench/peers/shaped.yaml");

/// How many threads serve in each agent and in each rival, and on which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// Data threads of each agent, and threads or processes of each rival.
    pub(super) workers: usize,
    /// Whether a node has only one core: the client's node the first, the server's the second.
    pub(super) pinned: bool,
}

impl Setting {
    /// The fair one for figures by processor time: one worker each, one core for each node.
    pub(super) const PINNED: Self = Self { workers: 1, pinned: true };
    /// Two workers each, wherever the kernel puts them.
    pub(super) const UNPINNED: Self = Self { workers: 2, pinned: false };
}

/// What lies between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing: pods outside the mesh.
    Direct,
    /// The mesh.
    Mesh,
    /// The mesh with another build of the agent, on a ground of its own.
    OtherMesh,
    /// The mesh, in a namespace whose routes and destinations ask for much.
    Shaped,
    /// The mesh, in a namespace whose pods of one node reach each other past the agent.
    PastAgent,
    /// A proxy or a pair of them between pods outside the mesh.
    Rival(&'static str),
}

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// On the client's node.
    Near,
    /// On the other.
    Far,
}

/// One run's figures.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The load generator's report.
    pub(super) report: Value,
    /// Processor seconds of what lies between.
    pub(super) proxies: f64,
    /// The same, and of client and server.
    pub(super) path: f64,
    /// Resident memory of what lies between at the end, in KiB.
    pub(super) memory: u64,
}

/// The lab and what runs in it.
pub(super) struct Ground {
    // Before the lab: its processes are in the lab's pods.
    rivals: BTreeMap<&'static str, Running>,
    lab: Lab,
    load: String,
    setting: Setting,
}

impl Ground {
    /// Makes the lab, starts the pods, enrolls those in the mesh and starts the rivals among `ways`.
    pub(super) fn new(built: &Built, setting: Setting, ways: &[Way]) -> anyhow::Result<Self> {
        let lab = Lab::builder()
            .nodes(2)
            .workers(setting.workers)
            .log_level("warn,mesh_agent::agent=info")
            .agent(&built.mesh_agent)
            .build()?;
        let is_shaped = ways.contains(&Way::Shaped);
        let wanted = |name: &str| is_shaped || name != namespace(Way::Shaped);
        for (namespace, mode, same_node) in NAMESPACES.into_iter().filter(|(name, ..)| wanted(name))
        {
            let pods = PODS.replace("NAMESPACE", namespace).replace("MODE", mode);
            let pods = pods.replace("SAME_NODE", same_node);
            lab.apply(&pods.replace("ECHO", &path(&built.echo)))?;
        }
        if is_shaped {
            lab.apply(SHAPED)?;
        }
        lab.wait_all_ready()?;
        let mut ground = Self { rivals: BTreeMap::new(), lab, load: path(&built.load), setting };
        let pods: Vec<Pod> = ["mesh", "shaped", "direct"]
            .iter()
            .filter(|name| wanted(name))
            .flat_map(|namespace| {
                ["client", "far", "near"].map(|name| format!("{namespace}/{name}"))
            })
            .map(|name| ground.lab.pod(&name))
            .collect::<anyhow::Result<_>>()?;
        pods.iter().try_for_each(|pod| ground.lab.wait_enrolled(pod))?;
        ground.pin_all()?;
        let plain = |name: &str| ground.lab.pod(&format!("plain/{name}"));
        let places = Places {
            lab: &ground.lab,
            client: &plain("client")?,
            far: &plain("far")?,
            near: &plain("near")?,
            pin: [ground.pin("node1"), ground.pin("node2")],
            workers: setting.workers,
        };
        ground.rivals = rivals::start(&places, ways)?;
        Ok(ground)
    }

    /// Words before a command that keep it on a node's core.
    fn pin(&self, node: &str) -> Vec<String> {
        if !self.setting.pinned {
            return Vec::new();
        }
        vec!["taskset".into(), "--cpu-list".into(), core(node).into()]
    }

    /// Agents and servers stay on their node's core.
    fn pin_all(&self) -> anyhow::Result<()> {
        if !self.setting.pinned {
            return Ok(());
        }
        let agents = self.lab.nodes();
        let agents = agents.iter().map(|node| (self.lab.agent_pid(node), node.clone()));
        let pods = self.lab.pods();
        let pods = pods.iter().map(|pod| (pod.pid(), pod.node.clone()));
        for (pid, node) in agents.chain(pods) {
            let pid = pid.context("a process of the lab has ended")?;
            let mut taskset = Command::new("taskset");
            taskset.args(["--all-tasks", "--pid", "--cpu-list", core(&node), &pid.to_string()]);
            output(&mut taskset)?;
        }
        Ok(())
    }

    /// Runs the load generator with `words`, `TARGET` in them replaced by the address to connect to.
    pub(super) fn run(
        &self,
        way: Way,
        server: Server,
        (port, words): (u16, &[&str]),
    ) -> anyhow::Result<Sample> {
        let client = self.client(way)?;
        let target = self.target(way, server, port)?.to_string();
        let (proxies, server) = (self.proxies(way)?, self.server(way, server)?);
        let mut line = self.pin("node1");
        line.push(self.load.clone());
        line.extend(words.iter().map(|word| word.replace("TARGET", &target)));
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let before = (cpu::seconds(&proxies), cpu::seconds(&server));
        let output = client
            .command(&line)?
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {line:?}"))?;
        let after = (cpu::seconds(&proxies), cpu::seconds(&server));
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{line:?}: {}: {}", output.status, errors.trim());
        let report: Value = serde_json::from_str(text.lines().last().unwrap_or_default())
            .with_context(|| format!("read the report of {line:?}: {text}"))?;
        let own = report.get("cpu_seconds").and_then(Value::as_f64).unwrap_or(0.0);
        let proxies_took = after.0 - before.0;
        Ok(Sample {
            report,
            proxies: proxies_took,
            path: proxies_took + after.1 - before.1 + own,
            memory: cpu::memory(&proxies),
        })
    }

    /// The pod that makes the load.
    fn client(&self, way: Way) -> anyhow::Result<Pod> {
        self.lab.pod(&format!("{}/client", namespace(way)))
    }

    /// The lab that it is in.
    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Starts a load generator beside what is measured, in a mode that tells its steps; it ends
    /// with the value.
    pub(super) fn beside(&self, way: Way, words: &[&str]) -> anyhow::Result<Conversation> {
        self.client(way)?.converse(&[&[self.load.as_str()], words].concat())
    }

    /// Where the client connects.
    pub(super) fn target(&self, way: Way, server: Server, port: u16) -> anyhow::Result<SocketAddr> {
        if let Way::Rival(name) = way {
            let running = self.rivals.get(name).with_context(|| format!("no rival {name}"))?;
            return Ok(running.entrance);
        }
        let service = format!("{}/{}", namespace(way), place(server));
        let ip = self.lab.service_ips(&service)?.first().copied();
        Ok(SocketAddr::new(ip.with_context(|| format!("{service} has no address"))?, port))
    }

    /// Resident memory of the agents, KiB: of the client's node and of the server's.
    pub(super) fn agents_memory(&self) -> [u64; 2] {
        ["node1", "node2"].map(|node| self.lab.agent_memory_kib(node))
    }

    /// Processes of what lies between client and server.
    pub(super) fn proxies(&self, way: Way) -> anyhow::Result<Vec<u32>> {
        Ok(match way {
            Way::Direct => Vec::new(),
            Way::Mesh | Way::OtherMesh | Way::Shaped | Way::PastAgent => {
                let agents = self.lab.nodes();
                agents.iter().filter_map(|node| self.lab.agent_pid(node)).collect()
            }
            Way::Rival(name) => {
                self.rivals.get(name).with_context(|| format!("no rival {name}"))?.processes()
            }
        })
    }

    fn server(&self, way: Way, server: Server) -> anyhow::Result<Vec<u32>> {
        let pod = self.lab.pod(&format!("{}/{}", namespace(way), place(server)))?;
        Ok(cpu::family(pod.pid().context("the server has ended")?))
    }
}

fn namespace(way: Way) -> &'static str {
    match way {
        Way::Mesh | Way::OtherMesh => "mesh",
        Way::Shaped => "shaped",
        Way::PastAgent => "direct",
        Way::Direct | Way::Rival(_) => "plain",
    }
}

fn place(server: Server) -> &'static str {
    match server {
        Server::Near => "near",
        Server::Far => "far",
    }
}

fn core(node: &str) -> &'static str {
    if node == "node1" { "0" } else { "1" }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
