//! One container: started inside its pod, watched, started again, probed, entered.
//!
//! Invariant: a process of a container is in the container's cgroup before it does anything.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::host;
use super::plan::{Plan, Probe};

const START: &str = include_str!("container.sh");
/// Moves itself into a cgroup, then becomes another program.
pub(crate) const JOIN: &str = "echo 0 >\"$1\" && shift && exec \"$@\"";
/// First pause before a container that ended is started again; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A container without a probe counts as ready when its declared ports listen, or after this long.
const PORTS_PATIENCE: Duration = Duration::from_secs(10);
const PROBE_PERIOD: Duration = Duration::from_millis(500);
/// State LISTEN in `/proc/net/tcp` (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// What a pod's containers share.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    pub(super) netns: String,
    pub(super) hostname: String,
    /// The pod's cgroup.
    pub(super) cgroup: PathBuf,
    /// The pod's folder.
    pub(super) dir: PathBuf,
    /// Folders of the machine that the containers see where they are, read-only.
    pub(super) shared: Vec<PathBuf>,
    pub(super) resolv_conf: String,
    pub(super) hosts: String,
}

/// What happens when a container ends (`spec.restartPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// A container of a pod.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) plan: Plan,
    pub(super) restarts: u32,
    pub(super) ready: bool,
    /// It ended and is not started again: whether it succeeded.
    pub(super) finished: Option<bool>,
    child: Option<Child>,
    due: Instant,
    started: Instant,
    probe: Option<Child>,
    next_probe: Instant,
}

impl Container {
    pub(super) fn new(plan: Plan) -> Self {
        let now = Instant::now();
        Self {
            plan,
            restarts: 0,
            ready: false,
            finished: None,
            child: None,
            due: now,
            started: now,
            probe: None,
            next_probe: now,
        }
    }

    /// Its main process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// File with what it wrote to standard output and standard error.
    pub(super) fn log(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.dir.join(format!("{}.log", self.plan.name))
    }

    /// Starts it with a fresh file system.
    pub(super) fn start(&mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let base = sandbox.dir.join(&self.plan.name);
        prepare(&base, &self.plan, sandbox)?;
        let procs = self.procs(sandbox)?;
        let log = OpenOptions::new().create(true).append(true).open(self.log(sandbox))?;
        let mut command = host::command("nsenter");
        command.arg(format!("--net={}", host::netns_path(&sandbox.netns).display()));
        // --ipc: what a database shares by System V's means ends with it, however it ends.
        command.args(["unshare", "--mount", "--uts", "--ipc", "--propagation", "private"]);
        command.args(["sh", "-c", START, "container"]);
        command.arg(procs).arg(&base).args([&sandbox.hostname, &self.plan.directory]);
        command.args(self.variables(sandbox)).args(&self.plan.command);
        detach(&mut command, &log)?;
        let child =
            command.spawn().with_context(|| format!("start container {}", self.plan.name))?;
        self.started = Instant::now();
        self.child = Some(child);
        Ok(())
    }

    fn procs(&self, sandbox: &Sandbox) -> anyhow::Result<PathBuf> {
        let cgroup = sandbox.cgroup.join(&self.plan.name);
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        Ok(cgroup.join("cgroup.procs"))
    }

    fn variables(&self, sandbox: &Sandbox) -> Vec<String> {
        let base = [("PATH", host::PATH), ("HOSTNAME", &sandbox.hostname), ("HOME", "/root")];
        let base = base.iter().map(|(name, value)| format!("{name}={value}"));
        base.chain(self.plan.environment.iter().map(|(name, value)| format!("{name}={value}")))
            .collect()
    }

    /// A command inside the running container, in its namespaces, cgroup and environment.
    pub(super) fn enter(&self, sandbox: &Sandbox, words: &[&str]) -> anyhow::Result<Command> {
        let pid =
            self.pid().with_context(|| format!("container {} is not running", self.plan.name))?;
        let mut command = host::command("sh");
        command.args(["-c", JOIN, "enter"]).arg(self.procs(sandbox)?);
        command.args([
            "nsenter",
            "--target",
            &pid.to_string(),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
        ]);
        command.args(["env", "-i"]).args(self.variables(sandbox)).args(words);
        Ok(command)
    }

    /// Looks whether it ended, starts it again when it is time, probes. Says whether anything that
    /// others can see has changed.
    pub(super) fn tick(&mut self, sandbox: &Sandbox, restart: Restart) -> anyhow::Result<bool> {
        if self.finished.is_some() {
            return Ok(false);
        }
        let before = (self.ready, self.restarts, self.finished);
        let now = Instant::now();
        if let Some(child) = &mut self.child {
            if let Some(status) = child.try_wait()? {
                // What it has started goes with it, as with a container's own process numbers.
                fs::write(sandbox.cgroup.join(&self.plan.name).join("cgroup.kill"), "1")
                    .context("end a container (Linux 5.14 and later)")?;
                self.ended(status.success(), restart, now);
            } else {
                self.ready = self.check_ready(sandbox, now)?;
            }
        } else if now >= self.due {
            self.restarts += 1;
            self.start(sandbox)?;
        }
        Ok(before != (self.ready, self.restarts, self.finished))
    }

