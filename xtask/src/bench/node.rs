//! What an agent costs by itself: the time until it serves, a node full of pods while nothing
//! happens, and how the connections of one hot pod lie on its workers.
//!
//! It has a lab of its own, with more workers than the other scenarios, and no rivals.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::cpu;
use super::ground::{Ground, Setting, Way};
use super::report::{median, spread};
use super::scenario::{Extent, SCENARIOS};
use crate::build::Built;
use crate::lab::wait_for;

/// Names of what is measured here, as `--scenario` takes them, and what they are.
pub(super) const NAMES: [(&str, &str); 3] = [
    (
        "start",
        "time from the start of an agent's process until it serves, with 4 pods and with 250",
    ),
    ("pods", "250 pods, 4 workers: descriptors, memory and processor time while nothing happens"),
    ("hot-pod", "64 connections of one of 250 pods on an agent with 4 workers: time by worker"),
];

const SETTING: Setting = Setting { workers: 4, pinned: false };
/// The node that is filled, and measured.
const NODE: &str = "node1";
/// Pods in the mesh on it, [`OWN`] among them.
const PODS: usize = 250;
/// Pods of every lab for measurements that are in the mesh there.
const OWN: usize = 4;
/// Deployments that the other pods belong to, each with a Service and a service account.
const GROUPS: usize = 6;
const GROUP: &str = include_str!("../../../bench/peers/group.yaml");
const STARTS: usize = 20;
/// The traffic of the hot pod: 64 connections.
const HOT: &str = "l4-requests";
/// Seconds over which an idle agent is watched.
const WATCH: f64 = 20.0;
/// Enrolling a full node on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything of this kind in a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Node {
    pub(super) starts: Vec<Starts>,
    pub(super) quiet: Vec<Quiet>,
    pub(super) hot: Vec<Hot>,
}

/// Starts of an agent whose configuration and pins are there.
#[derive(Debug, Serialize)]
pub(super) struct Starts {
    /// Pods of the node in the mesh, enrolled before it is ready.
    pub(super) pods: usize,
    /// From the start of its process, those that lead into its namespace and cgroup included.
    pub(super) milliseconds: Vec<f64>,
}

/// An agent while nothing happens.
#[derive(Debug, Serialize)]
pub(super) struct Quiet {
    pub(super) pods: usize,
    pub(super) workers: usize,
    pub(super) descriptors: usize,
    /// Resident memory.
    pub(super) kib: u64,
    /// Processor time.
    pub(super) ms_per_second: f64,
}

/// The workers of one agent while one pod is busy.
#[derive(Debug, Serialize)]
pub(super) struct Hot {
    /// Which agent.
    pub(super) agent: &'static str,
    /// Processor seconds by worker.
    pub(super) seconds: BTreeMap<String, f64>,
    /// The busiest worker's time by the mean.
    pub(super) most_by_mean: f64,
}

