//! `cargo xtask demo --scenario NAME`: one thing that the mesh does for applications, shown live.
//! Each scenario is a file of its own; what it applies is in `deploy/samples`.
//!
//! Invariant: what a scenario says of the mesh is counted from answers or asked of the agents, and
//! ends it with an error where it is not so.

mod breaker;
mod canary;
mod cascade;
mod faults;
mod mirror;
mod ratelimit;
mod sticky;

use std::time::Instant;

use clap::ValueEnum;

use super::screen::Screen;
use super::stage::{NODES, Stage};
use super::{DemoArgs, how_to_enter, verdicts};
use crate::lab::server::{ServeOptions, Served};

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Weights of two versions are moved while requests flow
    Canary,
    /// Users keep their version and pod, also when weights are moved
    Sticky,
    /// Requests are delayed and aborted on purpose
    Faults,
    /// A pod that fails is left out, tried again, and left out for longer
    Breaker,
    /// A slow service takes those before it along, until there are rules
    Cascade,
    /// A second version gets a copy of each request, and may do with it what it wants
    Mirror,
    /// A caller of low priority is held to its rate
    Ratelimit,
}

/// Runs a scenario.
///
/// # Errors
/// What is missing on this machine, what did not come up, or what was not as it should be.
pub(super) fn run(scenario: Scenario, args: &DemoArgs) -> anyhow::Result<()> {
    crate::setup::run_setup(&crate::setup::SetupArgs::default())?;
    let built = crate::build::all()?;
    let start = Instant::now();
    let mut screen = Screen::new(args.record.as_deref())?;
    screen
        .heading(&format!("Malha: {}, in a mesh of two nodes on this machine", scenario.title()))?;
    let lab = Served::start(&ServeOptions {
        name: args.name.clone(),
        nodes: NODES.len(),
        workers: 2,
        agent: Some(built.mesh_agent),
    })?;
    let mut stage = Stage { lab, screen, claims: Vec::new() };
    scenario.play(&mut stage)?;
    let Stage { mut lab, mut screen, claims } = stage;
    verdicts(&mut screen, &claims)?;
    if args.keep {
        lab.keep()?;
        screen.line("")?;
        return how_to_enter(&args.name, scenario.try_this())
            .iter()
            .try_for_each(|line| screen.line(line));
    }
    lab.down()?;
    let seconds = start.elapsed().as_secs_f64();
    screen.line(&format!("  Everything is removed again ({seconds:.0} s in all)."))
}

impl Scenario {
    fn title(self) -> &'static str {
        match self {
            Self::Canary => "a canary",
            Self::Sticky => "sticky users",
            Self::Faults => "faults on purpose",
            Self::Breaker => "a circuit breaker",
            Self::Cascade => "a slow service behind two others",
            Self::Mirror => "a mirror",
            Self::Ratelimit => "a rate limit",
        }
    }

    fn play(self, stage: &mut Stage) -> anyhow::Result<()> {
        match self {
            Self::Canary => canary::play(stage),
            Self::Sticky => sticky::play(stage),
            Self::Faults => faults::play(stage),
            Self::Breaker => breaker::play(stage),
            Self::Cascade => cascade::play(stage),
            Self::Mirror => mirror::play(stage),
            Self::Ratelimit => ratelimit::play(stage),
        }
    }

    /// What the client may ask in a mesh that was kept, and rules to try.
    fn try_this(self) -> [&'static str; 2] {
        match self {
            Self::Canary => ["nginx-service:8000", "nginx-90-10.yaml"],
            Self::Sticky => ["-H x-user:me shop", "sticky/rules-80-20.yaml"],
            Self::Faults => ["nginx-service:8000", "faults/delay.yaml"],
            Self::Breaker => ["-i shop", "breaker/rule.yaml"],
            Self::Cascade => ["a", "cascade/c-slow.yaml"],
            Self::Mirror => ["shop", "mirror/rule.yaml"],
            Self::Ratelimit => ["b", "ratelimit/limit.yaml"],
        }
    }
}
