//! `cargo xtask lab`: a lab for hand work. A process in the background owns it; the other commands
//! talk to that process over a socket.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;

use super::server::{ServeOptions, Served, serve};
use super::{RUN, text};
use crate::kube::cli::KubeCommand;
use crate::tool::say;

/// Name of the lab when none is given.
const DEFAULT_NAME: &str = "hand";

/// Commands of `cargo xtask lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make a lab and leave it up
    Up {
        /// Nodes
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// Worker threads of each agent
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Manifests to apply
        #[arg(short, long)]
        file: Vec<PathBuf>,
        /// A cluster without the mesh
        #[arg(long)]
        no_agent: bool,
        /// Name, where several labs are up at once
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Apply manifests
    Apply {
        /// Files
        #[arg(short, long, required = true)]
        file: Vec<PathBuf>,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Run a command in a pod
    Exec {
        /// `namespace/name`, or a name in `default`
        pod: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List pods
    Ps {
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Show an agent's log
    Logs {
        /// Node
        #[arg(default_value = "node1")]
        node: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Ask a node's agent: the arguments are meshctl's
    Meshctl {
        /// Node
        node: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Remove the lab
    Down {
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Real Kubernetes: API server alone, or whole clusters
    #[command(subcommand)]
    Kube(KubeCommand),
    /// Own a lab until told to stop: what `up` leaves in the background
    #[command(hide = true)]
    Serve {
        /// Nodes
        nodes: usize,
        /// Worker threads of each agent
        workers: usize,
        /// Name
        name: String,
        /// The agent's binary
        agent: Option<PathBuf>,
    },
}

/// Runs a command.
///
/// # Errors
/// What went wrong, in words for the one who typed it.
pub fn run(command: LabCommand) -> anyhow::Result<()> {
    match command {
        LabCommand::Up { nodes, workers, file, no_agent, name } => {
            up(ServeOptions { name, nodes, workers, agent: None }, &file, no_agent)
        }
        LabCommand::Apply { file, name } => apply(&Served::named(&name), &file),
        LabCommand::Exec { pod, name, command } => exec(&Served::named(&name), &pod, &command),
        LabCommand::Ps { name } => {
            for pod in Served::named(&name).pods()? {
                let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
                println!("{:<32} {:<8} {}", pod.name, pod.node, ips.join(" "));
            }
            Ok(())
        }
        LabCommand::Logs { node, name } => {
            let log = Path::new(RUN).join(&name).join("nodes").join(node).join("agent.log");
            let log =
                std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
            print!("{log}");
            Ok(())
        }
        LabCommand::Meshctl { node, name, arguments } => {
            print!("{}", Served::named(&name).meshctl(&node, &arguments)?);
            Ok(())
        }
        LabCommand::Down { name } => Served::named(&name).down(),
        LabCommand::Kube(command) => crate::kube::cli::run(command),
        LabCommand::Serve { nodes, workers, name, agent } => {
            serve(&ServeOptions { name, nodes, workers, agent })
        }
    }
}

fn up(mut options: ServeOptions, files: &[PathBuf], no_agent: bool) -> anyhow::Result<()> {
    crate::setup::run_setup(&crate::setup::SetupArgs::default())?;
    let built = crate::build::all()?;
    options.agent = (!no_agent).then_some(built.mesh_agent);
    let mut lab = Served::start(&options)?;
    apply(&lab, files)?;
    lab.keep()?;
    say(&format!("lab `{}` is up; `cargo xtask lab ps`, `exec POD -- CMD`, `down`", options.name));
    Ok(())
}

fn apply(lab: &Served, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let manifests =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        lab.apply(&manifests).with_context(|| text(file))?;
    }
    Ok(())
}

fn exec(lab: &Served, pod: &str, command: &[String]) -> anyhow::Result<()> {
    let pod = if pod.contains('/') { pod.to_owned() } else { format!("default/{pod}") };
    let status = lab.command_in(&pod, command)?.status()?;
    std::process::exit(status.code().unwrap_or(1));
}
