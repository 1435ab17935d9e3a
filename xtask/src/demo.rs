//! `cargo xtask demo`: unchanged pods on two nodes talk through the mesh, a `VirtualService` moves
//! the traffic while it flows, and the wire between the nodes shows only TLS 1.3.
//!
//! Everything shown is asked of the agents or counted from answers. What was not as it should be
//! ends the demo with an error. The mesh is that of `cargo xtask lab`, so `--keep` leaves one that
//! its commands work on.

mod kube;
mod mesh;
mod scenario;
mod screen;
mod stage;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::lab::server::{ServeOptions, Served, WireSummary};
use crate::tool::workspace;
use mesh::{CLIENT, Counts, SERVICE, Workload};
use scenario::Scenario;
use screen::{Screen, bar, boxed, wire};

/// Port of the tunnels (HBONE).
const TUNNEL_PORT: u16 = 15008;

/// State of a pod that is captured and announced.
const IN_MESH: &str = "in mesh";

/// Batches of a phase.
const BATCHES: usize = 8;

/// Length of a batch.
const BATCH_SECONDS: f64 = 0.5;

/// Requests a second of a batch. They come one after the other: least request, the default where no
/// rule says otherwise, then has no reason to prefer the version that answers sooner.
const BATCH_RATE: f64 = 1000.0;

/// Requests a second of the load that runs through all phases, over one connection.
const STEADY_RATE: f64 = 50.0;

/// How far a share may be from what is asked for, in standard deviations of as many draws.
const SIGMAS: f64 = 5.0;

/// How much more without a rule: least request avoids the version that is just answering the steady
/// load, which is more often the one on the other node.
const TILT: f64 = 0.05;

/// Requests that a phase must have made to say something.
const FEWEST: u64 = 200;

/// How long a change of rules may take until the agent has it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of `cargo xtask demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Leave the mesh up, and say how to enter a pod
    #[arg(long)]
    keep: bool,
    /// Write the transcript to this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Show one thing: what the mesh does for applications
    #[arg(long, value_enum, conflicts_with = "kube")]
    scenario: Option<Scenario>,
    /// On a real cluster, made of this machine's namespaces, with `kubectl` and Helm
    #[arg(long)]
    kube: bool,
    /// Name of the lab, where several are up at once
    #[arg(long, default_value = "demo")]
    name: String,
}

/// One part of the demo, and what it must show.
struct Phase {
    title: &'static str,
    /// Share of version A.
    share: f64,
    /// Tolerance beside chance.
    tilt: f64,
}

const PHASES: [Phase; 3] = [
    Phase { title: "1. No rule: any endpoint of the Service", share: 0.5, tilt: TILT },
    Phase { title: "2. VirtualService 90/10", share: 0.9, tilt: 0.0 },
    Phase { title: "3. The rules are deleted", share: 0.5, tilt: TILT },
];

/// A claim and whether it held.
type Claim = (bool, String);

/// What is needed on the way.
struct Demo {
    lab: Served,
    screen: Screen,
    pods: Vec<Workload>,
    claims: Vec<Claim>,
}

/// Runs the demo.
///
/// # Errors
/// What is missing on this machine, what did not come up, or what was not as it should be.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    if args.kube {
        return kube::run(&args);
    }
    if let Some(scenario) = args.scenario {
        return scenario::run(scenario, &args);
    }
    crate::setup::run_setup(&crate::setup::SetupArgs::default())?;
    let built = crate::build::all()?;
    let start = Instant::now();
    let mut screen = Screen::new(args.record.as_deref())?;
    screen.heading("Malha: a mesh of two nodes on this machine")?;
    let lab = Served::start(&ServeOptions {
        name: args.name.clone(),
        nodes: 2,
        workers: 2,
        agent: Some(built.mesh_agent),
    })?;
    // Before the first pod, so that every handshake is in it.
    lab.capture_wire("node1")?;
    lab.apply(&sample("nginx-ab.yaml")?)?;
    lab.wait_enrolled()?;
    let pods = pods_in_mesh(&lab)?;
    let mut demo = Demo { lab, screen, pods, claims: Vec::new() };
    demo.topology(start)?;
    demo.traffic()?;
    demo.wire()?;
    demo.finish(&args, start)
}

/// The pods, once the client's agent knows that all are in the mesh: it is told by the others' agents.
fn pods_in_mesh(lab: &Served) -> anyhow::Result<Vec<Workload>> {
    let start = Instant::now();
    loop {
        let pods = mesh::workloads(lab)?;
        let all = !pods.is_empty() && pods.iter().all(|pod| pod.state == IN_MESH);
        // What is missing then shows in the picture, and fails.
        if all || start.elapsed() > PATIENCE {
            return Ok(pods);
        }
    }
}

fn sample(name: &str) -> anyhow::Result<String> {
    let file = workspace().join("deploy/samples").join(name);
    std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
}

