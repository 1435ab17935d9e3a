//! The kubelet's probes: where the kubelet is, and which ports it may reach past the agent.
//!
//! The kubelet is a process outside the pods' cgroups: a service of its own, or part of one (k3s,
//! RKE2). Whatever shares its cgroup can do what it can; a cgroup that pods are in is refused.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError};
use mesh_common::maps::ServiceKey;

use super::lock;
use super::pods::{children, is_kubepods, lists, name_of};

/// Names of processes that have a kubelet in them (`/proc/<pid>/comm`, 15 octets).
const NAMES: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "rke2"];
/// Deeper than any service's cgroup.
const MAX_DEPTH: u32 = 8;

/// Ports that the kubelet may reach past the agent.
pub(super) struct Probes(Mutex<Table>);

struct Table {
    map: HashMap<MapData, ServiceKey, u8>,
    written: BTreeSet<SocketAddr>,
}

impl Probes {
    pub(super) fn new(map: HashMap<MapData, ServiceKey, u8>) -> Self {
        Self(Mutex::new(Table { map, written: BTreeSet::new() }))
    }

    /// Makes these the ports, and no others.
    pub(super) fn set(&self, ports: &BTreeSet<SocketAddr>) -> Result<(), MapError> {
        let mut table = lock(&self.0);
        let gone: Vec<SocketAddr> = table.written.difference(ports).copied().collect();
        for port in gone {
            table.map.remove(&key(port))?;
            table.written.remove(&port);
        }
        for port in ports {
            if !table.written.contains(port) {
                table.map.insert(key(*port), 1, 0)?;
                table.written.insert(*port);
            }
        }
        Ok(())
    }
}

fn key(port: SocketAddr) -> ServiceKey {
    ServiceKey { ip: port.ip().into(), port: port.port().into() }
}

/// The cgroup of the node's kubelet, below `root`, if there is a kubelet to be seen.
///
/// # Errors
/// The cgroup has pods in it, or below it: to let its sockets through would let theirs.
pub fn kubelet_cgroup(root: &Path) -> io::Result<Option<PathBuf>> {
    let Some(pid) = kubelet() else { return Ok(None) };
    let Some(cgroup) = cgroup_of(root, pid, MAX_DEPTH) else { return Ok(None) };
    if holds_pods(&cgroup, MAX_DEPTH) {
        let message = format!("the kubelet shares the cgroup {} with pods", cgroup.display());
        return Err(io::Error::other(message));
    }
    Ok(Some(cgroup))
}

fn kubelet() -> Option<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        NAMES.contains(&name.trim_end())
    })
}

/// The folder that lists a process. Its path in `/proc/<pid>/cgroup` is of little use to an agent that
/// has a cgroup namespace of its own.
fn cgroup_of(folder: &Path, pid: u32, depth: u32) -> Option<PathBuf> {
    if lists(folder, pid) {
        return Some(folder.to_owned());
    }
    let depth = depth.checked_sub(1)?;
    let children = children(folder);
    let others = children.iter().filter(|child| !is_kubepods(&name_of(child)));
    others.into_iter().find_map(|child| cgroup_of(child, pid, depth))
}

fn holds_pods(folder: &Path, depth: u32) -> bool {
    let Some(depth) = depth.checked_sub(1) else { return false };
    children(folder).iter().any(|child| is_kubepods(&name_of(child)) || holds_pods(child, depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(layout: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (folder, procs) in layout {
            fs::create_dir_all(root.path().join(folder)).unwrap();
            fs::write(root.path().join(folder).join("cgroup.procs"), procs).unwrap();
        }
        root
    }

    #[test]
    fn the_cgroup_of_a_process_is_the_folder_that_lists_it() {
        let root = with(&[
            ("system.slice/kubelet.service", "12\n7\n"),
            ("system.slice/containerd.service", "70\n"),
            ("kubepods/podaaa/c1", "71\n"),
        ]);
        let found = |pid| cgroup_of(root.path(), pid, MAX_DEPTH);
        assert_eq!(found(7), Some(root.path().join("system.slice/kubelet.service")));
        assert_eq!(found(70), Some(root.path().join("system.slice/containerd.service")));
        assert_eq!(found(71), None, "a pod is no kubelet");
        assert_eq!(found(1), None);
    }

    #[test]
    fn a_cgroup_with_pods_below_is_told() {
        let root = with(&[
            ("system.slice/kubelet.service", ""),
            ("kubelet/kubepods.slice/kubepods-pod1.slice", ""),
        ]);
        assert!(!holds_pods(&root.path().join("system.slice"), MAX_DEPTH));
        assert!(holds_pods(&root.path().join("kubelet"), MAX_DEPTH));
        assert!(holds_pods(root.path(), MAX_DEPTH));
    }
}
