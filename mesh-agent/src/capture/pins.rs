//! Where maps and links are pinned, so that they outlive the agent.
//!
//! `shared/` holds maps whose layout is frozen, `links/` the attachments, `<version>/` the maps
//! of one layout version, `agents/` a folder for each agent, which it keeps locked while it lives,
//! `leaving/` is locked by whoever wants the node's pods out of the mesh.
//! The invariants: `remove_all` leaves nothing of ours below the folder; of two agents with the same
//! folder one at a time changes what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_common::maps::LAYOUT_VERSION;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::CaptureError;
use super::loader;

/// Where a node mounts its bpf file system by custom.
const BPFFS: &str = "/sys/fs/bpf";
/// Prefix of the pins of links that hold a pod's sk_lookup program; the netns cookie follows.
const INBOUND_PREFIX: &str = "inbound-";

/// The folders of one agent's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Makes the folders, on a bpf file system that is mounted if need be.
    pub(super) fn create(root: &Path) -> Result<Self, CaptureError> {
        let pins = Self::existing(root);
        if root.starts_with(BPFFS) {
            mount_bpffs(Path::new(BPFFS))?;
        }
        fs::create_dir_all(root).map_err(CaptureError::file("create", root))?;
        mount_bpffs(root)?;
        for folder in [pins.shared(), pins.links(), pins.versioned(), pins.agents()] {
            fs::create_dir_all(&folder).map_err(CaptureError::file("create", &folder))?;
        }
        Ok(pins)
    }

    /// The folders of an agent that may have run before.
    pub(super) fn existing(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    pub(super) fn versioned(&self) -> PathBuf {
        self.root.join(LAYOUT_VERSION)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn agents(&self) -> PathBuf {
        self.root.join("agents")
    }

    fn agent(&self, program: u32) -> PathBuf {
        self.agents().join(program.to_string())
    }

    /// Says that an agent lives whose programs are known by this one's number: as long as the file
    /// is open. Agents that are dead are forgotten.
    pub(super) fn live(&self, program: u32) -> Result<fs::File, CaptureError> {
        for folder in folders_in(&self.agents()) {
            if fs::File::open(&folder).is_ok_and(|dead| dead.try_lock().is_ok()) {
                fs::remove_dir(&folder).map_err(CaptureError::file("remove", &folder))?;
            }
        }
        let folder = self.agent(program);
        let alive = fs::create_dir(&folder).and_then(|()| {
            let alive = fs::File::open(&folder)?;
            alive.lock()?;
            Ok(alive)
        });
        alive.map_err(CaptureError::file("lock", &folder))
    }

    /// Whether an agent has been here and has ended. One that has left no folder is not known.
    pub(super) fn is_dead(&self, program: u32) -> bool {
        fs::File::open(self.agent(program)).is_ok_and(|agent| agent.try_lock().is_ok())
    }

    /// Whether an agent lives that has these pins.
    pub(super) fn is_any_alive(&self) -> bool {
        folders_in(&self.agents()).any(|folder| is_locked(&folder))
    }

    fn leaving(&self) -> PathBuf {
        self.root.join("leaving")
    }

    /// Asks the agents to take every pod out of the mesh, for as long as the file is open: should
    /// whoever asks end before his time, they take them back in.
    pub(super) fn ask_to_leave(&self) -> Result<fs::File, CaptureError> {
        let folder = self.leaving();
        let asking = fs::create_dir_all(&folder).and_then(|()| {
            let asking = fs::File::open(&folder)?;
            asking.lock()?;
            Ok(asking)
        });
        asking.map_err(CaptureError::file("lock", &folder))
    }

    /// Whether somebody asks so now.
    pub(super) fn is_asked_to_leave(&self) -> bool {
        is_locked(&self.leaving())
    }

    /// Waits until no other agent changes what is pinned here, and keeps others from it until the
    /// file is closed.
    pub(super) fn lock(&self) -> Result<fs::File, CaptureError> {
        let folder = fs::File::open(&self.root).and_then(|folder| {
            folder.lock()?;
            Ok(folder)
        });
        folder.map_err(CaptureError::file("lock", &self.root))
    }

    /// Folders of maps of other layout versions.
    pub(super) fn other_versions(&self) -> Vec<PathBuf> {
        let own = [self.shared(), self.links(), self.versioned(), self.agents(), self.leaving()];
        folders_in(&self.root).filter(|folder| !own.contains(folder)).collect()
    }

    /// Pin of a link at the cgroup.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Pin of a pod's sk_lookup link.
    pub(super) fn inbound(&self, cookie: u64) -> PathBuf {
        self.links().join(format!("{INBOUND_PREFIX}{cookie}"))
    }

    /// Cookies of the pods whose sk_lookup link is pinned.
    pub(super) fn inbound_cookies(&self) -> Vec<u64> {
        let names = names_in(&self.links());
        names
            .iter()
            .filter_map(|path| {
                path.file_name()?.to_str()?.strip_prefix(INBOUND_PREFIX)?.parse().ok()
            })
            .collect()
    }

    /// Detaches and unpins everything below a pin folder, and the folder itself.
    pub(super) fn remove_all(root: &Path) -> Result<(), CaptureError> {
        let pins = Self::existing(root);
        for link in names_in(&pins.links()) {
            loader::detach(&link)?;
        }
        // Versions that this agent does not know are removed too. A fresh bpf file system also
        // holds two files of the kernel's (`maps.debug`, `progs.debug`), which go with it.
        folders_in(&pins.agents()).try_for_each(|folder| remove_folder(&folder))?;
        folders_in(root).try_for_each(|folder| remove_folder(&folder))?;
        if is_bpffs(root) && !root.starts_with(BPFFS) && is_mount_point(root) {
            umount2(root, MntFlags::empty())
                .map_err(|errno| CaptureError::file("unmount", root)(errno.into()))?;
        }
        match fs::remove_dir(root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CaptureError::file("remove", root)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether somebody holds the lock of a folder; not, if it is not there.
fn is_locked(folder: &Path) -> bool {
    fs::File::open(folder).is_ok_and(|file| file.try_lock_shared().is_err())
}

fn names_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn folders_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    names_in(folder).into_iter().filter(|path| path.is_dir())
}

/// Unpins all that is in a folder, and removes it.
pub(super) fn remove_folder(folder: &Path) -> Result<(), CaptureError> {
    for pin in names_in(folder) {
        fs::remove_file(&pin).map_err(CaptureError::file("remove", &pin))?;
    }
    fs::remove_dir(folder).map_err(CaptureError::file("remove", folder))
}

fn is_bpffs(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// A folder made on a mounted bpf file system is no mount point: its parent is of the same one.
fn is_mount_point(folder: &Path) -> bool {
    !folder.parent().is_some_and(is_bpffs)
}

fn mount_bpffs(folder: &Path) -> Result<(), CaptureError> {
    if is_bpffs(folder) {
        return Ok(());
    }
    mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| CaptureError::file("mount a bpf file system on", folder)(errno.into()))
}
