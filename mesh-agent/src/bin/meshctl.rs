//! `meshctl`: shows what the agent on this machine does. Everything is in `mesh_agent::cli`.

use std::process::ExitCode;

use clap::Parser as _;
use mesh_agent::cli::{Args, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args, &mut std::io::stdout().lock()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshctl: {error}");
            ExitCode::FAILURE
        }
    }
}
