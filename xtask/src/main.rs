//! `cargo xtask`: set-up, build, lab, demo, tests, checks and measurements of this repository.
//!
//! Only the command line; each command lives in its module of the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::tool::say;
use xtask::{bench, build, demo, fuzz, image, lab, manifest, setup, test, tidy, vm};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install what building and the lab need
    Setup(setup::SetupArgs),
    /// Build the eBPF object and every program
    Build(build::BuildArgs),
    /// Make a container image of the mesh
    Image(image::ImageArgs),
    /// Render the Helm chart as deploy/malha.yaml
    Manifest(manifest::ManifestArgs),
    /// Show a mesh at work: capture, mutual TLS, a traffic split, and the wire
    Demo(demo::DemoArgs),
    /// A lab for hand work
    #[command(subcommand)]
    Lab(lab::cli::LabCommand),
    /// Run every check and test, in the order of speed
    Test(test::TestArgs),
    /// Check the house rules
    Tidy(tidy::TidyArgs),
    /// Feed one fuzz target (needs nightly and cargo-fuzz)
    Fuzz(fuzz::FuzzArgs),
    /// Run a command under another kernel, in a virtual machine
    Vm(vm::VmArgs),
    /// Measure
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    match dispatch(CommandLine::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(args) => setup::run_setup(&args),
        Command::Image(args) => image::run(&args),
        Command::Manifest(args) => manifest::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Lab(command) => lab::cli::run(command),
        Command::Build(args) => {
            setup::run_setup(&setup::SetupArgs { build_only: true, ..Default::default() })?;
            let built = build::with(args)?;
            let tools = [built.echo, built.load, built.servicex];
            for program in [built.mesh_agent, built.meshctl].iter().chain(&tools) {
                say(&format!("built {}", program.display()));
            }
            Ok(())
        }
        Command::Test(args) => test::test(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Bench(args) => {
            setup::run_setup(&setup::SetupArgs { build_only: true, ..Default::default() })?;
            bench::run(&args)
        }
    }
}
