//! `mesh-agent cleanup`: nothing of the mesh stays on the node.
//!
//! It removes what agents leave on purpose, so that a restart interrupts nothing: pins and links, routes
//! in pods, keys, cached objects. With `--withdraw` it makes the living agents end first, in an
//! order in which no new connection fails: pods leave the mesh, agents drain and end (whoever removes
//! the mesh tells them to), the rest is removed. Invariant: no pin goes before the last agent has.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::node::listen;
use super::options::CleanupOptions;
use crate::admin::{Probes, serve_probes};
use crate::capture::{Capture, Leave, pods_cgroup};
use crate::identity::KeyDir;

/// How often the pins and the agents are looked at.
const POLL: Duration = Duration::from_millis(200);

/// Removes everything that agents have left on this node.
///
/// # Errors
/// What could not be removed, or agents that do not end.
pub async fn run(options: &CleanupOptions) -> anyhow::Result<()> {
    if options.withdraw {
        leave(options).await?;
    }
    Capture::cleanup(&options.pin_dir).context("cannot remove what was pinned")?;
    if let Some(cgroup) = &options.cgroup {
        Capture::restore_pods(&pods_cgroup(cgroup))
            .context("cannot restore the network of pods")?;
    }
    if let Some(dir) = &options.key_dir {
        KeyDir::clear(dir).with_context(|| format!("cannot remove keys in {}", dir.display()))?;
    }
    if let Some(dir) = &options.state_dir {
        empty(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    Ok(())
}

/// Returns when no pod is in the mesh and no agent is left.
async fn leave(options: &CleanupOptions) -> anyhow::Result<()> {
    let withdrawn = Arc::new(AtomicBool::new(false));
    let mut probes = JoinSet::new();
    if let Some(address) = options.probe_address {
        let is_done = withdrawn.clone();
        let missing = move || match is_done.load(Ordering::Relaxed) {
            true => Vec::new(),
            false => vec!["withdrawal of this node's pods".to_owned()],
        };
        let registry = Registry::default();
        let served = Arc::new(Probes { missing: Box::new(missing), registry });
        probes.spawn(serve_probes(listen(address).await?, served));
    }
    let Some(leave) = Leave::ask(&options.pin_dir)? else { return Ok(()) };
    let deadline = Instant::now() + Duration::from_secs(options.patience_seconds);
    while !leave.is_withdrawn() && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
    }
    withdrawn.store(true, Ordering::Relaxed);
    while !leave.is_alone() {
        ensure!(
            Instant::now() < deadline,
            "an agent still runs on this node: nothing was removed, and it takes its pods in again"
        );
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Removes the files of a folder, which may be a mount and so stays.
fn empty(dir: &Path) -> io::Result<()> {
    let entries = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_emptied_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("objects"), "x").unwrap();
        empty(dir.path()).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        empty(&dir.path().join("absent")).unwrap();
    }
}