/// Measures those that are wanted.
pub(super) fn measure(
    built: &Built,
    extent: Extent,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Node> {
    let (pods, starts, watch) =
        if extent.tiny { (OWN + GROUPS, 1, 0.2) } else { (PODS, STARTS, WATCH) };
    let ground = Ground::new(built, SETTING, &[])?;
    let mut node = Node::default();
    let mut look = |pods: usize| -> anyhow::Result<()> {
        if wanted("start") {
            node.starts.push(start(&ground, pods, starts)?);
        }
        if wanted("pods") {
            node.quiet.push(quiet(&ground, pods, watch)?);
        }
        Ok(())
    };
    look(OWN)?;
    fill(&ground, pods)?;
    look(pods)?;
    if wanted("hot-pod") {
        node.hot = hot(&ground, extent)?;
    }
    Ok(node)
}

/// Puts pods on the node until so many are in the mesh.
fn fill(ground: &Ground, pods: usize) -> anyhow::Result<()> {
    let each = (pods - OWN) / GROUPS;
    let groups = (1..=GROUPS).map(|number| {
        GROUP.replace("NUMBER", &number.to_string()).replace("REPLICAS", &each.to_string())
    });
    let lab = ground.lab();
    lab.apply(&groups.collect::<Vec<_>>().join("---\n"))?;
    let list = || lab.pods().into_iter().filter(|pod| pod.node == NODE && lab.enrolled(pod));
    wait_for(PATIENCE, &format!("{pods} pods to be in the mesh"), || {
        Ok((list().count() == pods).then_some(()))
    })?;
    lab.wait_all_ready()
}

/// Starts the agent again and again.
fn start(ground: &Ground, pods: usize, count: usize) -> anyhow::Result<Starts> {
    let lab = ground.lab();
    let once = |_| {
        lab.restart_agent(NODE)?;
        let took = lab.agent_start_time(NODE)?;
        Ok(took.as_secs_f64() * 1e3)
    };
    let milliseconds = (0..count).map(once).collect::<anyhow::Result<_>>()?;
    Ok(Starts { pods, milliseconds })
}

fn quiet(ground: &Ground, pods: usize, seconds: f64) -> anyhow::Result<Quiet> {
    let agent = ground.lab().agent_pid(NODE).context("the agent has ended")?;
    // What a start or new pods have left to do is not idleness.
    std::thread::park_timeout(Duration::from_secs_f64(seconds / 4.0));
    let (before, start) = (cpu::seconds(&[agent]), std::time::Instant::now());
    std::thread::park_timeout(Duration::from_secs_f64(seconds));
    let spent = cpu::seconds(&[agent]) - before;
    Ok(Quiet {
        pods,
        workers: SETTING.workers,
        descriptors: fs::read_dir(format!("/proc/{agent}/fd"))?.count(),
        kib: cpu::memory(&[agent]),
        ms_per_second: spent * 1e3 / start.elapsed().as_secs_f64(),
    })
}

fn hot(ground: &Ground, extent: Extent) -> anyhow::Result<Vec<Hot>> {
    let scenario = SCENARIOS.iter().find(|one| one.name == HOT).context("no traffic")?;
    let agents = ground.proxies(Way::Mesh)?;
    let before: Vec<_> = agents.iter().map(|agent| cpu::workers(*agent)).collect();
    scenario.run(ground, Way::Mesh, extent)?;
    let after = agents.iter().map(|agent| cpu::workers(*agent));
    let ends = ["client's", "server's"];
    ends.into_iter()
        .zip(before.into_iter().zip(after))
        .map(|(agent, figures)| Hot::new(agent, figures.0, figures.1))
        .collect()
}

impl Hot {
    fn new(
        agent: &'static str,
        before: BTreeMap<String, f64>,
        after: BTreeMap<String, f64>,
    ) -> anyhow::Result<Self> {
        let since = |(name, seconds): (String, f64)| {
            let spent = seconds - before.get(&name).copied().unwrap_or(0.0);
            (name, spent)
        };
        let seconds: BTreeMap<String, f64> = after.into_iter().map(since).collect();
        ensure!(!seconds.is_empty(), "the {agent} agent has no workers");
        let mean = seconds.values().sum::<f64>() / seconds.len() as f64;
        let most = seconds.values().copied().fold(0.0, f64::max);
        Ok(Self { agent, seconds, most_by_mean: most / mean })
    }

    fn sentence(&self) -> String {
        let each: Vec<String> =
            self.seconds.values().map(|seconds| format!("{seconds:.2}")).collect();
        let reached = if self.most_by_mean <= 1.5 { "reached" } else { "not reached" };
        format!(
            "64 connections of one pod, workers of the {} agent: {} s; the busiest by the mean: \
             {:.2}; aim 1.50: {reached}",
            self.agent,
            each.join(", "),
            self.most_by_mean
        )
    }
}

impl Starts {
    fn sentence(&self) -> String {
        let (least, most) = spread(&self.milliseconds);
        let middle = median(self.milliseconds.clone());
        let aim = match (self.pods, middle <= 30.0) {
            (OWN, true) => "; aim 30: reached",
            (OWN, false) => "; aim 30: not reached",
            _ => "",
        };
        format!(
            "{} starts with {} pods: ready after {middle:.1} ms ({least:.1}-{most:.1}){aim}",
            self.milliseconds.len(),
            self.pods
        )
    }
}

impl Quiet {
    fn sentence(&self) -> String {
        format!(
            "{} pods, {} workers, nothing happens: {} descriptors, {:.1} MiB, {:.1} ms of \
             processor time a second",
            self.pods,
            self.workers,
            self.descriptors,
            self.kib as f64 / 1024.0,
            self.ms_per_second
        )
    }
}

impl Node {
    /// All that was measured, a sentence each.
    pub(super) fn sentences(&self) -> Vec<String> {
        let starts = self.starts.iter().map(Starts::sentence);
        starts
            .chain(self.quiet.iter().map(Quiet::sentence))
            .chain(self.hot.iter().map(Hot::sentence))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_fill_the_node() {
        assert_eq!((PODS - OWN) % GROUPS, 0);
    }

    #[test]
    fn the_busiest_worker_is_compared_with_the_mean() {
        let of = |figures: [f64; 2]| {
            let names = ["worker-0", "worker-1"].map(str::to_owned);
            names.into_iter().zip(figures).collect::<BTreeMap<_, _>>()
        };
        let hot = Hot::new("client's", of([1.0, 1.0]), of([4.0, 2.0])).unwrap();
        assert!((hot.most_by_mean - 1.5).abs() < 1e-9, "{hot:?}");
        assert!(
            hot.sentence()
                .ends_with("3.00, 1.00 s; the busiest by the mean: 1.50; aim 1.50: reached")
        );
        Hot::new("client's", BTreeMap::new(), BTreeMap::new()).unwrap_err();
    }

    #[test]
    fn only_a_small_node_has_an_aim() {
        let starts = |pods, ms| Starts { pods, milliseconds: vec![ms, 40.0, 20.0] }.sentence();
        assert_eq!(
            starts(OWN, 25.0),
            "3 starts with 4 pods: ready after 25.0 ms (20.0-40.0); aim 30: reached"
        );
        assert!(starts(OWN, 31.0).ends_with("not reached"));
        assert!(starts(PODS, 31.0).ends_with("(20.0-40.0)"));
    }
}
