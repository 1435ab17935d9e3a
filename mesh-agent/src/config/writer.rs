//! What the agents tell each other through the folder: which pods are enrolled.
//!
//! One file per node, `.malha/enrolled-<node>`, one pod UID a line, replaced as a whole. With the
//! API server as source, a pod's annotation takes its place.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

/// Folder of the agents' own files, below the manifests'.
pub(super) const STATUS_DIR: &str = ".malha";
/// Start of the name of a node's list.
pub(super) const ENROLLED: &str = "enrolled-";

/// Writes the list of a node's enrolled pods; readers see the old list or the new, never a part.
///
/// # Errors
///
/// If the node's name cannot be a file's, or the folder cannot be written.
pub fn announce(dir: &Path, node: &str, uids: &BTreeSet<Arc<str>>) -> io::Result<()> {
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
