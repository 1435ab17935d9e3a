//! `malha-load`: see [`bench::load`].

use std::process::ExitCode;

use bench::load::Settings;
use clap::Parser;

fn main() -> ExitCode {
    let settings = Settings::parse();
    let threads = settings.threads;
    bench::main(threads, bench::load::run(settings))
}
