//! `malha-servicex`: see [`bench::servicex`].

use std::process::ExitCode;

use bench::servicex::Settings;
use clap::Parser;

fn main() -> ExitCode {
    bench::main(1, bench::servicex::run(Settings::parse()))
}
