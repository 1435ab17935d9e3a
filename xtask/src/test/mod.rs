//! `cargo xtask test`: everything that must hold before a merge, in the order of speed.
//!
//! CI runs the same. Nothing is retried: a flaky test is a bug. Every stage runs even if one before
//! it failed, unless it needs what that one makes; the last line says `N passed, N failed`.
//!
//! The eBPF object is built before clippy, as the agent embeds it.

mod cargo_test;
mod skip;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};

pub use skip::{privileged, skipped};

use crate::setup::{SetupArgs, run_setup};
use crate::tool::{cargo, own_program, run, say, workspace};
use crate::{bench, build, tidy, vm};
use cargo_test::{Tests, Which, execute, programs};

/// Workspaces of their own beside the root's, as other compilers build them.
const OTHER_WORKSPACES: [&str; 2] = ["mesh-ebpf/Cargo.toml", "mesh-agent/fuzz/Cargo.toml"];

/// Test targets with a stage of their own; all others are unit tests.
const KERNEL_TARGETS: [&str; 2] = ["capture", "verifier"];
const LAB_TARGETS: [&str; 2] = ["lab", "cluster"];
const KUBE_TARGETS: [&str; 1] = ["kube"];
/// More than there are: they wait for each other themselves.
const KUBE_TESTS: usize = 100;

/// In the name of a test that runs a fuzz target's code over its corpus.
const CORPUS: &str = "corpus";

/// Options of `cargo xtask test`.
#[derive(Clone, Debug, Args)]
pub struct TestArgs {
    /// Run only tests whose name contains this, and no check that is not a test
    filter: Option<String>,
    /// Run only these stages
    #[arg(long, value_enum, value_delimiter = ',')]
    stage: Vec<Stage>,
    /// Labs at once
    #[arg(long, default_value_t = 1)]
    labs: usize,
    /// A skipped test is a failure (as it is for root)
    #[arg(long, env = "CI", value_parser = clap::builder::FalseyValueParser::new())]
    ci: bool,
}

/// A part of the whole, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// rustfmt has nothing to change
    Fmt,
    /// The house rules hold
    Tidy,
    /// The eBPF object and the programs build
    Build,
    /// clippy has nothing to say
    Clippy,
    /// Unit and property tests
    Unit,
    /// Fuzz targets over their corpus
    Corpus,
    /// The kernel accepts the programs
    Kernel,
    /// An older kernel captures, and the mesh bears a bad wire
    Vm,
    /// Whole meshes in network namespaces
    Lab,
    /// Real Kubernetes
    Kube,
    /// The load generator works
    Bench,
}

/// What a stage has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Names of failed tests, or what else went wrong.
    problems: Vec<String>,
}

/// Runs the stages and prints a table and a sum.
///
/// # Errors
/// Something failed, or was skipped where nothing may be.
pub fn test(args: &TestArgs) -> anyhow::Result<()> {
    run_setup(&SetupArgs::default())?;
    let strict = args.ci || privileged();
    let mut rows = Vec::new();
    let mut built = true;
    for stage in Stage::value_variants().iter().copied().filter(|stage| args.wants(*stage)) {
        say(&format!("\n=== {} ===", stage.name()));
        let start = Instant::now();
        let mut outcome = if built || !stage.needs_build() {
            stage.run(args).unwrap_or_else(|error| Outcome::broken(format!("{error:#}")))
        } else {
            Outcome::broken("not run: the build has failed".to_owned())
        };
        if strict && outcome.skipped > 0 {
            outcome.failed += outcome.skipped;
            outcome
                .problems
                .push("skipped tests, which is a failure for root and in CI".to_owned());
        }
        built &= stage != Stage::Build || outcome.failed == 0;
        let counts = format!("{} passed, {} failed", outcome.passed, outcome.failed);
        say(&format!("{}: {counts}, {:.1} s", stage.name(), start.elapsed().as_secs_f64()));
        rows.push((stage, outcome, start.elapsed()));
    }
    say(&format!("\n{}", summary(&rows)));
    judge(args, &rows)
}

