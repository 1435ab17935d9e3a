//! Runs `cargo test`, shows what it writes, and counts in it.
//!
//! Source of the counts: libtest's `test result:` lines and lists of `failures:`. A test program
//! without libtest writes `NAME ... ok` for each test, and fails as a whole.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Deserialize;

use super::Outcome;
use super::skip::MARK;
use crate::tool::{cargo, output, say, shown};

/// How long output may stay open after cargo has ended: a test has left a process behind.
const LEFT_OPEN: Duration = Duration::from_secs(5);

/// How often to look whether cargo has ended.
const TICK: Duration = Duration::from_millis(100);

/// Failed tests that are named in the summary.
const MAX_NAMED: usize = 50;

/// What to run.
pub(super) struct Tests<'a> {
    pub(super) which: Which<'a>,
    /// Tests at once; libtest's default if absent.
    pub(super) threads: Option<usize>,
    pub(super) filter: Option<&'a str>,
    /// Tests whose name contains this have a stage of their own.
    pub(super) skip: Option<&'a str>,
}

/// Test programs of the workspace.
pub(super) enum Which<'a> {
    /// Integration tests of these names, as far as they exist.
    Named(&'a [&'a str]),
    /// Those inside libraries and programs, and integration tests of other names.
    AllBut(&'a [&'a str]),
    /// Those inside libraries.
    Libraries,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

/// One of cargo's messages.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Tests<'_> {
    /// Runs them; the outcome is empty if there are none.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        // The whole workspace each time: the same features, so nothing is compiled twice.
        let mut command = cargo();
        command.args(["test", "--workspace", "--no-fail-fast"]);
        let targets = match self.which {
            Which::Libraries => {
                command.arg("--lib");
                Vec::new()
            }
            Which::AllBut(others) => {
                command.args(["--lib", "--bins"]);
                targets()?.into_iter().filter(|name| !others.contains(&name.as_str())).collect()
            }
            Which::Named(names) => {
                let all = targets()?;
                let wanted = all.into_iter().filter(|name| names.contains(&name.as_str()));
                let wanted: Vec<_> = wanted.collect();
                if wanted.is_empty() {
                    say(&format!("no test target is called {}", names.join(" or ")));
                    return Ok(Outcome::default());
                }
                wanted
            }
        };
        for target in targets {
            command.args(["--test", &target]);
        }
        // A line for each test: a summary of dots names nobody.
        command.args(self.filter).args(["--", "--format=pretty"]);
        if let Some(skip) = self.skip {
            command.args(["--skip", skip]);
        }
        if let Some(threads) = self.threads {
            command.arg(format!("--test-threads={threads}"));
        }
        execute(&mut command)
    }
}

/// Test programs of these integration tests, as far as they exist; builds them.
pub(super) fn programs(names: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--message-format=json"]);
    for target in targets()?.iter().filter(|name| names.contains(&name.as_str())) {
        command.args(["--test", target]);
    }
    let text = output(&mut command)?;
    let artifacts = text.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    Ok(artifacts
        .filter(|artifact| names.contains(&artifact.target.name.as_str()))
        .filter_map(|artifact| artifact.executable)
        .collect())
}

/// Names of the workspace's integration tests.
fn targets() -> anyhow::Result<Vec<String>> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("read cargo's metadata")?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    let tests = targets.filter(|target| target.kind.iter().any(|kind| kind == "test"));
    Ok(tests.map(|target| target.name).collect())
}

/// Runs a command whose output is a test program's, counts its lines and passes them on.
pub(super) fn execute(command: &mut Command) -> anyhow::Result<Outcome> {
    count_lines(command, &mut std::io::stderr())
}

fn count_lines(command: &mut Command, sink: &mut impl Write) -> anyhow::Result<Outcome> {
    writeln!(sink, "$ {}", shown(command))?;
    let (reader, writer) = std::io::pipe()?;
    // One pipe for both keeps their lines in order.
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
    // Our copies of the pipe's end, or it would never be at its end.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let (lines, received) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if lines.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let mut count = Count::default();
    let closed = pass_on(&mut child, &received, |line| {
        count.read(&String::from_utf8_lossy(line));
        sink.write_all(line)
    })?;
    let mut outcome = count.outcome;
    if closed {
        // It has sent its last line, so it is about to end.
        let _ = thread.join();
    } else {
        outcome.failed += 1;
        outcome.problems.push("a test has left a process behind that holds its output".to_owned());
    }
    let status = child.wait()?;
    if !status.success() && outcome.failed == 0 {
        outcome.failed = 1;
        outcome.problems.push(format!("tests: {status}"));
    }
    Ok(outcome)
}