impl Demo {
    fn topology(&mut self, start: Instant) -> anyhow::Result<()> {
        let mut nodes: Vec<&String> = self.pods.iter().map(|pod| &pod.node).collect();
        nodes.dedup();
        let mut lines = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                lines.push(wire("HBONE: HTTP/2 CONNECT in mutual TLS, TCP port 15008"));
            }
            let pods = self.pods.iter().filter(|pod| pod.node == **node);
            let rows: Vec<String> = pods
                .map(|pod| {
                    let ip = pod.ips.first().map_or("", String::as_str);
                    format!("{:<24} {ip:<10} {:<8} {}", pod.name, pod.state, pod.identity)
                })
                .collect();
            lines.extend(boxed(node, &rows, index > 0, index + 1 < nodes.len()));
        }
        self.screen.line("")?;
        lines.iter().try_for_each(|line| self.screen.line(line))?;
        let seconds = start.elapsed().as_secs_f64();
        self.screen.line(&format!(
            "  Up in {seconds:.1} s. The pods are as they would be without the mesh: no sidecar, \
             no change."
        ))?;
        let captured = self.pods.iter().filter(|pod| pod.state == IN_MESH).count();
        let good = captured == 3 && nodes.len() == 2;
        self.claim(good, format!("{captured} pods on {} nodes are in the mesh", nodes.len()));
        Ok(())
    }

    /// All phases, with one load that goes through them.
    fn traffic(&mut self) -> anyhow::Result<()> {
        let steady = mesh::steady(&self.lab, STEADY_RATE)?;
        self.phase(&PHASES[0])?;
        self.peers()?;
        self.change(|lab| lab.apply(&sample("nginx-90-10.yaml")?), &[("a", 90), ("b", 10)])?;
        self.phase(&PHASES[1])?;
        let delete = |lab: &Served| {
            lab.delete("VirtualService", "default", "nginx")?;
            lab.delete("DestinationRule", "default", "nginx")
        };
        self.change(delete, &[("", 1)])?;
        self.phase(&PHASES[2])?;
        let (counts, connections) = steady.end()?;
        self.claim(
            counts.failed == 0 && counts.total() > 0 && connections == 1,
            format!(
                "through all changes: {} requests on {connections} connection, {} failed",
                counts.total() + counts.failed,
                counts.failed
            ),
        );
        Ok(())
    }

    fn phase(&mut self, phase: &Phase) -> anyhow::Result<()> {
        self.screen.heading(phase.title)?;
        let mut seen = Counts::default();
        for number in 1..=BATCHES {
            let batch = mesh::batch(&self.lab, BATCH_SECONDS, BATCH_RATE)?;
            seen += batch;
            let line = format!(
                "  batch {number}: {:>4} requests: A {:>3}, B {:>3}, failed {}",
                batch.total() + batch.failed,
                batch.a,
                batch.b,
                batch.failed
            );
            self.screen.progress(&line, &self.picture(seen))?;
        }
        self.screen.settle(&self.picture(seen))?;
        let total = seen.total();
        let allowed = phase.allowed(total);
        let share = seen.a as f64 / total.max(1) as f64;
        let good = total >= FEWEST && (share - phase.share).abs() <= allowed;
        self.claim(
            good && seen.failed == 0,
            format!(
                "{}: {:.1} % to A of {total} requests ({:.0} % ± {:.1}), {} failed",
                phase.title,
                share * 100.0,
                phase.share * 100.0,
                allowed * 100.0,
                seen.failed
            ),
        );
        Ok(())
    }

    /// Who talks to whom, and how often so far.
    fn picture(&self, seen: Counts) -> Vec<String> {
        let identity = |name: &str| {
            let pod = self.pods.iter().find(|pod| pod.name.starts_with(name));
            pod.map_or_else(|| "?".to_owned(), |pod| format!("{:<46} {}", pod.identity, pod.node))
        };
        let client = identity("client");
        vec![
            format!("  {client}  asks {SERVICE}:8000"),
            format!("    -> {}", identity("nginx-a")),
            format!("       A {}", bar(seen.a, seen.total())),
            format!("    -> {}", identity("nginx-b")),
            format!("       B {}", bar(seen.b, seen.total())),
            format!("       failed {}", seen.failed),
        ]
    }

    /// Changes the rules under the steady load, and waits until the client's agent has them.
    fn change(
        &mut self,
        change: impl FnOnce(&Served) -> anyhow::Result<()>,
        wanted: &[(&str, u32)],
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        change(&self.lab)?;
        loop {
            let routes = mesh::routes(&self.lab)?;
            if routes.weights() == wanted {
                let by = match routes.virtual_service.as_str() {
                    "" => "no VirtualService".to_owned(),
                    name => format!("VirtualService {name}, {wanted:?}"),
                };
                let millis = start.elapsed().as_millis();
                self.screen.heading(&format!(
                    "While requests flow: after {millis} ms the agent of node1 routes by {by}"
                ))?;
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the rules are not in force: {routes:?}");
        }
    }

    /// Whom the server's agent has authenticated.
    fn peers(&mut self) -> anyhow::Result<()> {
        let client = self.pods.iter().find(|pod| pod.id() == CLIENT);
        let client = client.context("no client")?.identity.clone();
        let tunnels: Vec<_> = mesh::connections(&self.lab, "node2")?
            .into_iter()
            .filter(|open| open.direction == "inbound" && open.state == "tunnel")
            .collect();
        let mut peers: Vec<&str> = tunnels.iter().map(|tunnel| tunnel.peer.as_str()).collect();
        peers.sort_unstable();
        peers.dedup();
        if let Some(tunnel) = tunnels.first() {
            let from = tunnel.source.rsplit_once(':').map_or("", |(ip, _)| ip);
            self.screen.line(&format!(
                "  node2's agent: {} is asked at {} by {from}, which has proved to be {}",
                tunnel.workload, tunnel.destination, tunnel.peer
            ))?;
        }
        let good = peers == [client.as_str()];
        let peers = peers.join(", ");
        self.claim(good, format!("the peer that node2 has authenticated: {peers}"));
        Ok(())
    }

    /// The proof from the wire.
    fn wire(&mut self) -> anyhow::Result<()> {
        let texts = ["Full Cycle", SERVICE];
        let wire: WireSummary = self.lab.wire_summary(TUNNEL_PORT, &texts)?;
        self.screen.heading("On the wire between the nodes (tcpdump on node1's uplink)")?;
        self.screen.line(&format!(
            "  {} bytes of TCP payload on port {TUNNEL_PORT}, {} on other ports; connections \
             opened to {:?}",
            wire.bytes, wire.elsewhere, wire.ports
        ))?;
        let only = wire.ports == [TUNNEL_PORT] && wire.elsewhere == 0 && wire.bytes > 0;
        self.claim(only, format!("wire: only TCP port {TUNNEL_PORT}, {} bytes", wire.bytes));
        self.claim(wire.tls == ["TLS 1.3"], format!("wire: servers chose {:?}", wire.tls));
        let not_tls = format!("wire: {} directions that are not TLS records", wire.not_tls);
        self.claim(wire.not_tls == 0, not_tls);
        let clear = format!("wire: of {texts:?} in the clear: {:?}", wire.clear);
        self.claim(wire.clear.is_empty(), clear);
        Ok(())
    }

    fn claim(&mut self, good: bool, text: String) {
        self.claims.push((good, text));
    }

    fn finish(mut self, args: &DemoArgs, start: Instant) -> anyhow::Result<()> {
        verdicts(&mut self.screen, &self.claims)?;
        if args.keep {
            self.lab.keep()?;
            self.screen.line("")?;
            let try_this = ["nginx-service:8000", "nginx-90-10.yaml"];
            return how_to_enter(&args.name, try_this)
                .iter()
                .try_for_each(|line| self.screen.line(line));
        }
        self.lab.down()?;
        let seconds = start.elapsed().as_secs_f64();
        self.screen.line(&format!("  Everything is removed again ({seconds:.0} s in all)."))
    }
}