/// What a stage has come to, and how long it took.
type Row = (Stage, Outcome, Duration);

/// The table, the problems and the sum.
fn summary(rows: &[Row]) -> String {
    let mut lines = vec!["stage    passed  failed  skipped  seconds".to_owned()];
    for (stage, outcome, time) in rows {
        let Outcome { passed, failed, skipped, .. } = outcome;
        let (name, seconds) = (stage.name(), time.as_secs_f64());
        lines.push(format!("{name:<8} {passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7.1}"));
    }
    for (stage, outcome, _) in rows {
        let problems = outcome.problems.iter();
        lines.extend(problems.map(|problem| format!("failed: {}: {problem}", stage.name())));
    }
    let sum = sum(rows);
    if sum.skipped > 0 {
        lines.push(format!("{} tests were SKIPPED: run as root to run them", sum.skipped));
    }
    lines.push(format!("{} passed, {} failed", sum.passed, sum.failed));
    lines.join("\n")
}

fn sum(rows: &[Row]) -> Outcome {
    let mut sum = Outcome::default();
    for (_, outcome, _) in rows {
        sum.add(outcome.clone());
    }
    sum
}

/// # Errors
/// Something failed, or nothing was run.
fn judge(args: &TestArgs, rows: &[Row]) -> anyhow::Result<()> {
    let tests = |row: &&Row| args.filter.is_none() || row.0.is_test();
    let failed = sum(rows).failed;
    ensure!(failed == 0, "{failed} failed");
    let passed: u64 = rows.iter().filter(tests).map(|row| row.1.passed).sum();
    match &args.filter {
        _ if passed > 0 => Ok(()),
        Some(filter) => bail!("no test's name contains `{filter}`"),
        None => bail!("nothing was run"),
    }
}

impl TestArgs {
    fn wants(&self, stage: Stage) -> bool {
        let chosen = self.stage.is_empty() || self.stage.contains(&stage);
        let fits = match stage {
            // With a filter, unit tests have those of the corpora among them.
            Stage::Fmt | Stage::Tidy | Stage::Clippy | Stage::Corpus | Stage::Bench => {
                self.filter.is_none()
            }
            Stage::Build | Stage::Unit | Stage::Kernel | Stage::Vm | Stage::Lab | Stage::Kube => {
                true
            }
        };
        chosen && fits
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Tidy => "tidy",
            Self::Build => "build",
            Self::Clippy => "clippy",
            Self::Unit => "unit",
            Self::Corpus => "corpus",
            Self::Kernel => "kernel",
            Self::Vm => "vm",
            Self::Lab => "lab",
            Self::Kube => "kube",
            Self::Bench => "bench",
        }
    }

    fn is_test(self) -> bool {
        matches!(self, Self::Unit | Self::Corpus | Self::Kernel | Self::Vm | Self::Lab | Self::Kube)
    }

    fn needs_build(self) -> bool {
        self.is_test() || matches!(self, Self::Clippy | Self::Bench)
    }

    fn run(self, args: &TestArgs) -> anyhow::Result<Outcome> {
        let filter = args.filter.as_deref();
        let tests = |which, threads| Tests { which, threads, filter, skip: None };
        match self {
            Self::Fmt => fmt(),
            Self::Tidy => tidy::run(&tidy::TidyArgs::default()).map(|()| Outcome::one()),
            Self::Build => build::all().map(|_| Outcome::one()),
            Self::Clippy => clippy(),
            Self::Unit => {
                let others = [&KERNEL_TARGETS[..], &LAB_TARGETS, &KUBE_TARGETS].concat();
                let skip = filter.is_none().then_some(CORPUS);
                Tests { skip, ..tests(Which::AllBut(&others), None) }.run()
            }
            Self::Corpus => {
                let outcome =
                    Tests { filter: Some(CORPUS), ..tests(Which::Libraries, None) }.run()?;
                ensure!(outcome.passed + outcome.failed > 0, "no test of a fuzz corpus is there");
                Ok(outcome)
            }
            Self::Kernel => tests(Which::Named(&KERNEL_TARGETS), Some(1)).run(),
            Self::Vm => under_another_kernel(filter),
            Self::Lab => tests(Which::Named(&LAB_TARGETS), Some(args.labs)).run(),
            Self::Kube => tests(Which::Named(&KUBE_TARGETS), Some(KUBE_TESTS)).run(),
            Self::Bench => bench::smoke().map(|()| Outcome::one()),
        }
    }
}

