//! `cargo xtask image`: the mesh as a container image. Its programs, the shared libraries that they
//! are linked to, and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::build::{self, BuildArgs, Built};
use crate::oci::{Description, Tree, write};
use crate::setup::{SetupArgs, run_setup};
use crate::tool::{say, workspace};

const BIN: &str = "/usr/local/bin";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Options of `cargo xtask image`.
#[derive(Clone, Debug, Default, Args)]
pub struct ImageArgs {
    /// Where to write it [default: target/image/mesh-agent.tar]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Name and tag [default: malha/mesh-agent:VERSION]
    #[arg(long)]
    pub name: Option<String>,
    /// From the build that tests use, which is quick to make and slow to run
    #[arg(long)]
    pub dev: bool,
}

/// The name that manifests use.
#[must_use]
pub fn default_name() -> String {
    format!("malha/mesh-agent:{VERSION}")
}

/// Builds the programs and writes the image.
///
/// # Errors
/// Something is missing, the code does not compile, or the file cannot be written.
pub fn run(args: &ImageArgs) -> anyhow::Result<()> {
    run_setup(&SetupArgs { build_only: true, ..SetupArgs::default() })?;
    let built = build::with(BuildArgs { release: !args.dev })?;
    let out = args.out.clone().unwrap_or_else(|| workspace().join("target/image/mesh-agent.tar"));
    let name = args.name.clone().unwrap_or_else(default_name);
    let digest = of_built(&built, &name, &out)?;
    say(&format!("wrote {}: {name} {digest}", out.display()));
    Ok(())
}

/// Writes the image of programs that are built already; the digest of its manifest.
///
/// # Errors
/// A program or library cannot be read, or the file cannot be written.
pub fn of_built(built: &Built, name: &str, out: &Path) -> anyhow::Result<String> {
    of_programs(&[&built.mesh_agent, &built.meshctl], name, out)
}

/// The same, by their paths.
///
/// # Errors
/// As [`of_built`].
pub fn of_programs(programs: &[&Path], name: &str, out: &Path) -> anyhow::Result<String> {
    let mut tree = Tree::default();
    for program in programs {
        let own = program.file_name().with_context(|| format!("name of {}", program.display()))?;
        tree.program(program, &format!("{BIN}/{}", own.to_string_lossy()))?;
    }
    let labels = [
        ("org.opencontainers.image.title", "mesh-agent"),
        ("org.opencontainers.image.description", "Malha's node agent and command line"),
        ("org.opencontainers.image.version", VERSION),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY")),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let description = Description {
        name: name.to_owned(),
        entrypoint: vec![format!("{BIN}/mesh-agent")],
        environment: vec![format!("PATH={BIN}:/usr/bin:/bin")],
        labels: BTreeMap::from(labels),
        ..Description::default()
    };
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    write(&tree, &description, out)
}
