//! Capture with real sockets, programs and namespaces.
//!
//! The outer process makes a cgroup, runs itself again inside it, and removes whatever that
//! process leaves, however it ends. The inner one runs the checks one after the other, since they
//! share the pods. Needs root; without it, it says so and counts as skipped.
#![allow(clippy::unwrap_used, reason = "a test")]

mod checks;
mod lab;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use mesh_agent::capture::{Capture, probe};

/// Set for the inner process; its cgroup.
const INNER: &str = "--inside";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("capture: test");
        return ExitCode::SUCCESS;
    }
    if let [_, flag, cgroup, pins] = arguments.as_slice()
        && flag == INNER
    {
        checks::run(cgroup.into(), pins.into());
        return ExitCode::SUCCESS;
    }
    // As the usual harness does with `cargo test FILTER`.
    let mut filters = arguments.iter().skip(1).filter(|argument| !argument.starts_with('-'));
    if filters.clone().next().is_some() && !filters.any(|filter| "capture".contains(&**filter)) {
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = obstacle() {
        println!("SKIPPED (privileged): capture: {reason}");
        return ExitCode::SUCCESS;
    }
    outer()
}

/// Why this cannot run here.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".into());
    }
    if cgroup2().is_none() {
        return Some("no cgroup v2 file system is mounted".into());
    }
    probe().err().map(|error| error.to_string())
}

fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

fn outer() -> ExitCode {
    let name = format!("malha-capture-{}", std::process::id());
    let cgroup = cgroup2().unwrap().join(&name);
    let pins = std::env::temp_dir().join(&name);
    std::fs::create_dir(&pins).unwrap();
    let agent = cgroup.join("agent");
    std::fs::create_dir_all(&agent).unwrap();
    let _guard = Leftovers { cgroup: &cgroup, pins: &pins };

    let procs = agent.join("cgroup.procs");
    let status = Command::new("sh")
        .arg("-c")
        // Enters the cgroup first, so that every socket of the test is below it.
        .arg("echo $$ > \"$0\" && exec \"$@\"")
        .arg(&procs)
        .arg(std::env::current_exe().unwrap())
        .arg(INNER)
        .arg(&cgroup)
        .arg(&pins)
        .status()
        .unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What must not stay, whatever happened.
struct Leftovers<'a> {
    cgroup: &'a Path,
    pins: &'a Path,
}

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        for pins in std::fs::read_dir(self.pins).into_iter().flatten().flatten() {
            if let Err(error) = Capture::cleanup(&pins.path()) {
                println!("cannot clean up: {error}");
            }
        }
        let _ = std::fs::remove_dir(self.pins);
        // The kernel takes a moment to empty a cgroup of killed processes.
        for _ in 0..100 {
            remove_tree(self.cgroup);
            if !self.cgroup.exists() {
                return;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        println!("cannot remove {}", self.cgroup.display());
    }
}

fn remove_tree(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}
