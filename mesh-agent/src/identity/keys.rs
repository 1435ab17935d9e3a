//! Certificates and keys below `/run`, so that an agent that starts anew, or replaces another, serves
//! at once while the authority is away.
//!
//! The folder should be on a tmpfs: keys then never reach a disk, and a reboot forgets them.
//! Invariant: a file is complete or absent, only its owner reads it, and it is believed no more than
//! an authority's answer is: whoever loads it verifies it.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashSet;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Issued;
use super::pem::{block, certificate_pem};
use crate::model::SpiffeId;

/// Ending of the files; a folder may hold others, which are left alone.
const ENDING: &str = "pem";
/// A larger file is not one of ours: a chain of RSA certificates has some 10 KiB.
const LARGEST: u64 = 256 << 10;

/// A folder with one file per identity.
#[derive(Debug)]
pub struct KeyDir(PathBuf);

impl KeyDir {
    /// Makes the folder, for the own user only.
    ///
    /// # Errors
    /// When it cannot be made, is no folder, or belongs to another user.
    pub fn open(dir: &Path) -> io::Result<Self> {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(dir)?;
        if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::other("not a folder of this user's"));
        }
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        if !is_in_memory(dir) {
            tracing::warn!(dir = %dir.display(), "keys are kept on a disk, not in memory");
        }
        Ok(Self(dir.to_owned()))
    }

    /// Removes the folder with all keys; one that is not there is no error.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn clear(dir: &Path) -> io::Result<()> {
        let absent = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        if let Err(error) = Self(dir.to_owned()).keep_only([]) {
            return absent(error);
        }
        match fs::remove_dir(dir) {
            // Something of somebody else's.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.or_else(absent),
        }
    }

    /// Replaces the identity's file.
    pub(super) fn save(&self, identity: &SpiffeId, issued: &Issued) -> io::Result<()> {
        let path = self.path(identity);
        // Two agents may be at it while one takes over from the other.
        let draft = path.with_extension(format!("{}.{ENDING}", std::process::id()));
        let mut text = format!("{identity}\n");
        text.extend(issued.chain.iter().map(certificate_pem));
        text.push_str(&block(label(&issued.key), issued.key.secret_der()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&draft, &path));
        if written.is_err() {
            // A half-written draft says nothing to anybody.
            let _ = fs::remove_file(&draft);
        }
        written
    }

    /// What was kept of an identity.
    pub(super) fn load(&self, identity: &SpiffeId) -> io::Result<Option<Issued>> {
        let path = self.path(identity);
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        if found.len() > LARGEST {
            return Err(io::Error::other("too large"));
        }
        let text = fs::read(&path)?;
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(io::Error::other)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(io::Error::other)?;
        Ok(Some(Issued { chain, key }))
    }

    /// Forgets an identity.
    pub(super) fn remove(&self, identity: &SpiffeId) -> io::Result<()> {
        match fs::remove_file(self.path(identity)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Forgets all other identities, and drafts of agents that ended while they wrote.
    pub(super) fn keep_only<'a>(
        &self,
        used: impl IntoIterator<Item = &'a SpiffeId>,
    ) -> io::Result<()> {
        let used: FxHashSet<PathBuf> = used.into_iter().map(|one| self.path(one)).collect();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == ENDING) && !used.contains(&path) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// By digest: an identity can be longer than a file's name may be.
    fn path(&self, identity: &SpiffeId) -> PathBuf {
        let text = identity.to_string();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let name: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name).with_extension(ENDING)
    }
}

fn label(key: &PrivateKeyDer<'_>) -> &'static str {
    match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    }
}

fn is_in_memory(dir: &Path) -> bool {
    nix::sys::statfs::statfs(dir)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}
