//! What a lab stands on: its name, folder, cgroup, recorded processes, and the guardian that
//! removes them.
//!
//! As in [`crate::lab`], there is one way to clean up, `guardian.sh`, for every end that a lab can
//! come to. A lab that was told to stay ([`Ground::keep`]) has no guardian any more: `down` runs
//! it.
//!
//! Invariant: every process of a lab is recorded in `pids/` before it is anything, and its command
//! line names the lab's folder: nothing else is ever killed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::ground::{cgroup_mount, claim_lock};
use crate::lab::host;
use crate::lab::wait_for;
use crate::tool::say;

const GUARDIAN: &str = include_str!("guardian.sh");
/// Joins a cgroup (none if empty), records its own process number, becomes the rest of its words.
const RECORDED: &str = "set -e
[ -z \"$2\" ] || echo 0 >\"$2/cgroup.procs\"
echo $$ >\"$1\"
shift 2
exec \"$@\"";
/// In the folder of a lab that stays without an owner.
const KEPT: &str = "kept";
/// Links, namespaces and files are named after a lab.
const LONGEST_NAME: usize = 24;
/// What a killed process may take to be gone.
const END: Duration = Duration::from_secs(10);

/// A claimed name with what it stands for. Dropping it removes everything, unless it was kept.
#[derive(Debug)]
pub(super) struct Ground {
    /// Folder of the lab.
    pub(super) dir: PathBuf,
    /// What names of its network namespaces begin with.
    pub(super) prefix: String,
    /// Its cgroup; none for an API server alone.
    pub(super) cgroup: Option<PathBuf>,
    guardian: Option<Child>,
    _lock: Option<File>,
}

impl Ground {
    /// Claims a name, after removing what dead labs have left.
    ///
    /// # Errors
    /// A lab of that name is up, or no cgroup v2 (where nodes are wanted).
    pub(super) fn claim(name: &str, nodes: bool) -> anyhow::Result<Self> {
        check_name(name)?;
        sweep()?;
        let path = lock_file(name);
        let Some(lock) = claim_lock(&path)? else { bail!("Kubernetes lab {name} is up already") };
        let mut ground = Self::of(name)?;
        ensure!(
            !ground.dir.join(KEPT).exists(),
            "Kubernetes lab {name} is up already: `cargo xtask lab kube down {name}`"
        );
        let foreign = nodes.then(|| ground.debris()).flatten();
        if let Some(thing) = foreign {
            bail!("{thing} is there: does another checkout have a Kubernetes lab {name}?");
        }
        if !nodes {
            ground.cgroup = None;
        }
        // Before anything is made, so that there is no moment in which nobody would remove it.
        let guardian = ground.guardian(&lock, Stdio::piped())?.spawn();
        ground.guardian = Some(guardian.context("start the guardian of the lab")?);
        ground._lock = Some(lock);
        fs::create_dir_all(ground.dir.join("pids"))?;
        fs::create_dir_all(ground.dir.join("log"))?;
        if let Some(cgroup) = &ground.cgroup {
            fs::create_dir(cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
        }
        Ok(ground)
    }

    /// The ground of a lab that was kept, or is another process's. Dropping it does nothing.
    ///
    /// # Errors
    /// There is no such lab.
    pub(super) fn of_running(name: &str) -> anyhow::Result<Self> {
        check_name(name)?;
        let ground = Self::of(name)?;
        let hint = "`cargo xtask lab kube up`";
        ensure!(ground.dir.exists(), "there is no Kubernetes lab {name}: {hint}");
        Ok(ground)
    }

    fn of(name: &str) -> anyhow::Result<Self> {
        // Without cgroup v2 there can be no nodes, and so nothing in a cgroup.
        let cgroup = cgroup_mount().ok().map(|mount| mount.join(format!("klab-{name}")));
        let dir = runs().join(name);
        Ok(Self { dir, prefix: format!("klab-{name}-"), cgroup, guardian: None, _lock: None })
    }

    /// Something of this lab's names that is on the machine.
    fn debris(&self) -> Option<String> {
        let cgroup = self.cgroup.as_ref().filter(|cgroup| cgroup.exists());
        if let Some(cgroup) = cgroup {
            return Some(cgroup.display().to_string());
        }
        let spaces = host::netns_path("").read_dir().ok()?.filter_map(Result::ok);
        let mut names = spaces.filter_map(|entry| entry.file_name().into_string().ok());
        names.find(|name| name.starts_with(&self.prefix)).map(|name| format!("netns {name}"))
    }

    /// Leaves the lab up when its owner ends.
    ///
    /// # Errors
    /// The guardian is gone.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        fs::write(self.dir.join(KEPT), "")?;
        if let Some(mut guardian) = self.guardian.take() {
            let mut pipe = guardian.stdin.take().context("the guardian's pipe")?;
            pipe.write_all(b"keep\n").context("tell the guardian")?;
            guardian.wait()?;
        }
        Ok(())
    }

    fn guardian(&self, lock: &File, stdin: Stdio) -> anyhow::Result<Command> {
        let mut command = host::command("setsid");
        command.args(["sh", "-c", GUARDIAN, "malha-kube-guardian"]).arg(&self.dir);
        let name = self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        command.arg(lock_file(name)).arg(&self.prefix);
        command.arg(self.cgroup.as_deref().unwrap_or(Path::new("")));
        // The lock as its output: it holds it, and writes nothing there.
        command.stdin(stdin).stdout(lock.try_clone()?).stderr(Stdio::null());
        command.current_dir("/").env("PATH", host::PATH);
        Ok(command)
    }

    /// A process of the lab, not started yet: recorded under `name`, in a cgroup if one is given,
    /// out of reach of a terminal's Ctrl-C. Its output goes to `log`.
    pub(super) fn command(
        &self,
        name: &str,
        cgroup: Option<&Path>,
        log: &Path,
    ) -> anyhow::Result<Command> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = host::command("setsid");
        command.args(["sh", "-c", RECORDED, "recorded"]).arg(self.pid_file(name));
        command.arg(cgroup.unwrap_or(Path::new("")));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.current_dir("/").env("PATH", host::PATH);
        Ok(command)
    }

    /// The process recorded under a name, while it runs.
    pub(super) fn pid(&self, name: &str) -> Option<i32> {
        let pid = fs::read_to_string(self.pid_file(name)).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        line.contains(&format!("{}/", self.dir.display())).then_some(pid)
    }

    /// Kills the process recorded under a name and waits until it is gone.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub(super) fn end(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid(name).with_context(|| format!("{name} does not run"))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill {name}"))?;
        wait_for(END, &format!("the end of {name}"), || Ok(self.pid(name).is_none().then_some(())))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.dir.join("pids").join(name)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let Some(mut guardian) = self.guardian.take() else { return };
        drop(guardian.stdin.take());
        match guardian.wait() {
            Ok(status) if status.success() => {}
            ended => say(&format!("kube: {} is not removed in full: {ended:?}", self.prefix)),
        }
    }
}