fn fmt() -> anyhow::Result<Outcome> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in OTHER_WORKSPACES {
        if workspace().join(manifest).exists() {
            run(cargo().args(["fmt", "--check", "--manifest-path", manifest]))?;
        }
    }
    Ok(Outcome::one())
}

fn clippy() -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--all-targets"]);
    run(command.args(["--", "--deny", "warnings"]))?;
    if !build::ebpf_clippy()? {
        say("note: mesh-ebpf not looked at: its compiler has no clippy");
    }
    Ok(Outcome::one())
}

/// The capture's tests under the kernel of the virtual machine, and those of the lab that need what
/// only that one has; both are built on this machine.
fn under_another_kernel(filter: Option<&str>) -> anyhow::Result<Outcome> {
    if let Some(obstacle) = vm::obstacle() {
        skipped(&format!("vm: {obstacle}"));
        return Ok(Outcome { skipped: 1, ..Outcome::default() });
    }
    let mut outcome = Outcome::default();
    for (name, more) in [("capture", None), ("lab", Some("--ignored"))] {
        for program in programs(&[name])? {
            let mut command = Command::new(own_program()?);
            command.args(["vm", "--"]).arg(program).args(filter).args(more);
            let part =
                execute(command.args(["--format=pretty", "--color=never", "--test-threads=1"]))?;
            outcome.add(part);
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.problems.extend(other.problems);
    }

    /// A check that is not made of tests has passed.
    fn one() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    fn broken(problem: String) -> Self {
        Self { failed: 1, problems: vec![problem], ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: TestArgs,
    }

    fn stages(words: &[&str]) -> Vec<&'static str> {
        let args = Line::parse_from([&["test"], words].concat()).args;
        let all = Stage::value_variants().iter().filter(|stage| args.wants(**stage));
        all.map(|stage| stage.name()).collect()
    }

    #[test]
    fn everything_runs_in_the_order_of_speed() {
        let all = [
            "fmt", "tidy", "build", "clippy", "unit", "corpus", "kernel", "vm", "lab", "kube",
            "bench",
        ];
        assert_eq!(stages(&[]), all);
    }

    #[test]
    fn a_filter_leaves_tests_and_what_they_need() {
        assert_eq!(stages(&["weights"]), ["build", "unit", "kernel", "vm", "lab", "kube"]);
        assert_eq!(stages(&["weights", "--stage", "build,lab"]), ["build", "lab"]);
    }

    #[test]
    fn a_failure_or_nothing_at_all_is_an_error() {
        let args = Line::parse_from(["test", "x"]).args;
        let row = |outcome| [(Stage::Unit, outcome, Duration::ZERO)];
        assert!(judge(&args, &row(Outcome::one())).is_ok());
        assert!(judge(&args, &row(Outcome::broken("b".to_owned()))).is_err());
        let error = judge(&args, &row(Outcome::default())).unwrap_err();
        assert_eq!(error.to_string(), "no test's name contains `x`");
    }

    #[test]
    fn the_summary_ends_with_the_sum() {
        let unit = Outcome { passed: 40, failed: 1, skipped: 2, problems: vec!["a::b".to_owned()] };
        let rows = [
            (Stage::Fmt, Outcome::one(), Duration::from_millis(1250)),
            (Stage::Unit, unit, Duration::from_secs(60)),
        ];
        let expected = "\
stage    passed  failed  skipped  seconds
fmt           1       0        0      1.2
unit         40       1        2     60.0
failed: unit: a::b
2 tests were SKIPPED: run as root to run them
41 passed, 1 failed";
        assert_eq!(summary(&rows), expected);
    }
}
