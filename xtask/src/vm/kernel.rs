//! The guest's kernel: the one that this machine's Debian release ships, from its package.
//!
//! The package is unpacked in a folder of ours, not installed: the machine boots as before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::tool::{installed, output, run};

/// Depends on the kernel in force.
const META_PACKAGE: &str = "linux-image-amd64";

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    root: PathBuf,
    version: String,
}

impl Kernel {
    /// # Errors
    /// There is no such package, or no package mirror.
    pub(super) fn find_or_fetch(cache: &Path) -> anyhow::Result<Self> {
        let version = match newest(cache) {
            Some(version) => return Ok(Self { root: cache.join(&version), version }),
            None => version()?,
        };
        let root = cache.join(&version);
        let fresh = cache.join("fresh");
        // What an earlier attempt has left.
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
        let package = format!("linux-image-{version}");
        run(Command::new("apt-get").current_dir(&fresh).args(["-qq", "download", &package]))?;
        let file = fs::read_dir(&fresh)?.flatten().map(|entry| entry.path()).next();
        let file = file.with_context(|| format!("apt-get has brought no {package}"))?;
        let files = fresh.join("files");
        output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&files))?;
        output(Command::new(installed("depmod")?).arg("-b").arg(&files).arg(&version))?;
        fs::rename(&files, &root).with_context(|| format!("make {}", root.display()))?;
        fs::remove_dir_all(&fresh)?;
        Ok(Self { root, version })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// Folder that belongs at `/lib/modules`.
    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules")
    }

    /// Files of these modules and of those they need, in the order in which they are loaded.
    ///
    /// # Errors
    /// The kernel has no such module.
    pub(super) fn files_of(&self, modules: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in modules {
            let mut command = Command::new(installed("modprobe")?);
            command.arg("-d").arg(&self.root).args(["-S", &self.version, "--show-depends", module]);
            let text = output(&mut command)?;
            let needed = text.lines().filter_map(|line| line.strip_prefix("insmod "));
            for file in needed.map(|line| PathBuf::from(line.trim())) {
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

/// The one fetched before.
fn newest(cache: &Path) -> Option<String> {
    let names = fs::read_dir(cache).ok()?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit())).max()
}

/// The version that the release is at.
fn version() -> anyhow::Result<String> {
    let ask = || output(Command::new("apt-cache").args(["depends", META_PACKAGE]));
    let find = |text: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| Some(line.trim().strip_prefix("Depends: linux-image-")?.to_owned()))
    };
    if let Some(version) = ask().ok().as_deref().and_then(find) {
        return Ok(version);
    }
    run(Command::new("apt-get").args(["-qq", "update"]))?;
    find(&ask()?).with_context(|| format!("this release has no package {META_PACKAGE}"))
}
