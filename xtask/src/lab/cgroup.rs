//! The lab's part of the cgroup v2 tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A cgroup that the lab made.
#[derive(Clone, Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// Where cgroup v2 is mounted; beside v1 on hybrid systems.
    pub(super) fn mount_point() -> anyhow::Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let found = mounts.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (_, dir, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(dir))
        });
        found.context("cgroup v2 is not mounted on this machine")
    }

    pub(super) fn create(name: &str) -> anyhow::Result<Self> {
        Self(Self::mount_point()?).child(name)
    }

    pub(super) fn child(&self, name: &str) -> anyhow::Result<Self> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The file that takes processes.
    pub(super) fn procs(&self) -> String {
        self.0.join("cgroup.procs").to_string_lossy().into_owned()
    }

    /// Ends every process below (SIGKILL) and removes the tree.
    pub(super) fn destroy(&self) -> anyhow::Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        fs::write(self.0.join("cgroup.kill"), "1").context("kill the cgroup")?;
        super::wait(|| Ok(remove_tree(&self.0)))
            .with_context(|| format!("remove cgroup {}", self.0.display()))
    }
}

/// rmdir from the leaves up; false while something lives in it.
fn remove_tree(path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(path) else { return !path.exists() };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        if !remove_tree(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}
