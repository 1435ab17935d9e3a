//! `cargo xtask fuzz`: runs one fuzz target for a while.
//!
//! Only the words for `cargo fuzz`, which needs a nightly compiler. The invariant: what a run collects
//! stays under `target`, so that the committed corpus holds only what somebody has chosen.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

use crate::tool::{find, run as run_shown, without_our_package, workspace};

/// Slower inputs are findings too, in seconds.
const SLOW: u32 = 20;

/// Options of `cargo xtask fuzz`.
#[derive(Clone, Debug, Args)]
pub struct FuzzArgs {
    /// Name of a file in `mesh-agent/fuzz/fuzz_targets`
    target: String,
    /// How long
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Runs a target, from its committed corpus and from what earlier runs have collected.
///
/// # Errors
/// There is no such target, no cargo-fuzz, or something was found.
pub fn run(args: &FuzzArgs) -> anyhow::Result<()> {
    let folder = workspace().join("mesh-agent/fuzz");
    let name = &args.target;
    let source = folder.join("fuzz_targets").join(format!("{name}.rs"));
    ensure!(source.is_file(), "no fuzz target `{name}`: there is no {}", source.display());
    ensure!(find("cargo-fuzz").is_some(), "run `cargo install cargo-fuzz --locked` first");
    let collected = folder.join("target/corpus").join(name);
    fs::create_dir_all(&collected).with_context(|| format!("make {}", collected.display()))?;
    // Safe Rust: the address sanitizer would only make it slower.
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz", "run", "--sanitizer", "none", name]);
    command.args([&collected, &folder.join("corpus").join(name)]);
    command.arg("--");
    command.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-timeout={SLOW}"));
    command.current_dir(workspace().join("mesh-agent"));
    without_our_package(&mut command);
    run_shown(&mut command)
}
