//! `cargo xtask lab kube`: a real cluster, or an API server alone, for hand work.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use clap::Subcommand;

use super::{Containerd, KubeLab, KubeOptions, binaries};
use crate::setup::{SetupArgs, run_setup};
use crate::tool::say;

/// Name of the lab when none is given.
const DEFAULT_NAME: &str = "hand";

/// Commands of `cargo xtask lab kube`.
#[derive(Debug, Subcommand)]
pub enum KubeCommand {
    /// Make a cluster and leave it up
    Up {
        /// Name, where several are up at once
        #[arg(default_value = DEFAULT_NAME)]
        name: String,
        /// Nodes
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// etcd, API server and controllers on loopback, no nodes
        #[arg(long, conflicts_with_all = ["nodes", "image", "no_dns"])]
        api_only: bool,
        /// Container runtime of the nodes
        #[arg(long, value_enum, default_value = "2")]
        containerd: Containerd,
        /// Archives of images for the nodes (`cargo xtask image` makes the mesh's)
        #[arg(long)]
        image: Vec<PathBuf>,
        /// Without CoreDNS
        #[arg(long)]
        no_dns: bool,
    },
    /// Remove it
    Down {
        /// Name
        #[arg(default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Run a command with KUBECONFIG set: kubectl, helm, any other
    Exec {
        /// Name
        #[arg(default_value = DEFAULT_NAME)]
        name: String,
        /// On this node instead of beside the control plane
        #[arg(long)]
        node: Option<String>,
        /// Command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Build Kubernetes and containerd from source
    Build,
}

/// Runs a command.
///
/// # Errors
/// What went wrong, in words for the one who typed it.
pub fn run(command: KubeCommand) -> anyhow::Result<()> {
    match command {
        KubeCommand::Up { name, nodes, api_only, containerd, image, no_dns } => {
            run_setup(&SetupArgs::default())?;
            let start = Instant::now();
            let options = KubeOptions {
                images: image,
                containerd,
                dns: !no_dns,
                ..KubeOptions::new(&name, nodes)
            };
            let mut lab = if api_only {
                KubeLab::api_with_controllers(&name)?
            } else {
                KubeLab::up(&options)?
            };
            lab.keep()?;
            say(&format!("lab `{name}` is up in {:.1} s", start.elapsed().as_secs_f64()));
            say(&format!("`cargo xtask lab kube exec {name} -- kubectl get nodes`, `down {name}`"));
            if api_only {
                say(&format!("KUBECONFIG={}", lab.kubeconfig().display()));
            }
            Ok(())
        }
        KubeCommand::Down { name } => KubeLab::remove(&name),
        KubeCommand::Exec { name, node, command } => exec(&name, node.as_deref(), &command),
        KubeCommand::Build => {
            say(&format!("built {}", binaries::build()?.display()));
            Ok(())
        }
    }
}

fn exec(name: &str, node: Option<&str>, words: &[String]) -> anyhow::Result<()> {
    let lab = KubeLab::attach(name)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command: Command = match node {
        Some(node) => lab.node(node)?.command(&words)?,
        None => lab.command(&words),
    };
    let status = command.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