/// Removes a lab that was kept, or what is left of a dead one.
///
/// # Errors
/// There is none, it has an owner, or something of it does not end.
pub(super) fn remove(name: &str) -> anyhow::Result<()> {
    let ground = Ground::of_running(name)?;
    let Some(lock) = claim_lock(&lock_file(name))? else {
        bail!("Kubernetes lab {name} belongs to a process that runs: it ends with it")
    };
    let status = ground.guardian(&lock, Stdio::null())?.status()?;
    ensure!(status.success(), "Kubernetes lab {name} is not removed in full: try again");
    Ok(())
}

/// Removes labs whose owner and guardian were both killed.
fn sweep() -> anyhow::Result<()> {
    let Ok(entries) = runs().read_dir() else { return Ok(()) };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if !runs().join(&name).is_dir() || runs().join(&name).join(KEPT).exists() {
            continue;
        }
        let Some(lock) = claim_lock(&lock_file(&name))? else { continue };
        say(&format!("kube: removing what a dead lab {name} has left"));
        Ground::of(&name)?.guardian(&lock, Stdio::null())?.status()?;
    }
    Ok(())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(fits),
        "the name of a lab is 1 to {LONGEST_NAME} small letters, digits and dashes, not `{name}`"
    );
    Ok(())
}

fn runs() -> PathBuf {
    super::folder().join("run")
}

fn lock_file(name: &str) -> PathBuf {
    runs().join(format!("{name}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_folder_of_labs() {
        for name in ["", "..", "a/b", "a b", "A", &"a".repeat(LONGEST_NAME + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("web-2").is_ok());
    }
}
