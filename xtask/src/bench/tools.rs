//! The tools against each other, without a mesh: load is made and counted exactly.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::build::Built;
use crate::tool::{output, say};

/// Requests of one smoke run.
const REQUESTS: u64 = 2_000;

/// An echo server that ends with this value.
struct Echo {
    child: Child,
    http: SocketAddr,
    tcp: SocketAddr,
}

/// Every mode of the load generator against the echo server on loopback, with exact counts.
///
/// # Errors
/// A tool does not build, or a count is not what was asked for.
pub(super) fn check(built: &Built) -> anyhow::Result<()> {
    let echo = Echo::start(&built.echo)?;
    let url = format!("http://{}/?size=64", echo.http);
    let (tcp, requests) = (echo.tcp.to_string(), REQUESTS.to_string());
    let http = ["http", url.as_str(), "--requests", requests.as_str(), "--concurrency", "16"];
    say("mode              requests  per second  p50 us  p99 us");
    for (mode, more) in [
        ("http/1.1", &[][..]),
        ("http/1.1 new", &["--new-connections"]),
        ("http/2", &["--http2", "--connections", "2"]),
        ("grpc", &["--grpc", "--body", "hello", "--expect-echo"]),
    ] {
        let report = load(&built.load, &[&http[..], more].concat())?;
        expect(&report, "/succeeded", REQUESTS).with_context(|| mode.to_owned())?;
        expect(&report, "/statuses/200", REQUESTS).with_context(|| mode.to_owned())?;
        row(mode, &report)?;
    }
    let websocket = ["websocket", url.as_str(), "--messages", "200"];
    for (mode, words, count) in [
        ("websocket", &websocket[..], 200),
        ("tcp ping", &["tcp", "ping", &tcp, "--connections", "4", "--messages", "250"], 1000),
    ] {
        let report = load(&built.load, words)?;
        expect(&report, "/succeeded", count).with_context(|| mode.to_owned())?;
        row(mode, &report)?;
    }
    let size: u64 = 64 << 20;
    let report = load(&built.load, &["tcp", "bulk", &tcp, "--bytes", &size.to_string()])?;
    expect(&report, "/bytes_received", size).context("tcp bulk")?;
    let speed = report.pointer("/megabits_per_second").and_then(Value::as_f64).unwrap_or(0.0);
    say(&format!("tcp bulk          {speed:.0} Mbit/s each way, with hashes"));
    Ok(())
}

/// Runs the load generator and reads its report.
fn load(program: &Path, words: &[&str]) -> anyhow::Result<Value> {
    let text = output(Command::new(program).args(words))?;
    serde_json::from_str(&text).with_context(|| format!("read the report of {words:?}: {text}"))
}

fn expect(report: &Value, field: &str, wanted: u64) -> anyhow::Result<()> {
    let found = report.pointer(field).and_then(Value::as_u64);
    ensure!(found == Some(wanted), "{field} is {found:?}, not {wanted}: {report}");
    Ok(())
}

fn row(mode: &str, report: &Value) -> anyhow::Result<()> {
    let number = |field: &str| {
        report.pointer(field).and_then(Value::as_f64).with_context(|| format!("no {field}"))
    };
    say(&format!(
        "{mode:<17} {:>8}  {:>10.0}  {:>6}  {:>6}",
        number("/requests")?,
        number("/per_second")?,
        number("/latency_us/p50")?,
        number("/latency_us/p99")?
    ));
    Ok(())
}

impl Echo {
    /// Starts it on free ports and waits until it serves.
    fn start(program: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .args(["--bind", "127.0.0.1", "--http", "0", "--tcp", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let ports = child.stdout.take().context("no output").and_then(addresses);
        match ports {
            Ok((http, tcp)) => Ok(Self { child, http, tcp }),
            Err(error) => {
                // It may have ended by itself; either way nothing is left of it.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// Reads the addresses that the echo server announces, until it is ready.
fn addresses(out: ChildStdout) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let (mut http, mut tcp) = (None, None);
    for line in BufReader::new(out).lines() {
        match line?.split_once(' ') {
            Some(("http", address)) => http = Some(address.parse()?),
            Some(("tcp", address)) => tcp = Some(address.parse()?),
            _ => return http.zip(tcp).context("the echo server did not name its ports"),
        }
    }
    bail!("the echo server ended before it was ready")
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Nothing to do about a process that cannot be ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
