//! A pod's network namespace: held open, named by its cookie, entered for one closure.
//!
//! Sockets keep the namespace they were made in, so entering is only needed to make one. The
//! invariant: a thread is back in its own namespace when `within` returns, or the process ends.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::socket;

/// An open network namespace.
#[derive(Debug)]
pub struct PodNet {
    file: File,
    cookie: u64,
}

impl PodNet {
    /// Opens a namespace by its file, as `/proc/<pid>/ns/net` or a bind mount.
    ///
    /// # Errors
    /// The kernel's, when the file is gone, is no network namespace, or may not be entered.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        let cookie = enter(&file, socket::netns_cookie)??;
        Ok(Self { file, cookie })
    }

    /// Opens the namespace of a process.
    ///
    /// # Errors
    /// As [`PodNet::open`].
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The kernel's number for this namespace, not used again before the next boot.
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The file, to attach programs to.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Runs a closure on this thread inside the namespace (about 4 microseconds both ways).
    ///
    /// The closure must not block and must not start threads, which would stay inside.
    ///
    /// # Errors
    /// The kernel's, when the namespace cannot be entered; then nothing was run.
    pub fn within<R>(&self, run: impl FnOnce() -> R) -> io::Result<R> {
        enter(&self.file, run)
    }
}

thread_local! {
    /// The namespace that the thread is in. Taken while it is in another one: what is entered from
    /// there leads back to there.
    static HOME: Cell<Option<File>> = const { Cell::new(None) };
}

/// Takes the thread back, also when the closure panics.
struct Home(Option<File>);

impl Home {
    /// Opening the file costs more than entering it, so it is kept.
    fn of_this_thread() -> io::Result<Self> {
        let kept = HOME.take();
        kept.map_or_else(|| File::open("/proc/thread-self/ns/net"), Ok).map(|file| Self(Some(file)))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Some(file) = self.0.take() else { return };
        if let Err(error) = setns(file.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Going on would serve one pod's traffic in another's namespace.
            tracing::error!(%error, "cannot return from the pod's network namespace");
            std::process::abort();
        }
        HOME.set(Some(file));
    }
}

fn enter<R>(file: &File, run: impl FnOnce() -> R) -> io::Result<R> {
    let home = Home::of_this_thread()?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let result = run();
    drop(home);
    Ok(result)
}