/// Shows what was claimed.
///
/// # Errors
/// A claim that did not hold.
fn verdicts(screen: &mut Screen, claims: &[Claim]) -> anyhow::Result<()> {
    screen.heading("What was seen")?;
    for (good, text) in claims {
        screen.verdict(*good, text)?;
    }
    let failed = claims.iter().filter(|(good, _)| !good).count();
    ensure!(failed == 0, "{failed} of {} were not as they should be", claims.len());
    Ok(())
}

impl Phase {
    /// How far the share of so many requests may be off.
    fn allowed(&self, requests: u64) -> f64 {
        let variance = self.share * (1.0 - self.share) / requests.max(1) as f64;
        SIGMAS * variance.sqrt() + self.tilt
    }
}

/// How to go on with a mesh that was kept; `asked` and `rules` are what to try.
fn how_to_enter(name: &str, [asked, rules]: [&str; 2]) -> Vec<String> {
    let lab =
        |command: &str, rest: &str| format!("    cargo xtask lab {command} --name {name} {rest}");
    vec![
        "  The mesh stays up:".to_owned(),
        lab("exec", &format!("client -- curl -s {asked}")),
        lab("exec", "client -- bash"),
        lab("apply", &format!("-f deploy/samples/{rules}")),
        lab("meshctl", "node1 -- workloads"),
        lab("down", "").trim_end().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_that_is_not_followed_is_noticed() {
        let [none, split, _] = PHASES;
        // Half of the traffic under a 90/10 rule, and 90/10 without one.
        assert!(split.allowed(4000) < 0.4 && none.allowed(4000) < 0.4);
        // Weights of 85/15 in place of 90/10.
        assert!(split.allowed(4000) < 0.05);
    }
}
