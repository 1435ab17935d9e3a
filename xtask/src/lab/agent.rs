//! One real agent per node, started as on a real node: in the node's network namespace and in a
//! cgroup of its own below the node's, where the programs that capture are attached.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::container::{JOIN, detach};
use super::host;
use super::topology::Node;

/// The trust domain of every lab.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// What an agent logs once it serves.
const READY: &str = "agent ready";
/// Loading and attaching takes well under a second; a busy machine takes longer.
const START_PATIENCE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// glibc's memcpy by `rep movsb` is many times slower on some CPUs (PERFORMANCE.md 9, lever 1).
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000");

/// How agents are started.
#[derive(Clone, Debug)]
pub(super) struct AgentOptions {
    pub(super) program: PathBuf,
    pub(super) workers: usize,
    pub(super) log_level: String,
    /// Who is asked for names.
    pub(super) dns_server: Ipv4Addr,
    /// Added at the end of every command line.
    pub(super) more: Vec<String>,
}

/// The folders and files that agents of a lab use.
#[derive(Clone, Debug)]
pub(super) struct AgentFiles {
    /// The lab's folder.
    pub(super) run: PathBuf,
    /// Manifests.
    pub(super) config: PathBuf,
    /// Root certificate and key (PEM).
    pub(super) ca: (PathBuf, PathBuf),
}

impl AgentFiles {
    pub(super) fn log(&self, node: &str) -> PathBuf {
        self.node(node).join("agent.log")
    }

    pub(super) fn socket(&self, node: &str) -> PathBuf {
        self.node(node).join("admin.sock")
    }

    fn node(&self, node: &str) -> PathBuf {
        self.run.join("nodes").join(node)
    }

    fn pins(&self, node: &str) -> PathBuf {
        self.run.join("bpf").join(node)
    }
}

/// An agent of a node.
#[derive(Debug)]
pub(super) struct Agent {
    child: Child,
    /// From the start of its process until it served.
    pub(super) start_time: Duration,
}

impl Agent {
    /// Starts an agent and waits until it serves.
    pub(super) fn start(
        node: &Node,
        options: &AgentOptions,
        files: &AgentFiles,
    ) -> anyhow::Result<Self> {
        let path = files.log(&node.name);
        fs::create_dir_all(files.node(&node.name))?;
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        let from = log.metadata()?.len();
        let pins = files.pins(&node.name);
        fs::create_dir_all(&pins).with_context(|| format!("make {}", pins.display()))?;
        let mut command = host::command("nsenter");
        command.arg(format!("--net={}", host::netns_path(&node.netns).display()));
        command.args(["sh", "-c", JOIN, "agent"]).arg(node.cgroup.join("agent/cgroup.procs"));
        command.arg(&options.program).args(["node", "--node-name", &node.name]);
        command.arg("--config-dir").arg(&files.config);
        command.arg("--cgroup").arg(&node.cgroup).arg("--pin-dir").arg(&pins);
        command.arg("--admin-socket").arg(files.socket(&node.name));
        command.args(["--workers", &options.workers.to_string()]);
        command.arg("--ca-cert").arg(&files.ca.0).arg("--ca-key").arg(&files.ca.1);
        command.args(["--trust-domain", TRUST_DOMAIN, "--log-level", &options.log_level]);
        command.args(["--dns-server", &options.dns_server.to_string()]);
        command.args(&options.more).env(TUNABLES.0, TUNABLES.1);
        detach(&mut command, &log)?;
        let started = SystemTime::now();
        let child = command.spawn().context("start an agent")?;
        let mut agent = Self { child, start_time: Duration::ZERO };
        let ready = agent.wait_ready(&path, from);
        if ready.is_err() {
            agent.signal(Signal::SIGKILL)?;
        }
        let line = ready.with_context(|| format!("the agent of {}", node.name))?;
        agent.start_time = since(started, &line).context("an agent's log without time stamps")?;
        Ok(agent)
    }

    /// Waits until it says that it serves; the line.
    fn wait_ready(&mut self, log: &Path, from: u64) -> anyhow::Result<String> {
        host::wait_for(START_PATIENCE, &format!("\"{READY}\" in {}", log.display()), || {
            let text = read_from(log, from)?;
            // A line is written whole, but may be read in parts.
            let said = text.split_inclusive('\n').find(|line| line.contains(READY));
            if let Some(line) = said.filter(|line| line.ends_with('\n')) {
                return Ok(Some(line.to_owned()));
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended: {status}; its log:\n{}", last_lines(&text, 20));
            }
            Ok(None)
        })
    }

    /// Ends it in order: connections drain first.
    pub(super) fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Kills it, as a crash would.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Its process, while it runs.
    pub(super) fn pid(&mut self) -> Option<u32> {
        matches!(self.child.try_wait(), Ok(None)).then(|| self.child.id())
    }

    fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(pid) = self.pid() {
            kill(Pid::from_raw(i32::try_from(pid)?), signal).context("signal an agent")?;
        }
        host::wait_for(STOP_PATIENCE, "an agent to end", || Ok(self.child.try_wait()?.map(|_| ())))
    }
}

/// Makes a certificate authority for a lab's agents; certificate and key.
pub(super) fn make_ca(program: &Path, dir: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let mut command = std::process::Command::new(program);
    command.args(["ca", "--out"]).arg(dir).args(["--trust-domain", TRUST_DOMAIN]);
    crate::tool::output(&mut command).context("make a certificate authority")?;
    Ok((dir.join("root-cert.pem"), dir.join("root-key.pem")))
}

/// From a moment to that of a log's line, which begins with its time (RFC 3339, UTC); less than a day.
fn since(start: SystemTime, line: &str) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    let (_, time) = line.split_whitespace().next()?.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.splitn(3, ':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    let seconds = part()? * 3600.0 + part()? * 60.0 + part()?;
    let end = Duration::try_from_secs_f64(seconds).ok()?;
    let start = start.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros() % DAY.as_micros();
    let start = Duration::from_micros(u64::try_from(start).ok()?);
    // The next day has begun meanwhile.
    let end = if end < start { end + DAY } else { end };
    Some(end - start)
}

fn read_from(path: &Path, from: u64) -> anyhow::Result<String> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a text, for a message.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_a_line_is_read_from_it() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_micros(seconds);
        let line = "2001-09-09T01:46:40.750000Z  INFO mesh_agent::agent::node: agent ready";
        assert_eq!(since(at(1_000_000_000_500_000), line), Some(Duration::from_millis(250)));
        let midnight = "1970-01-02T00:00:01.000000Z  INFO agent ready";
        assert_eq!(since(at(86_399_000_000), midnight), Some(Duration::from_secs(2)));
        assert_eq!(since(at(0), "agent ready"), None);
    }
}
