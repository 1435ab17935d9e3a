//! `malha-echo`: see [`bench::echo`].

use std::process::ExitCode;

use bench::echo::Settings;
use clap::Parser;

fn main() -> ExitCode {
    let settings = Settings::parse();
    let threads = settings.threads;
    bench::main(threads, bench::echo::run(settings))
}
