//! The socket's file: made for its owner only, replaced in one step, removed when done.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A listening socket that takes its file along when dropped.
#[derive(Debug)]
pub struct AdminSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl AdminSocket {
    /// Listens at `path`, mode 0600, in place of whatever socket is there: a dead agent's, or the
    /// agent's that this one takes over from. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the directory or socket cannot be made, or `path` is a file of another kind.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "not a socket"));
            }
            _ => {}
        }
        // Made elsewhere and moved, so that nobody sees it before its mode is set.
        let fresh = path.with_file_name(format!(".{}", std::process::id()));
        let bound = Self::bind_at(&fresh).and_then(|(listener, inode)| {
            fs::rename(&fresh, path)?;
            Ok(Self { listener, path: path.to_owned(), inode })
        });
        if bound.is_err() {
            remove(&fresh);
        }
        bound
    }

    fn bind_at(fresh: &Path) -> io::Result<(UnixListener, u64)> {
        remove(fresh);
        let listener = UnixListener::bind(fresh)?;
        fs::set_permissions(fresh, Permissions::from_mode(0o600))?;
        Ok((listener, fs::symlink_metadata(fresh)?.ino()))
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The next agent may have put its own socket there already.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            remove(&self.path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "socket not removed"),
    }
}
