//! A load that can be watched while it runs: `malha-load http --lines`, each of its requests as it
//! ends.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// How one request ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Line {
    /// From 0, as they were begun.
    pub number: u64,
    /// When it ended, in milliseconds from the load's beginning.
    pub at: u64,
    /// Milliseconds.
    pub took: u64,
    /// 0: not answered.
    pub status: u16,
    /// Value of the header that was asked for (`--count-header`).
    #[serde(default)]
    pub header: String,
    /// The answer's body, or its hash if it is long.
    #[serde(default)]
    pub body: String,
    /// Why it was not answered.
    #[serde(default)]
    pub error: String,
}

/// A running load. Dropped, it is killed.
#[derive(Debug)]
pub struct Load {
    child: Child,
    seen: Arc<Mutex<Vec<Line>>>,
    reader: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts a command that is such a load.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start malha-load")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let seen = Arc::<Mutex<Vec<Line>>>::default();
        let into = Arc::clone(&seen);
        let reader = std::thread::spawn(move || {
            // The report at the end is no such line.
            let lines = output.lines().map_while(Result::ok);
            for line in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, seen, reader: Some(reader) })
    }

    /// The requests that have ended so far, as they ended.
    #[must_use]
    pub fn seen(&self) -> Vec<Line> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it, requests that are under way too: those that have ended, by number.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn stop(mut self) -> anyhow::Result<Vec<Line>> {
        self.child.kill().context("end malha-load")?;
        Ok(self.end()?.1)
    }

    /// Begins no more requests where it was to go on (`--until-eof`), and waits for those under
    /// way: all, by number.
    ///
    /// # Errors
    /// It has failed.
    pub fn finish(mut self) -> anyhow::Result<Vec<Line>> {
        drop(self.child.stdin.take());
        let (status, lines) = self.end()?;
        ensure!(status.success(), "malha-load: {status}");
        Ok(lines)
    }

    fn end(&mut self) -> anyhow::Result<(ExitStatus, Vec<Line>)> {
        let status = self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            // A panic there was printed there.
            let _ = reader.join();
        }
        let mut lines = self.seen();
        lines.sort_by_key(|line| line.number);
        Ok((status, lines))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_number_and_the_report_is_not_one() {
        let text = r#"{"number":1,"at":9,"took":2,"status":200,"header":"v1","body":"OK"}
{"number":0,"at":12,"took":12,"status":0,"error":"no whole answer in 10 ms"}
{"requests":2,"failed":1}"#;
        let load = Load::start(Command::new("echo").arg(text)).unwrap();
        let lines = load.finish().unwrap();
        let seen: Vec<_> = lines.iter().map(|line| (line.number, line.status)).collect();
        assert_eq!(seen, [(0, 0), (1, 200)]);
        assert_eq!(
            (lines[0].error.as_str(), lines[1].header.as_str()),
            ("no whole answer in 10 ms", "v1")
        );
    }

    #[test]
    fn a_load_ends_when_its_input_does_or_when_it_is_stopped() {
        assert_eq!(Load::start(&mut Command::new("cat")).unwrap().finish().unwrap(), []);
        let mut endless = Command::new("sleep");
        assert_eq!(Load::start(endless.arg("1000")).unwrap().stop().unwrap(), []);
    }
}
