//! `meshctl`: asks one agent over its Unix socket and prints a table or JSON.
//!
//! What it is not: it reads no cluster and changes nothing. Invariant: whatever a table shows is in
//! the JSON too.

mod client;
mod table;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::api::admin_client::AdminClient;
use crate::api::{
    CertificatesRequest, ConnectionsRequest, DEFAULT_SOCKET, DiagnosticsRequest, RoutesRequest,
    ServicesRequest, StatusRequest, WorkloadsRequest,
};

/// An agent that is alive answers at once; one that hangs should not hang its operator.
const PATIENCE: Duration = Duration::from_secs(15);

/// Shows what a Malha agent on this machine does.
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
    /// What to show.
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

/// What to show.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    /// Certificates of this node's service accounts.
    Certificates,
    /// The agent's configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
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
    /// The answer could not be printed.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs one command and prints to `out`.
///
/// # Errors
/// When the agent cannot be asked or the answer not be printed. A reader that closes the pipe early
/// is not an error.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), CliError> {
    let answer =
        tokio::time::timeout(PATIENCE, ask(args)).await.map_err(|_| CliError::Silent)??;
    match out.write_all(answer.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

async fn ask(args: &Args) -> Result<String, CliError> {
    let mut agent: AdminClient<_> = client::connect(&args.socket).await?;
    let refused = CliError::Refused;
    let format = args.output;
    match &args.command {
        Command::Status => {
            let reply = agent.status(StatusRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::status)
        }
        Command::Workloads => {
            let reply = agent.workloads(WorkloadsRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::workloads)
        }
        Command::Services => {
            let reply = agent.services(ServicesRequest {}).await.map_err(refused)?.into_inner();
            print(format, &reply, table::services)
        }
        Command::Routes { host, namespace } => {
            let request = RoutesRequest { host: host.clone(), namespace: namespace.clone() };
            let reply = agent.routes(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::routes)
        }
        Command::Connections => {
            let request = ConnectionsRequest {};
            let reply = agent.connections(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::connections)
        }
        Command::Certificates => {
            let request = CertificatesRequest {};
            let reply = agent.certificates(request).await.map_err(refused)?.into_inner();
            print(format, &reply, table::certificates)
        }
        Command::Config(ConfigCommand::Diagnostics) => {
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
