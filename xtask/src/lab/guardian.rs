//! Removes a lab when its owner goes away, however it goes: done, failed, panicked, interrupted or
//! killed.
//!
//! The guardian is a shell that waits for the end of a pipe whose other end only the owner holds.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

use super::cgroup::Cgroup;
use super::{RUN, text};

/// Arguments: cgroup, run directory. Kills, waits for the cgroups to empty, unmounts, removes.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
cgroup=$1; run=$2
echo 1 > "$cgroup/cgroup.kill"
for try in $(seq 1 200); do
  find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null
  [ -d "$cgroup" ] || break
  sleep 0.05
done
for try in $(seq 1 100); do
  mountpoint -q "$run/bpf" || break
  umount "$run/bpf" 2>/dev/null || sleep 0.05
done
[ "$3" = keep ] || rm -rf --one-file-system "$run"
[ ! -d "$cgroup" ]
"#;

/// The process that cleans up.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Option<Child>,
}

impl Guardian {
    pub(super) fn start(run_dir: &Path, cgroup: &Cgroup) -> anyhow::Result<Self> {
        let child = Command::new("setsid")
            .args(["sh", "-c", SCRIPT, "malha-lab-guardian"])
            .arg(cgroup.path())
            .arg(run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the guardian")?;
        Ok(Self { child: Some(child) })
    }

    /// Cleans up now and waits for it.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        drop(child.stdin.take());
        let status = child.wait()?;
        ensure!(status.success(), "the lab could not be removed in full");
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            crate::tool::say(&format!("lab: {error:#}"));
        }
    }
}

/// Removes what labs left whose owner and guardian were both killed.
pub(super) fn sweep() -> anyhow::Result<()> {
    let Ok(labs) = std::fs::read_dir(RUN) else { return Ok(()) };
    for lab in labs.flatten() {
        let owner = std::fs::read_to_string(lab.path().join("owner")).unwrap_or_default();
        let alive = Path::new("/proc").join(owner.trim()).exists();
        // A lab whose owner is not written yet is just being made.
        if owner.is_empty() || alive || guarded(&lab.path()) {
            continue;
        }
        let name = lab.file_name().to_string_lossy().into_owned();
        Cgroup::create(&format!("malha-lab-{name}"))?.destroy()?;
        let _ = super::run("umount", &[&text(&lab.path().join("bpf"))]);
        std::fs::remove_dir_all(lab.path())?;
    }
    Ok(())
}

/// Whether a guardian of that lab is at work.
fn guarded(run_dir: &Path) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    let wanted = text(run_dir);
    let lines = processes
        .flatten()
        .map(|process: std::fs::DirEntry| -> PathBuf { process.path().join("cmdline") });
    lines.filter_map(|file| std::fs::read(file).ok()).any(|line| {
        let line = String::from_utf8_lossy(&line);
        line.contains("malha-lab-guardian") && line.split('\0').any(|word| word == wanted)
    })
}
