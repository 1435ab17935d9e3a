//! `cargo xtask bench`: what the mesh costs beside no mesh, nginx, haproxy and Envoy, in one run on
//! the user's own machine.
//!
//! Every round takes each way in turn, so that what else happens on the machine meets all of them;
//! ratios are made within a round. The mesh is measured with its capture.

mod cpu;
mod ground;
mod idle;
mod node;
mod profile;
mod report;
mod rivals;
mod scenario;
mod tools;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;

use crate::build::{self, BuildArgs, Built};
use crate::setup::{SetupArgs, run_setup};
use crate::tool::say;
use ground::{Ground, Setting, Way};
use node::{NAMES, Node};
use report::{Measured, Report};
use scenario::{Extent, Outcome, SCENARIOS, Scenario};

/// Connections of the idle measurement: two descriptors each, and a process may have 20,000.
const IDLE: usize = 8_000;

/// Options of `cargo xtask bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Only show that every scenario completes: no figures worth keeping
    #[arg(long)]
    smoke: bool,
    /// Only these scenarios (`--list` has them)
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// How often each scenario takes each way
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a timed run
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Workers of each agent and each rival, on any core; without it one, and one core for each
    /// node, but for scenarios that say otherwise
    #[arg(long)]
    workers: Option<usize>,
    /// Measure the mesh with this agent too, another build of it, in the same rounds
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["smoke", "profile"])]
    against: Option<PathBuf>,
    /// Show where the agents' time goes in one scenario: a flame graph below `target/bench`, and a
    /// table
    #[arg(long, value_name = "SCENARIO", conflicts_with_all = ["smoke", "scenario", "json", "markdown"])]
    profile: Option<String>,
    /// Write all figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write tables and charts as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Runs what the command line asks for.
///
/// # Errors
/// Something is missing on this machine, does not build, or does not complete.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.list {
        names().for_each(|(name, about)| say(&format!("{name:<12} {about}")));
        return Ok(());
    }
    for name in &args.scenario {
        ensure!(names().any(|(known, _)| known == name), "no scenario {name}: see --list");
    }
    let setting = args.workers.map(|workers| Setting { workers, pinned: false });
    if let Some(name) = &args.profile {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        let scenario = scenario.with_context(|| format!("no scenario {name}: see --list"))?;
        return profile::run(scenario, setting.unwrap_or(scenario.setting), args.seconds);
    }
    run_setup(&SetupArgs::default())?;
    if args.smoke {
        return smoke();
    }
    let built = build::with(BuildArgs { release: true })?;
    let extent = Extent { rounds: args.rounds, seconds: args.seconds, tiny: false };
    let other = args.against.clone().map(|mesh_agent| Built { mesh_agent, ..built.clone() });
    let report = measure((&built, other.as_ref()), setting, extent, &args.scenario)?;
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(file) = &args.markdown {
        std::fs::write(file, report.markdown())
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Every scenario over every way once, as short as can be; and the tools by themselves.
///
/// # Errors
/// Something does not build or does not complete.
pub fn smoke() -> anyhow::Result<()> {
    let built = build::all()?;
    tools::check(&built)?;
    // One for all: nothing is started twice.
    let setting = Setting::UNPINNED;
    let extent = Extent { rounds: 1, seconds: 0.2, tiny: true };
    measure((&built, None), Some(setting), extent, &[]).map(drop)
}

/// Everything that `--scenario` takes, and what it is.
fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    let scenarios = SCENARIOS.iter().map(|scenario| (scenario.name, scenario.about));
    scenarios
        .chain([("idle", "connections through the mesh that carry nothing: memory")])
        .chain(NAMES)
}

/// Measures the scenarios that are named; all without a name. Without a setting each has its own. With
/// another build the mesh is measured with that too.
fn measure(
    (built, other): (&Built, Option<&Built>),
    setting: Option<Setting>,
    extent: Extent,
    only: &[String],
) -> anyhow::Result<Report> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    let mut report = Report {
        machine: machine(setting)?,
        scenarios: Vec::new(),
        idle: None,
        node: Node::default(),
    };
    report.machine.iter().for_each(|line| say(line));
    let of = |one: &Scenario| setting.unwrap_or(one.setting);
    let scenarios: Vec<&Scenario> = SCENARIOS.iter().filter(|one| wanted(one.name)).collect();
    // Those of one setting stand together in the list, and share its lab.
    for scenarios in scenarios.chunk_by(|one, other| of(one) == of(other)) {
        let ways = scenarios.iter().flat_map(|scenario| scenario.ways).copied();
        let setting = scenarios.first().map_or(Setting::PINNED, |one| of(one));
        let ground = Ground::new(built, setting, &ways.collect::<Vec<_>>())?;
        let other = other.map(|other| Ground::new(other, setting, &[])).transpose()?;
        for scenario in scenarios {
            let measured = rounds(scenario, (&ground, other.as_ref()), extent)?;
            say(&measured.table());
            report.scenarios.push(measured);
        }
    }
    if wanted("idle") {
        let ground = Ground::new(built, setting.unwrap_or(Setting::PINNED), &[])?;
        let idle = idle::measure(&ground, if extent.tiny { 50 } else { IDLE })?;
        say(&idle.sentence());
        report.idle = Some(idle);
    }
    if NAMES.iter().any(|(name, _)| wanted(name)) {
        report.node = node::measure(built, extent, wanted)?;
        report.node.sentences().iter().for_each(|sentence| say(sentence));
    }
    Ok(report)
}

fn rounds(
    scenario: &Scenario,
    (ground, other): (&Ground, Option<&Ground>),
    extent: Extent,
) -> anyhow::Result<Measured> {
    let also = other.map(|_| Way::OtherMesh);
    let mut ways: Vec<(Way, Vec<Outcome>)> =
        scenario.ways.iter().copied().chain(also).map(|way| (way, Vec::new())).collect();
    for _ in 0..extent.rounds {
        for (way, outcomes) in &mut ways {
            let what = || format!("{} over {}", scenario.name, way.name());
            let ground = other.filter(|_| *way == Way::OtherMesh).unwrap_or(ground);
            let outcome = scenario.run(ground, *way, extent).with_context(what)?;
            ensure!(outcome.rate > 0.0, "{}: nothing was done", what());
            outcomes.push(outcome);
        }
    }
    Ok(Measured::new(scenario, &ways))
}

fn machine(setting: Option<Setting>) -> anyhow::Result<Vec<String>> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = nix::sys::utsname::uname()?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let place = match setting {
        None => {
            "one worker of each proxy, one core for each node, but where a scenario says so".into()
        }
        Some(Setting { workers, .. }) => format!("{workers} workers of each proxy, on any core"),
    };
    let mut lines = vec![
        format!("{cores} cores, {}", model.map_or("unknown", |(_, model)| model)),
        format!("Linux {}", kernel.release().to_string_lossy()),
        place,
    ];
    lines.extend(rivals::versions()?);
    Ok(lines)
}