    fn ended(&mut self, success: bool, restart: Restart, now: Instant) {
        self.child = None;
        self.probe = None;
        self.ready = false;
        let again = match restart {
            Restart::Always => true,
            Restart::OnFailure => !success,
            Restart::Never => false,
        };
        if !again {
            self.finished = Some(success);
        }
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.restarts.min(8));
        self.due = now + backoff.min(LAST_BACKOFF);
    }

    fn check_ready(&mut self, sandbox: &Sandbox, now: Instant) -> anyhow::Result<bool> {
        let Some(pid) = self.pid() else { return Ok(false) };
        match self.plan.probe.clone() {
            None => Ok(self.ready
                || now - self.started > PORTS_PATIENCE
                || (in_container(pid) && listening(pid, &self.plan.ports))),
            Some(Probe::Tcp(port)) => Ok(listening(pid, &[port])),
            Some(Probe::Command(words)) => self.run_probe(sandbox, &words, now),
        }
    }

    fn run_probe(
        &mut self,
        sandbox: &Sandbox,
        words: &[String],
        now: Instant,
    ) -> anyhow::Result<bool> {
        if let Some(probe) = &mut self.probe {
            let Some(status) = probe.try_wait()? else { return Ok(self.ready) };
            self.probe = None;
            return Ok(status.success());
        }
        if now >= self.next_probe {
            self.next_probe = now + PROBE_PERIOD;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut command = self.enter(sandbox, &words)?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.probe = Some(command.spawn().context("start a probe")?);
        }
        Ok(self.ready)
    }

    /// Asks the main process to end.
    pub(super) fn terminate(&self) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Whether its main process is gone; collects it.
    pub(super) fn gone(&mut self) -> bool {
        let gone = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if gone {
            self.child = None;
        }
        gone
    }
}

/// Own process group (a Ctrl-C for us is not for them), nothing to read, `log` to write to.
pub(super) fn detach(command: &mut Command, log: &File) -> anyhow::Result<()> {
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    command.process_group(0).current_dir("/").env("PATH", host::PATH);
    Ok(())
}

/// The writable layer: the image's files and the pod's own ones below `/etc`.
fn prepare(base: &Path, plan: &Plan, sandbox: &Sandbox) -> anyhow::Result<()> {
    match fs::remove_dir_all(base) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", base.display()));
        }
        _ => {}
    }
    for part in ["upper", "work", "root"] {
        fs::create_dir_all(base.join(part))?;
    }
    let own = [
        ("/etc/resolv.conf", sandbox.resolv_conf.clone()),
        ("/etc/hosts", sandbox.hosts.clone()),
        ("/etc/hostname", format!("{}\n", sandbox.hostname)),
    ];
    for (path, text) in own.iter().chain(&plan.image.files) {
        let path = base.join("upper").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap_or(base))?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let volumes = plan.mounts.iter().map(|(source, target, write)| (source, target, *write));
    let programs = plan.image.programs.iter().map(|(source, target)| (source, target, false));
    let line = |(source, target, write): (&PathBuf, &String, bool)| {
        format!("{}\t{target}\t{}\n", source.display(), if write { "rw" } else { "ro" })
    };
    let shared: Vec<(&PathBuf, String)> =
        sandbox.shared.iter().map(|path| (path, path.display().to_string())).collect();
    let shared = shared.iter().map(|(path, target)| (*path, target, false));
    let lines = volumes.chain(programs).chain(shared).map(line).collect::<String>();
    fs::write(base.join("mounts"), lines)?;
    Ok(())
}

/// Whether the container's own program runs already, not what leads up to it.
fn in_container(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let starting = ["nsenter", "unshare", "sh", "env", "mount"];
    let root = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    // After pivot_root the overlay is the root.
    root.lines().any(|line| line.contains(" / / ") && line.contains(" - overlay "))
        && (name.trim() == "sh" || !starting.contains(&name.trim()))
}

/// Whether all of these TCP ports have a listener in the network namespace of `pid`.
fn listening(pid: u32, ports: &[u16]) -> bool {
    if ports.is_empty() {
        return true;
    }
    let table = |name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let text = table("tcp") + &table("tcp6");
    let open = |port: &u16| {
        let suffix = format!(":{port:04X}");
        text.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            matches!(fields.as_slice(), [_, local, _, LISTEN, ..] if local.ends_with(&suffix))
        })
    };
    ports.iter().all(open)
}
