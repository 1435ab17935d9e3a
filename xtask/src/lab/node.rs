//! Nodes: a network namespace with an uplink to the fabric, a cgroup, and an agent.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::cgroup::Cgroup;
use super::{tail, text};

/// A process that only holds a network namespace open; killing it frees the namespace.
#[derive(Debug)]
pub(super) struct Holder {
    pid: u32,
    child: Mutex<Child>,
}

impl Holder {
    /// Starts one in a new network namespace (and mount and host name, for pods).
    pub(super) fn start(cgroup: &Cgroup, more: &[&str], script: &str) -> anyhow::Result<Self> {
        let enter = format!("echo $$ > {} && exec unshare --net \"$@\"", cgroup.procs());
        let hold = format!("{script}\nip link set lo up && echo held && exec sleep infinity");
        let mut child = Command::new("sh")
            .args(["-c", &enter, "sh"])
            .args(more)
            .args(["sh", "-ec", &hold])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a network namespace")?;
        let mut line = String::new();
        let output = child.stdout.take().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        if line.trim() != "held" {
            bail!("a network namespace could not be made: {}", child.wait()?);
        }
        Ok(Self { pid: child.id(), child: Mutex::new(child) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// `nsenter` into the network namespace.
    pub(super) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.pid.to_string()]);
        command
    }

    /// Runs `ip` with commands from a batch, each on a line.
    pub(super) fn ip(&self, batch: &str) -> anyhow::Result<()> {
        self.feed(&["ip", "-batch", "-"], batch)
    }

    /// Runs a program in the network namespace that reads `input`.
    fn feed(&self, program: &[&str], input: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut child = self
            .enter()
            .args(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {error}\nin: {input}", program.join(" "));
        }
        Ok(())
    }

    /// Sets kernel parameters of the namespace, `key=value`.
    pub(super) fn sysctl(&self, settings: &[&str]) -> anyhow::Result<()> {
        crate::tool::output(self.enter().args(["sysctl", "-qw"]).args(settings)).map(drop)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The network between the nodes: a bridge in a namespace of its own.
#[derive(Debug)]
pub(super) struct Fabric {
    holder: Holder,
}

impl Fabric {
    pub(super) fn create(cgroup: &Cgroup) -> anyhow::Result<Self> {
        let holder = Holder::start(&cgroup.child("fabric")?, &[], "")?;
        holder.ip("link add br0 type bridge\nlink set br0 up\n")?;
        Ok(Self { holder })
    }
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) index: usize,
    pub(super) holder: Holder,
    pub(super) cgroup: Cgroup,
    pub(super) agent_log: PathBuf,
    pub(super) admin_socket: PathBuf,
    agent: Mutex<Option<Child>>,
}

/// IPv4 address of a pod: `host` is counted from 1 on each node.
pub(super) fn pod_v4(node: usize, host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(10, u8::try_from(64 + node).unwrap_or(64), high, low)
}

/// IPv6 address of a pod.
pub(super) fn pod_v6(node: usize, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x64, u16::try_from(node).unwrap_or(0), 0, 0, 0, 0, host)
}

impl Node {
    pub(super) fn create(
        index: usize,
        count: usize,
        fabric: &Fabric,
        lab: &Cgroup,
        run_dir: &Path,
    ) -> anyhow::Result<Self> {
        let name = format!("node{index}");
        let cgroup = lab.child(&name)?;
        let holder = Holder::start(&cgroup.child("node")?, &[], "")?;
        let pid = holder.pid();
        fabric.holder.ip(&format!(
            "link add {name} type veth peer name uplink netns {pid}\n\
             link set {name} master br0 up\n"
        ))?;
        let mut batch = format!(
            "link set uplink up\n\
             addr add 172.30.0.{index}/24 dev uplink\n\
             addr add fd00:30::{index:x}/64 dev uplink nodad\n"
        );
        for other in (1..=count).filter(|other| *other != index) {
            let (v4, v6) = (pod_v4(other, 0), pod_v6(other, 0));
            batch.push_str(&format!(
                "route add {v4}/16 via 172.30.0.{other}\n\
                 route add {v6}/64 via fd00:30::{other:x}\n"
            ));
        }
        holder.sysctl(&[
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            // The machine's default may be bbr, which is not what clusters run.
            "net.ipv4.tcp_congestion_control=reno",
        ])?;
        holder.ip(&batch)?;
        let dir = run_dir.join("nodes").join(&name);
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all(run_dir.join("bpf"))?;
        cgroup.child("agent")?;
        cgroup.child("kubepods")?;
        Ok(Self {
            name,
            index,
            holder,
            cgroup,
            agent_log: dir.join("agent.log"),
            admin_socket: dir.join("admin.sock"),
            agent: Mutex::new(None),
        })
    }

    /// Starts the agent in the node's namespace and cgroup.
    pub(super) fn start_agent(
        &self,
        agent: &Path,
        run_dir: &Path,
        workers: usize,
    ) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.agent_log)?;
        let enter = format!("echo $$ > {} && exec \"$@\"", self.cgroup.child("agent")?.procs());
        let pin_dir = run_dir.join("bpf").join(&self.name);
        let child = Command::new("sh")
            .args(["-c", &enter, "sh", "nsenter", "--net", "--target"])
            .arg(self.holder.pid().to_string())
            .arg(agent)
            .args(["node", "--node-name", &self.name])
            .args(["--config-dir", &text(&run_dir.join("config"))])
            .args(["--cgroup", &text(self.cgroup.path())])
            .args(["--pin-dir", &text(&pin_dir)])
            .args(["--admin-socket", &text(&self.admin_socket)])
            .args(["--workers", &workers.to_string()])
            .args(["--ca-cert", &text(&run_dir.join("ca/root-cert.pem"))])
            .args(["--ca-key", &text(&run_dir.join("ca/root-key.pem"))])
            .args(["--log-level", "info"])
            // Some CPUs copy slowly when source and target share a page offset.
            .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", agent.display()))?;
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Waits until the agent that was started last serves.
    pub(super) fn wait_for_agent(&self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let log = std::fs::read_to_string(&self.agent_log).unwrap_or_default();
            // A restarted agent appends to the same log.
            let starts = log.matches("agent ready").count();
            let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(child) = agent.as_mut() else { bail!("{} has no agent", self.name) };
            if starts > self.agent_starts(&log) {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("the agent of {} ended: {status}\n{}", self.name, tail(&log));
            }
            if Instant::now() > end {
                bail!("the agent of {} is not ready\n{}", self.name, tail(&log));
            }
            drop(agent);
            super::pause();
        }
    }

    /// Agents of this node that were killed: each has logged that it was ready.
    fn agent_starts(&self, log: &str) -> usize {
        log.matches("lab: agent killed").count()
    }

    /// Ends the agent without warning.
    pub(super) fn kill_agent(&self) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut child) = agent.take() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        let mut log = std::fs::OpenOptions::new().append(true).open(&self.agent_log)?;
        writeln!(log, "lab: agent killed")?;
        Ok(())
    }

    pub(super) fn agent_memory_kib(&self) -> Option<u64> {
        let agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = agent.as_ref()?.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Loads an nftables ruleset into the node's namespace.
    pub(super) fn nft(&self, rules: &str) -> anyhow::Result<()> {
        self.holder.feed(&["nft", "-f", "-"], rules)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = self.agent.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
