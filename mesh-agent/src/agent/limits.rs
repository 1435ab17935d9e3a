//! The agent's share of the machine: open files and memory, and what of it is for the pods.
//!
//! Sources: getrlimit(2); cgroups(7) and the kernel's `admin-guide/cgroup-v2.rst`, `memory.max`;
//! proc(5), `meminfo`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::http::REQUEST_MEMORY;
use crate::tunnel::{Budget, Usage};

/// Descriptors that are no pod's: maps and links, admin interface, configuration, the log.
const RESERVE: u64 = 1024;

/// Octets that one socket costs beside what it sets aside: its task, what a copy keeps, the state of
/// TLS if it carries a tunnel.
const SOCKET: u64 = 32 * 1024;

/// Octets that one stream of a tunnel costs: its first window and what waits to be sent.
const STREAM: u64 = 96 * 1024;

/// Memory that there is at the least, so that the agent is of use at all.
const LEAST_MEMORY: u64 = 48 << 20;

/// Sockets that there are at the least.
const LEAST_SOCKETS: u64 = 64;

/// Raises the limit of open files as far as it goes, and returns it: the soft limit is what old
/// programs with select(2) can bear.
pub(super) fn raise_descriptors() -> anyhow::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")?;
    Ok(hard)
}

/// Octets that the pods' connections may take if nothing else is said: three quarters of what the
/// agent can have, which is the machine's memory or the limit of a cgroup that it is in.
pub(super) fn memory() -> anyhow::Result<u64> {
    let machine = read("/proc/meminfo")?;
    let machine = memory_total(&machine).context("no MemTotal in /proc/meminfo")?;
    let limit = match own_cgroup(&read("/proc/self/cgroup")?, &read("/proc/self/mounts")?) {
        Some((mount, own)) => cgroup_limit(&mount, &own),
        None => None,
    };
    Ok(limit.map_or(machine, |limit| limit.min(machine)) / 4 * 3)
}

/// What pods share. Of `memory` a third each is for sockets and streams, for HTTP requests, and for
/// buffers above the least.
pub(super) fn budget(descriptors: u64, memory: u64) -> Arc<Budget> {
    let third = memory.max(LEAST_MEMORY) / 3;
    let sockets = (third / 2 / SOCKET).min(descriptors.saturating_sub(RESERVE)).max(LEAST_SOCKETS);
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX >> 2);
    let (sockets, streams, memory) = (size(sockets), size(third / 2 / STREAM), size(third));
    Budget::new(Usage { sockets, streams, requests: memory / REQUEST_MEMORY, memory })
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where cgroup v2 is mounted, and the agent's own one in it.
fn own_cgroup(own: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })?;
    let own = mount.join(own);
    Some((mount, own))
}

/// The lowest `memory.max` of a cgroup and those above it, up to the mount.
fn cgroup_limit(mount: &Path, own: &Path) -> Option<u64> {
    let above = own.ancestors().take_while(|path| path.starts_with(mount));
    // Absent at the root and where the controller is off; "max" is no limit.
    above
        .filter_map(|path| fs::read_to_string(path.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_or_memory_bound_the_sockets() {
        let most = |descriptors, memory| {
            let most = budget(descriptors, memory).most();
            (most.sockets, most.streams, most.requests, most.memory)
        };
        let gib = 1 << 30;
        assert_eq!(most(20_000, 24 * gib), (18_976, 43_690, 13_107, 8 << 30));
        assert_eq!(most(1 << 30, 3 * gib), (16_384, 5_461, 1_638, 1 << 30));
        assert_eq!(most(0, 0), (64, 85, 25, 16 << 20));
    }

    #[test]
    fn memory_is_the_machines_or_the_lowest_of_the_cgroups() {
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /c cgroup2 rw 0 0\n";
        let own = own_cgroup("1:cpu:/x\n0::/pods/agent\n", mounts).unwrap();
        assert_eq!(own, (PathBuf::from("/c"), PathBuf::from("/c/pods/agent")));
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let inner = dir.join("pods/agent");
        fs::create_dir_all(&inner).unwrap();
        assert_eq!(cgroup_limit(dir, &inner), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(dir.join("pods/memory.max"), "4096\n").unwrap();
        fs::write(dir.join("memory.max"), "8192\n").unwrap();
        assert_eq!(cgroup_limit(dir, &inner), Some(4096));
    }
}
