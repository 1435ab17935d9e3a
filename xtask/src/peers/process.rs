//! One running Envoy: waits until it serves, gathers its log and its access records, and ends it.
//!
//! It does not choose where the process runs: the caller's command may go through `ip netns exec`
//! or `nsenter`. Invariant: the process is dead when the value is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

/// With a static configuration Envoy says this after its listeners listen ("starting workers" comes
/// before, and a connection made then is refused).
const READY: &str = "starting main dispatch loop";
/// A start takes about 0.2 s; a machine that is busy with builds needs longer.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Older log lines are dropped: enough to see why a start or a handshake failed.
const LOG_LINES: usize = 400;

/// What Envoy says at the end of one connection (client role) or one CONNECT (server role), and of
/// one refused TLS handshake (server role: `failure` is set). Absent values are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Record {
    /// `:authority` of the CONNECT; server role only.
    pub authority: Option<String>,
    /// The other side's SPIFFE ID, from its certificate, as a URI.
    pub peer: Option<String>,
    /// TLS version of the tunnel, `TLSv1.3`.
    pub tls: Option<String>,
    /// Envoy's short response flags.
    pub flags: Option<String>,
    /// Why the TLS handshake failed, or `tunnel_response:` and the status that refused the CONNECT.
    /// A client that is refused by its server has `None`: to it the handshake was whole.
    pub failure: Option<String>,
    /// Status of the CONNECT's answer; server role only.
    pub status: Option<u16>,
    /// The `baggage` header; server role only.
    pub baggage: Option<String>,
    /// The `traceparent` header; server role only.
    pub traceparent: Option<String>,
    /// Bytes from the one who connected.
    pub received: Option<u64>,
    /// Bytes to the one who connected.
    pub sent: Option<u64>,
}

/// A running peer, killed and waited for on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
    records: Receiver<Record>,
}

impl Process {
    /// Starts `command`, which runs Envoy with [`super::envoy::arguments`], and returns when its
    /// listeners are bound. The error holds Envoy's log when it ends early or takes over 30 s.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start envoy")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (records_out, records) = channel();
        // From here on a failure drops the process, which ends the child.
        let process = Self { child, log: Arc::clone(&log), records };
        let stdout = stdout.context("envoy's standard output is a pipe")?;
        let stderr = stderr.context("envoy's standard error is a pipe")?;
        let (ready_out, ready) = channel();
        thread::spawn(move || gather_records(stdout, &records_out));
        thread::spawn(move || gather_log(stderr, &log, &ready_out));
        match ready.recv_timeout(START_DEADLINE) {
            Ok(()) => Ok(process),
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow!("envoy took over 30 s to start:\n{}", process.log()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(anyhow!("envoy ended before it served:\n{}", process.log()))
            }
        }
    }

    /// The process, for `nsenter` or for reading its memory.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of Envoy's log.
    pub fn log(&self) -> String {
        let lines = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// The next record, in the order in which connections ended; waits up to `deadline`.
    pub fn next_record(&self, deadline: Duration) -> Result<Record> {
        self.records
            .recv_timeout(deadline)
            .with_context(|| format!("no access record from envoy; its log:\n{}", self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already, which is what is wanted.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Ends with the pipe, that is with the process.
fn gather_log(from: impl Read, log: &Mutex<VecDeque<String>>, ready: &Sender<()>) {
    let mut served = false;
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let is_ready = !served && line.contains(READY);
        let mut lines = log.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
        drop(lines);
        if is_ready {
            served = true;
            // The receiver is gone when the start has been given up.
            let _given_up = ready.send(());
        }
    }
}

/// Ends with the pipe, that is with the process.
fn gather_records(from: impl Read, records: &Sender<Record>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(record) => {
                if records.send(record).is_err() {
                    return;
                }
            }
            Err(error) => eprintln!("envoy: unreadable access record ({error}): {line}"),
        }
    }
}
