//! `meshctl`: asks one agent over its Unix socket and prints a table or JSON; puts the mesh on a cluster,
//! checks it and takes it off (`install`, the only part that knows Kubernetes).
//!
//! What it is not: it changes nothing about an agent. Invariant: whatever a table shows is in the JSON
//! too.

mod client;
mod install;
mod table;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

pub use install::{Access, CheckOptions, InstallOptions, Settings, UninstallOptions};

use crate::api::admin_client::AdminClient;
use crate::api::{
    CertificatesRequest, ConnectionsRequest, DEFAULT_SOCKET, DiagnosticsRequest, EjectionsRequest,
    RoutesRequest, ServicesRequest, StatusRequest, WorkloadsRequest,
};

/// An agent that is alive answers at once; one that hangs should not hang its operator.
const PATIENCE: Duration = Duration::from_secs(15);

/// Shows what a Malha agent on this machine does; installs, checks and removes the mesh of a cluster.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100)]
pub struct Args {
    /// The agent's administrative socket.
    #[arg(long, global = true, value_name = "PATH", env = "MALHA_SOCKET",
          default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask an agent.
    #[command(flatten)]
    Agent(AgentCommand),
    /// Act on a cluster.
    #[command(flatten)]
    Cluster(ClusterCommand),
}

/// What to ask an agent.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// The agent in numbers.
    Status,
    /// Pods on all nodes: identity, state in the mesh, mutual TLS mode.
    Workloads,
    /// Services with their ports and endpoints.
    Services,
    /// What happens to a request for a host.
    Routes {
        /// Host as a client writes it, e.g. `cart`, `cart.shop` or a virtual IP.
        host: String,
        /// Namespace of the client.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Connections of this node's pods, those outside of the mesh among them.
    Connections,
    /// Endpoints that outlier detection leaves out now, client by client.
    Ejections,
    /// Certificates of this node's service accounts.
    Certificates,
    /// The agent's configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// What to do on a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Put the mesh on a cluster.
    Install(Box<InstallOptions>),
    /// Bring the mesh of a cluster to this version; what is not given stays as it was chosen before.
    Upgrade(Box<InstallOptions>),
    /// Take the mesh off a cluster. Pods stay and requests go on; mutual TLS ends.
    Uninstall(Box<UninstallOptions>),
    /// Look for what would keep the mesh from working, or keeps it; fails if something does.
    Check(Box<CheckOptions>),
}

/// What to show of the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// What is wrong with it, object by object.
    Diagnostics,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No agent, or it listens elsewhere.
    #[error(
        "there is no agent at {}: no such socket. Is it running on this machine? \
         Name another socket with --socket PATH or MALHA_SOCKET",
        .0.display()
    )]
    NoSocket(PathBuf),
    /// The socket is there, nobody listens.
    #[error("the agent that made {} is gone: nobody listens there", .0.display())]
    NobodyListens(PathBuf),
    /// Not root.
    #[error("{}: permission denied: only root may ask the agent", .0.display())]
    Denied(PathBuf),
    /// Something else about the socket.
    #[error("{}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Someone listens, but does not speak the agent's protocol.
    #[error("{}: not an agent's socket: {source}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// The agent said no.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    /// The agent does not answer.
    #[error("the agent did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// The cluster is not as it was to be.
    #[error("{0:#}")]
    Cluster(anyhow::Error),
    /// A check has failed: printed already.
    #[error("something is not as it should be")]
    Unwell,
    /// The answer could not be printed.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs one command and prints to `out`.
///
/// # Errors
/// When the agent or the cluster cannot be asked, something is not done, a check fails, or the answer
/// cannot be printed. A reader that closes the pipe early is not an error.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), CliError> {
    match &args.command {
        Command::Agent(command) => {
            let answer = tokio::time::timeout(PATIENCE, ask(args, command)).await;
            print_out(&answer.map_err(|_| CliError::Silent)??, out)
        }
        Command::Cluster(command) => {
            let (answer, is_well) = act(args.output, command).await.map_err(CliError::Cluster)?;
            print_out(&answer, out)?;
            if is_well { Ok(()) } else { Err(CliError::Unwell) }
        }
    }
}

/// What to print, and whether all is well.
async fn act(format: Format, command: &ClusterCommand) -> anyhow::Result<(String, bool)> {
    match command {
        ClusterCommand::Install(options) => Ok((install::install(options, format).await?, true)),
        ClusterCommand::Upgrade(options) => Ok((install::upgrade(options, format).await?, true)),
        ClusterCommand::Uninstall(options) => Ok((install::uninstall(options).await?, true)),
        ClusterCommand::Check(options) => install::check(options, format).await,
    }
}

fn print_out(answer: &str, out: &mut impl Write) -> Result<(), CliError> {
    match out.write_all(answer.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

async fn ask(args: &Args, command: &AgentCommand) -> Result<String, CliError> {
    let mut agent: AdminClient<_> = client::connect(&args.socket).await?;
    let refused = CliError::Refused;
    let format = args.output;
    match command {
        AgentCommand::Status => {
            let reply = agent.status(StatusRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::status)
        }
        AgentCommand::Workloads => {
            let reply = agent.workloads(WorkloadsRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::workloads)
        }
        AgentCommand::Services => {
            let reply = agent.services(ServicesRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::services)
        }
        AgentCommand::Routes { host, namespace } => {
            let request = RoutesRequest { host: host.clone(), namespace: namespace.clone() };
            let reply = agent.routes(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::routes)
        }
        AgentCommand::Connections => {
            let request = ConnectionsRequest {};
            let reply = agent.connections(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::connections)
        }
        AgentCommand::Ejections => {
            let reply = agent.ejections(EjectionsRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::ejections)
        }
        AgentCommand::Certificates => {
            let request = CertificatesRequest {};
            let reply = agent.certificates(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::certificates)
        }
        AgentCommand::Config(ConfigCommand::Diagnostics) => {
            let request = DiagnosticsRequest {};
            let reply = agent.diagnostics(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::diagnostics)
        }
    }
}

fn print<R: Serialize>(
    format: Format,
    reply: &R,
    table: fn(&R) -> String,
) -> Result<String, CliError> {
    match format {
        Format::Table => Ok(table(reply)),
        Format::Json => {
            let json = serde_json::to_string_pretty(reply).map_err(io::Error::from)?;
            Ok(json + "\n")
        }
    }
}
