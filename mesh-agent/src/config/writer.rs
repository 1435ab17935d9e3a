//! What the agents tell each other: which pods are enrolled.
//!
//! Through a folder: one file per node, `.malha/enrolled-<node>`, one pod UID a line, replaced as a
//! whole. Through the API server: an annotation of the pod (see `cluster/annotate`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

/// Folder of the agents' own files, below the manifests'.
pub(super) const STATUS_DIR: &str = ".malha";
/// Start of the name of a node's list.
pub(super) const ENROLLED: &str = "enrolled-";

/// What an agent has to say about the pods of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Generation of the snapshot that it was made from: of pods of later ones it says nothing.
    pub generation: u64,
    /// UIDs of pods that take tunnels.
    pub enrolled: BTreeSet<Arc<str>>,
    /// Why a pod that its labels select is not one of them, by UID.
    pub failed: BTreeMap<Arc<str>, String>,
}

/// Where announcements go.
#[derive(Debug)]
pub enum Announcer {
    /// To a folder, under the name of a node.
    Folder(PathBuf, Arc<str>),
    /// To whoever writes to the API server, [`annotate`](super::annotate).
    Cluster(watch::Sender<Option<Arc<Announcement>>>),
}

impl Announcer {
    /// Announces what comes after `before`.
    ///
    /// # Errors
    /// If the folder cannot be written. The API server is tried until it is done.
    pub fn announce(
        &self,
        announcement: &Announcement,
        before: Option<&Announcement>,
    ) -> io::Result<()> {
        match self {
            Self::Folder(..) if before.is_some_and(|b| b.enrolled == announcement.enrolled) => {
                Ok(())
            }
            Self::Folder(dir, node) => announce(dir, node, &announcement.enrolled),
            Self::Cluster(wanted) => {
                wanted.send_replace(Some(Arc::new(announcement.clone())));
                Ok(())
            }
        }
    }
}

/// Writes the list of a node's enrolled pods; readers see the old list or the new, never a part.
///
/// # Errors
///
/// If the node's name cannot be a file's, or the folder cannot be written.
pub(super) fn announce(dir: &Path, node: &str, uids: &BTreeSet<Arc<str>>) -> io::Result<()> {
    if node.is_empty() || node.contains(['/', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a node name"));
    }
    let dir = dir.join(STATUS_DIR);
    fs::create_dir_all(&dir)?;
    // The name does not start as a list's does, so a half-written one is never read.
    let draft = dir.join(format!(".{node}.draft"));
    let mut file = fs::File::create(&draft)?;
    for uid in uids {
        writeln!(file, "{uid}")?;
    }
    drop(file);
    fs::rename(&draft, dir.join(format!("{ENROLLED}{node}")))
}

/// Reads a list.
pub(super) fn read_list(text: &str) -> BTreeSet<Arc<str>> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Arc::from).collect()
}
