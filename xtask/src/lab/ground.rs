//! What a lab stands on: its number, folder and cgroup, and the guardian that removes them.
//!
//! There is one way to clean up, `guardian.sh`, for every end that a lab can come to: the guardian
//! waits for our end of a pipe to close, which the kernel does whatever happens to us. The lock of
//! a lab is held by its owner and its guardian together; a lab whose lock is free is debris, and
//! the next lab removes it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::names::{LabId, MAX_LABS};
use super::{RUN, host};

/// Memory for the files of one lab, containers' file systems included.
const SIZE: &str = "1g";
const GUARDIAN: &str = include_str!("guardian.sh");

/// A claimed number with its folder, cgroup and guardian. Dropping it removes all of them.
#[derive(Debug)]
pub(super) struct Ground {
    /// The lab's number.
    pub(super) id: LabId,
    /// Folder of the lab, a file system of its own in memory.
    pub(super) run: PathBuf,
    /// The lab's cgroup.
    pub(super) cgroup: PathBuf,
    guardian: Child,
    _lock: File,
}

impl Ground {
    /// Claims the first free number, after removing what dead labs have left.
    ///
    /// # Errors
    /// No cgroup v2, or every number is taken.
    pub(super) fn claim(name: Option<&str>) -> anyhow::Result<Self> {
        let unified = cgroup_mount()?;
        sweep(&unified);
        for id in (1..=MAX_LABS).map(LabId) {
            if let Some(lock) = try_claim(id)? {
                let name = name.map_or_else(|| id.to_string(), str::to_owned);
                return Self::settle(id, &name, lock, &unified);
            }
        }
        bail!("{MAX_LABS} labs run already: `cargo xtask lab down` ends one")
    }

    fn settle(id: LabId, name: &str, mut lock: File, unified: &Path) -> anyhow::Result<Self> {
        let run = Path::new(RUN).join(name);
        ensure!(!run.exists(), "lab {name} is there already: {}", run.display());
        // Whoever finds the lock free needs it to know what to remove.
        lock.write_all(name.as_bytes())?;
        let cgroup = cgroup_of(unified, name);
        // Before anything is made, so that there is no moment in which nobody would remove it.
        let guardian = guardian(id, &run, &cgroup, &lock, Stdio::piped())?
            .spawn()
            .context("start the guardian of the lab")?;
        let ground = Self { id, run, cgroup, guardian, _lock: lock };
        fs::create_dir_all(&ground.run)?;
        host::mount("tmpfs", &format!("size={SIZE},mode=0755"), &ground.run)?;
        fs::create_dir_all(&ground.cgroup)
            .with_context(|| format!("make cgroup {}", ground.cgroup.display()))?;
        Ok(ground)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        if let Err(error) = self.guardian.wait() {
            crate::tool::say(&format!("lab {}: its guardian is lost: {error}", self.id));
        }
    }
}

/// Where cgroup v2 is mounted: alone at `/sys/fs/cgroup`, or beside v1.
///
/// # Errors
/// It is not mounted.
pub(crate) fn cgroup_mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the list of mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("cgroup v2 is not mounted: `mount -t cgroup2 none /sys/fs/cgroup`")
}

fn cgroup_of(unified: &Path, name: &str) -> PathBuf {
    unified.join(format!("malha-lab-{name}"))
}

fn lock_file(id: LabId) -> PathBuf {
    Path::new(RUN).join(format!("{id}.lock"))
}

/// The lock of this lab, if nobody holds it.
fn try_claim(id: LabId) -> anyhow::Result<Option<File>> {
    claim_lock(&lock_file(id))
}

/// A lock in a file that whoever frees it removes; `None` if somebody holds it.
///
/// # Errors
/// The file or its folder cannot be made.
pub(crate) fn claim_lock(path: &Path) -> anyhow::Result<Option<File>> {
    let folder = path.parent().context("a lock without a folder")?;
    // A guardian that ends may remove the folder or the file under our hands: try again.
    for _ in 0..8 {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let Ok(file) = OpenOptions::new().create(true).append(true).open(path) else { continue };
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let ours = file.metadata()?.ino();
        if fs::metadata(path).is_ok_and(|meta| meta.ino() == ours) {
            return Ok(Some(file));
        }
    }
    bail!("cannot lock {}", path.display())
}

/// Removes labs whose owner and guardian were both killed.
fn sweep(unified: &Path) {
    for id in (1..=MAX_LABS).map(LabId).filter(|id| lock_file(*id).exists()) {
        let Ok(Some(lock)) = try_claim(id) else { continue };
        let name = fs::read_to_string(lock_file(id)).unwrap_or_default();
        // Its owner died before it had made anything.
        let name = if name.is_empty() { id.to_string() } else { name };
        let run = Path::new(RUN).join(&name);
        let cleaned = guardian(id, &run, &cgroup_of(unified, &name), &lock, Stdio::null())
            .and_then(|mut command| Ok(command.status()?));
        if let Err(error) = cleaned {
            crate::tool::say(&format!("cannot remove what lab {id} has left: {error:#}"));
        }
    }
}

fn guardian(
    id: LabId,
    run: &Path,
    cgroup: &Path,
    lock: &File,
    stdin: Stdio,
) -> anyhow::Result<Command> {
    let mut command = host::command("sh");
    command.args(["-c", GUARDIAN, "malha-lab-guardian", &id.to_string()]);
    command.arg(run).arg(cgroup).arg(lock_file(id));
    // The lock as its output: it holds it, and writes nothing there.
    command.stdin(stdin).stdout(lock.try_clone()?).stderr(Stdio::null());
    // A terminal's Ctrl-C goes to its foreground group: the guardian has to outlive that.
    command.process_group(0).current_dir("/");
    Ok(command)
}
