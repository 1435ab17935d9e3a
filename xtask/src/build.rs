//! `cargo xtask build`: the eBPF object, then the programs that embed or drive it.
//!
//! Cargo decides what is out of date. The object always comes from `<root>/target/ebpf`, where the
//! agent's build script looks for it, whatever `CARGO_TARGET_DIR` says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Deserialize;

use crate::setup::{Toolchain, path_with_cargo_bin};
use crate::tool::{cargo, run, say, shown, without_our_package, workspace};

/// Between flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Options of `cargo xtask build`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct BuildArgs {
    /// Optimised, as for production and measurements
    #[arg(long)]
    pub release: bool,
}

/// The programs that a build has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The node agent, with the eBPF object inside.
    pub mesh_agent: PathBuf,
    /// The command line.
    pub meshctl: PathBuf,
    /// `malha-echo`.
    pub echo: PathBuf,
    /// `malha-load`.
    pub load: PathBuf,
    /// `malha-servicex`.
    pub servicex: PathBuf,
}

/// A line of cargo's `--message-format=json`; what we do not read is left out.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds everything, optimised for tests (cargo's `dev` profile).
///
/// # Errors
/// As [`with`].
pub fn all() -> anyhow::Result<Built> {
    with(BuildArgs::default())
}

/// Builds everything.
///
/// # Errors
/// No toolchain for eBPF (run `cargo xtask setup`), or the code does not compile.
pub fn with(args: BuildArgs) -> anyhow::Result<Built> {
    ebpf()?;
    programs(args)
}

/// Builds the eBPF object and returns where it is.
///
/// # Errors
/// No toolchain for eBPF, or the code does not compile.
pub fn ebpf() -> anyhow::Result<PathBuf> {
    let target = workspace().join("target/ebpf");
    let toolchain = ebpf_toolchain()?;
    let mut command = toolchain.cargo();
    if let Some(path) = path_with_cargo_bin() {
        command.env("PATH", path);
    }
    ebpf_arguments(&mut command, "build");
    command.arg("--release");
    run(&mut command).context("build the eBPF object")?;
    let object = target.join("bpfel-unknown-none/release/mesh-ebpf");
    ensure!(object.exists(), "the build has left no {}", object.display());
    Ok(object)
}

/// Lets clippy look at the eBPF programs; `false` if their compiler has no clippy.
///
/// # Errors
/// No toolchain for eBPF, or clippy has something to say.
pub fn ebpf_clippy() -> anyhow::Result<bool> {
    let Some(mut command) = ebpf_toolchain()?.clippy() else { return Ok(false) };
    ebpf_arguments(&mut command, "clippy");
    run(command.args(["--release", "--", "--deny", "warnings"])).map(|()| true)
}

fn ebpf_toolchain() -> anyhow::Result<Toolchain> {
    Toolchain::find().context("no compiler for eBPF: run `cargo xtask setup` first")
}

/// `<subcommand>` on `mesh-ebpf` with everything that its target needs.
fn ebpf_arguments(command: &mut Command, subcommand: &str) {
    // A RUSTFLAGS from outside would silently drop --btf; this variable wins over it.
    let flags = [
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "--cfg".to_owned(),
        format!("bpf_target_arch=\"{}\"", std::env::consts::ARCH),
    ];
    command.current_dir(workspace());
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR));
    without_our_package(command);
    command.args([subcommand, "--manifest-path", "mesh-ebpf/Cargo.toml"]);
    command.args(["--target-dir", "target/ebpf", "--target", "bpfel-unknown-none"]);
    command.args(["-Z", "build-std=core"]);
}

/// Builds the agent and the tools; the eBPF object must be there.
fn programs(args: BuildArgs) -> anyhow::Result<Built> {
    let mut command = cargo();
    command.args(["build", "--bins", "--message-format=json-render-diagnostics"]);
    if args.release {
        // Nothing that another member of the workspace asks for goes into what is shipped.
        command.args(["--release", "--package", "mesh-agent", "--package", "bench"]);
    } else {
        // The same packages as `cargo test`, so the same features: nothing is compiled twice.
        command.arg("--workspace");
    }
    say(&format!("$ {}", shown(&command)));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {}", shown(&command)))?;
    ensure!(output.status.success(), "the programs do not build: {}", output.status);
    let mut executables = executables(&String::from_utf8_lossy(&output.stdout));
    let mut take = |name: &str| {
        executables.remove(name).with_context(|| format!("cargo has built no program {name}"))
    };
    Ok(Built {
        mesh_agent: take("mesh-agent")?,
        meshctl: take("meshctl")?,
        echo: take("malha-echo")?,
        load: take("malha-load")?,
        servicex: take("malha-servicex")?,
    })
}

/// Programs by name in the messages of a cargo build.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_other_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"bytes","kind":["lib"]},"executable":null}
{"reason":"compiler-artifact","target":{"name":"meshctl","kind":["bin"]},"executable":"/t/meshctl"}
{"reason":"build-script-executed","package_id":"x"}
{"reason":"build-finished","success":true}
"#;
        let expected = BTreeMap::from([("meshctl".to_owned(), PathBuf::from("/t/meshctl"))]);
        assert_eq!(executables(messages), expected);
    }
}
