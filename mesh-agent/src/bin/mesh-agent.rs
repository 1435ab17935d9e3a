//! The node agent's entry point: options, log, runtime.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use mesh_agent::agent::{self, CaOptions, LogFormat, LogOptions, Options, Role};
use mesh_agent::config::crd;
use mesh_agent::identity::LocalCa;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    match options.role {
        Role::Node(node) => {
            log_to_stderr(&node.log)?;
            control()?.block_on(agent::node(*node))
        }
        Role::Authority(authority) => {
            log_to_stderr(&authority.log)?;
            control()?.block_on(agent::authority(*authority))
        }
        Role::Ca(ca) => make_ca(&ca),
        Role::Cleanup(cleanup) => control()?.block_on(agent::cleanup(&cleanup)),
        Role::Crds => print(&crd::yaml().context("cannot write the definitions as YAML")?),
        Role::Fields => print(&crd::table()),
    }
}

/// Configuration, certificates and admin: apart from the data path's own threads.
fn control() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
}

fn log_to_stderr(options: &LogOptions) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log_level)
        .with_context(|| format!("--log-level: cannot read `{}`", options.log_level))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Writes `root-cert.pem` and `root-key.pem`, the latter for root only.
fn make_ca(options: &CaOptions) -> anyhow::Result<()> {
    let ca = LocalCa::generate(&options.trust_domain)?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make {}", options.out.display()))?;
    ca.write(&options.out).with_context(|| format!("cannot write to {}", options.out.display()))
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader had enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}
