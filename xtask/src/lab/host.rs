//! Small things the lab asks of the machine: run `ip` and `nft`, enter a network namespace for
//! the length of a closure, mount, wait with a deadline.
//!
//! Invariant: the calling thread never changes its own namespaces; a thread made for it does.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use crate::tool::{find, shown};

/// Between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Where `ip netns` keeps namespaces by name.
const NAMED_NETNS: &str = "/run/netns";
/// What containers and the lab's own scripts find programs by.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program by name, also where only administrators' PATH would find it.
pub(crate) fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// Path of a named network namespace.
pub(crate) fn netns_path(name: &str) -> PathBuf {
    Path::new(NAMED_NETNS).join(name)
}

/// Runs lines of `ip` commands as one process, in a namespace if one is given.
pub(crate) fn ip(netns: Option<&str>, lines: &[String]) -> anyhow::Result<()> {
    let mut command = command("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    feed(command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
        .with_context(|| format!("in {}: {}", netns.unwrap_or("this namespace"), lines.join("; ")))
}

/// Replaces nftables rules in a namespace, all or nothing.
pub(super) fn nft(netns: &str, rules: &str) -> anyhow::Result<()> {
    feed(command("ip").args(["netns", "exec", netns, "nft", "-f", "-"]), rules)
}

fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}", shown(command), text.trim());
    }
    Ok(())
}

/// Runs `work` in a network namespace, on a thread of its own.
pub(super) fn within<T: Send>(
    netns: &Path,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let file = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
            work()
        });
        thread.join().unwrap_or_else(|_| bail!("a helper thread of the lab panicked"))
    })
}

/// Sets kernel settings of a namespace, given as paths below `/proc/sys/net`.
pub(crate) fn sysctl(netns: &str, settings: &[(&str, &str)]) -> anyhow::Result<()> {
    within(&netns_path(netns), || {
        for (path, value) in settings {
            fs::write(Path::new("/proc/sys/net").join(path), value)
                .with_context(|| format!("set {path} to {value}"))?;
        }
        Ok(())
    })
}

/// Mounts a file system without a device.
pub(super) fn mount(kind: &str, options: &str, at: &Path) -> anyhow::Result<()> {
    use nix::mount::MsFlags;
    nix::mount::mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mount {kind} at {}", at.display()))
}

/// Looks until there is an answer, or fails saying what was waited for.
///
/// # Errors
/// `look` failed, or nothing came before the deadline.
pub fn wait_for<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", patience.as_secs());
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// Writes a file so that a reader sees the old text or the new, never a part.
pub(super) fn replace(draft: &Path, path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(draft, text).with_context(|| format!("write {}", draft.display()))?;
    fs::rename(draft, path).with_context(|| format!("write {}", path.display()))
}