/// Passes lines on until the pipe is closed; `false` if that does not happen after the end.
fn pass_on(
    child: &mut Child,
    received: &mpsc::Receiver<Vec<u8>>,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> anyhow::Result<bool> {
    let mut ended: Option<Instant> = None;
    loop {
        match received.recv_timeout(TICK) {
            Ok(line) => take(&line)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => match ended {
                Some(instant) if instant.elapsed() > LEFT_OPEN => return Ok(false),
                Some(_) => {}
                None => ended = child.try_wait()?.map(|_| Instant::now()),
            },
        }
    }
}

/// The count so far, and where in libtest's output we are.
#[derive(Default)]
struct Count {
    outcome: Outcome,
    /// Among the names after `failures:`.
    in_failures: bool,
}

impl Count {
    /// Counts one line.
    fn read(&mut self, line: &str) {
        let line = line.trim_end();
        let outcome = &mut self.outcome;
        if line.contains(MARK) {
            outcome.skipped += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.in_failures = false;
            outcome.passed += number_before(result, " passed");
            outcome.failed += number_before(result, " failed");
        } else if line == "failures:" {
            // It stands twice: before what the tests wrote, and before their names.
            self.in_failures = true;
        } else if line.starts_with("---- ") {
            self.in_failures = false;
        } else if let Some(name) = line.strip_prefix("    ")
            && self.in_failures
            && outcome.problems.len() < MAX_NAMED
        {
            outcome.problems.push(name.to_owned());
        } else if line.ends_with(" ... ok") && !line.starts_with("test ") {
            outcome.passed += 1;
        }
    }
}

/// The number right before `unit` in a text like `ok. 3 passed; 1 failed`; 0 if there is none.
fn number_before(text: &str, unit: &str) -> u64 {
    let before = text.split(unit).next().and_then(|before| before.rsplit(' ').next());
    before.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_writes() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test a::works ... ok",
            "test a::breaks ... FAILED",
            "SKIPPED (privileged): a::needs_root",
            "",
            "failures:",
            "",
            "---- a::breaks stdout ----",
            "    left: 1",
            "",
            "failures:",
            "    a::breaks",
            "",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; fin",
            "test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; fini",
        ] {
            count.read(line);
        }
        let problems = vec!["a::breaks".to_owned()];
        assert_eq!(count.outcome, Outcome { passed: 42, failed: 1, skipped: 1, problems });
    }

    #[test]
    fn counts_tests_without_a_harness() {
        let mut count = Count::default();
        count.read("kernel: loads ... ok");
        count.read("kernel: attaches ... ok");
        assert_eq!(count.outcome.passed, 2);
    }

    fn script(script: &str) -> Outcome {
        count_lines(Command::new("sh").args(["-c", script]), &mut Vec::new()).unwrap()
    }

    #[test]
    fn a_command_that_fails_without_a_count_has_failed() {
        let outcome = script("echo no compiler; exit 101");
        assert_eq!(outcome.failed, 1);
        assert_eq!(outcome.problems, ["tests: exit status: 101"]);
    }

    #[test]
    fn counts_both_outputs() {
        let outcome = script(
            "echo 'test result: ok. 5 passed; 0 failed;'; echo 'SKIPPED (privileged): x' >&2",
        );
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (5, 0, 1));
    }

    #[test]
    fn a_process_left_behind_is_a_failure() {
        let outcome = script("sleep 8 & exit 0");
        assert_eq!(outcome.failed, 1);
        assert!(outcome.problems[0].contains("left a process behind"), "{outcome:?}");
    }

    #[test]
    fn the_lab_is_a_target() {
        assert!(targets().unwrap().contains(&"lab".to_owned()));
    }
}
