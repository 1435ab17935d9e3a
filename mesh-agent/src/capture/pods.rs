//! Finds the node's pods by the cgroups that the kubelet makes.
//!
//! Both layouts: `kubepods/burstable/pod<uid>/<container>` (cgroupfs driver) and
//! `kubepods-burstable-pod<uid>.slice`, where systemd's naming turns `-` into `_`; a kubelet with a
//! cgroup root of its own puts its name before (`kubelet-kubepods.slice` in kind). It knows no
//! Kubernetes API. The invariant: only folders below one that is named so count; and a
//! pod is looked into anew once the process that stood for it has ended.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::netns::PodNet;

/// Nested deeper than any kubelet's layout; a limit for the recursion.
const MAX_DEPTH: u32 = 8;

/// A kubelet's folder for pods is at the top, or below one of the kubelet's own.
const KUBEPODS_DEPTH: u32 = 3;

/// A pod that runs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `metadata.uid`.
    pub uid: String,
    /// One of its processes; its network namespace is the pod's.
    pub pid: u32,
    /// The pod's cgroup.
    pub cgroup: PathBuf,
}

/// Pods with at least one process below a cgroup, in the order of their names.
///
/// # Errors
/// The kernel's, when the cgroup itself cannot be read. Pods that vanish meanwhile are left out.
pub fn local_pods(cgroup: &Path) -> io::Result<Vec<LocalPod>> {
    PodFinder::default().find(cgroup)
}

/// Finds pods again and again. Most are the same as the last time, and what that costs is to list the
/// folder that they are in.
#[derive(Debug, Default)]
pub struct PodFinder {
    /// By cgroup.
    known: FxHashMap<PathBuf, Known>,
}

#[derive(Debug)]
struct Known {
    pod: LocalPod,
    /// Readable once the process has ended (pidfd_open(2)).
    process: OwnedFd,
}

impl PodFinder {
    /// As [`local_pods`].
    ///
    /// # Errors
    /// As [`local_pods`].
    pub fn find(&mut self, cgroup: &Path) -> io::Result<Vec<LocalPod>> {
        fs::read_dir(cgroup)?;
        let mut found = Found { before: std::mem::take(&mut self.known), ..Found::default() };
        found.walk(cgroup, is_kubepods(&name_of(cgroup)), MAX_DEPTH);
        self.known = found.known;
        Ok(found.pods)
    }
}

impl Known {
    fn lives(&self) -> bool {
        let mut process = [PollFd::new(&self.process, PollFlags::IN)];
        poll(&mut process, Some(&Timespec::default())) == Ok(0)
    }
}

/// One search.
#[derive(Default)]
struct Found {
    before: FxHashMap<PathBuf, Known>,
    known: FxHashMap<PathBuf, Known>,
    pods: Vec<LocalPod>,
}

/// Network namespaces of running processes that have one of these cookies.
pub(super) fn namespaces(cookies: &[u64]) -> Vec<PodNet> {
    let mut found: Vec<PodNet> = Vec::new();
    if cookies.is_empty() {
        return found;
    }
    let mut seen = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = process.path().join("ns/net");
        // Most processes share a few namespaces: only new ones are entered.
        let Ok(target) = fs::read_link(&path) else { continue };
        if !seen.insert(target) {
            continue;
        }
        found.extend(PodNet::open(&path).ok().filter(|net| cookies.contains(&net.cookie())));
    }
    found
}

/// Whether this process is in a cgroup or below it.
pub(super) fn is_inside(cgroup: &Path) -> bool {
    // `/proc/self/cgroup` has the path within its mount, so the end of the folder's path is
    // looked for; the kernel's list then says whether that is the same folder.
    let path = own_path();
    let mut base = Some(cgroup);
    while let Some(folder) = base {
        let full = folder.join(&path);
        if full.starts_with(cgroup) && lists(&full, std::process::id()) {
            return true;
        }
        base = folder.parent();
    }
    // In a container with a cgroup namespace of its own the path tells nothing.
    holds(cgroup, std::process::id(), MAX_DEPTH)
}

impl Found {
    fn walk(&mut self, folder: &Path, in_kubepods: bool, depth: u32) {
        let Some(depth) = depth.checked_sub(1) else { return };
        for child in children(folder) {
            let name = name_of(&child);
            let in_kubepods = in_kubepods || is_kubepods(&name);
            match uid(&name).filter(|_| in_kubepods) {
                // Containers are not pods, so there is nothing to look for below.
                Some(uid) => self.pod(uid, child, depth),
                None => self.walk(&child, in_kubepods, depth),
            }
        }
    }

    fn pod(&mut self, uid: String, cgroup: PathBuf, depth: u32) {
        if let Some(known) = self.before.remove(&cgroup).filter(Known::lives) {
            self.pods.push(known.pod.clone());
            self.known.insert(cgroup, known);
            return;
        }
        let Some(pid) = first_process(&cgroup, depth) else { return };
        let pod = LocalPod { uid, pid, cgroup };
        self.pods.push(pod.clone());
        // Looked at again, as the number may have passed to another process before it was opened.
        if let Some(process) = open(pid).filter(|_| first_process(&pod.cgroup, depth) == Some(pid))
        {
            self.known.insert(pod.cgroup.clone(), Known { pod, process });
        }
    }
}

/// Whether a folder is one that a kubelet makes for pods, or is named after it.
pub(super) fn is_kubepods(name: &str) -> bool {
    name.starts_with("kubepods") || name.contains("-kubepods")
}

/// The folder of this node's pods, if this process is in it, as an agent that is a pod itself; else
/// `cgroup` as it is. Programs attached there run before those of the root's, such as the load balancer
/// of Cilium's, as the kernel goes upwards (`kernel/bpf/cgroup.c`, `compute_effective_progs`).
pub fn pods_cgroup(cgroup: &Path) -> PathBuf {
    // Whoever sees a path of its own that leads elsewhere is in no pod: nothing need be searched.
    let path = own_path();
    if !path.is_empty() && !path.split('/').any(is_kubepods) {
        return cgroup.to_owned();
    }
    let own = std::process::id();
    let found = find_kubepods(cgroup, KUBEPODS_DEPTH);
    found.filter(|folder| holds(folder, own, MAX_DEPTH)).unwrap_or_else(|| cgroup.to_owned())
}

/// This process's cgroup as it sees it itself; empty for one that is the root of its namespace.
fn own_path() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned()
}

fn find_kubepods(folder: &Path, depth: u32) -> Option<PathBuf> {
    let depth = depth.checked_sub(1)?;
    let children = children(folder);
    let found = children.iter().find(|child| is_kubepods(&name_of(child)));
    found.cloned().or_else(|| children.iter().find_map(|child| find_kubepods(child, depth)))
}

/// Whether the kernel lists a process in a cgroup itself.
pub(super) fn lists(folder: &Path, pid: u32) -> bool {
    let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    procs.lines().any(|line| line.parse() == Ok(pid))
}

/// Whether a process is in a cgroup or below it, as the kernel lists them.
pub(super) fn holds(folder: &Path, pid: u32, depth: u32) -> bool {
    if lists(folder, pid) {
        return true;
    }
    let Some(depth) = depth.checked_sub(1) else { return false };
    children(folder).iter().any(|child| holds(child, pid, depth))
}

fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    // Gone already, or no descriptor to spare: the pod is looked into again the next time.
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The pod's uid, if this is the name of a pod's cgroup.
fn uid(name: &str) -> Option<String> {
    let uid = if let Some(unit) = name.strip_suffix(".slice") {
        let (_, uid) = unit.rsplit_once("-pod").filter(|_| is_kubepods(name))?;
        uid.replace('_', "-")
    } else {
        name.strip_prefix("pod")?.to_owned()
    };
    let is_uid = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_uid.then_some(uid)
}

/// The first process of a cgroup, or of those below it.
pub(super) fn first_process(folder: &Path, depth: u32) -> Option<u32> {
    let own = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process of another pid namespace.
    let pid = own.lines().filter_map(|line| line.parse().ok()).find(|pid| *pid != 0);
    let depth = depth.checked_sub(1)?;
    pid.or_else(|| children(folder).iter().find_map(|child| first_process(child, depth)))
}

/// The folders in a folder, sorted.
pub(super) fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    folders
}

/// The last part of a path.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(layout: &[(&str, &str)]) -> Vec<(String, u32)> {
        let root = tempfile::tempdir().unwrap();
        for (folder, processes) in layout {
            let folder = root.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), processes).unwrap();
        }
        let pods = local_pods(root.path()).unwrap();
        pods.into_iter().map(|pod| (pod.uid, pod.pid)).collect()
    }

    #[test]
    fn the_kubelet_with_cgroupfs() {
        let pods = with(&[
            ("kubepods/podaaa-1/c1", "17\n18\n"),
            ("kubepods/burstable/podbbb-2/c1", ""),
            ("kubepods/burstable/podbbb-2/c2", "42\n"),
            ("kubepods/besteffort/podccc-3", ""),
            ("system/podman", "7\n"),
        ]);
        assert_eq!(pods, [("bbb-2".into(), 42), ("aaa-1".into(), 17)]);
    }

    #[test]
    fn the_kubelet_with_systemd() {
        let slice = "kubepods.slice/kubepods-burstable.slice";
        let pods = with(&[
            (&format!("{slice}/kubepods-burstable-pod11_22.slice/cri-containerd-x.scope"), "5\n"),
            ("kubepods.slice/kubepods-pod33_44.slice/cri-containerd-y.scope", "0\n6\n"),
        ]);
        assert_eq!(pods, [("11-22".into(), 5), ("33-44".into(), 6)]);
    }

    #[test]
    fn a_kubelet_with_a_cgroup_of_its_own() {
        let slice = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
        let found = with(&[
            (&format!("{slice}/kubelet-kubepods-besteffort-pod11_22.slice/cri-x.scope"), "5\n"),
            ("kubelet/kubepods/podaaa-1/c1", "6\n"),
            ("system.slice/some-pod33.slice", "7\n"),
        ]);
        assert_eq!(found, [("aaa-1".to_owned(), 6), ("11-22".to_owned(), 5)]);
    }

    #[test]
    fn a_pod_is_looked_into_again_when_its_process_has_ended() {
        let sleep = || std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let root = tempfile::tempdir().unwrap();
        let (kept, other) =
            (root.path().join("kubepods/podaaa"), root.path().join("kubepods/podbbb"));
        let put = |folder: &Path, pids: &[u32]| {
            fs::create_dir_all(folder.join("c1")).unwrap();
            let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            fs::write(folder.join("c1/cgroup.procs"), lines).unwrap();
        };
        let (one, mut two, three) = (sleep(), sleep(), sleep());
        put(&kept, &[one.id()]);
        put(&other, &[two.id(), three.id()]);
        let mut finder = PodFinder::default();
        let mut pids = || -> Vec<u32> {
            finder.find(root.path()).unwrap().into_iter().map(|pod| pod.pid).collect()
        };
        assert_eq!(pids(), [one.id(), two.id()]);
        // Not looked at while that process lives.
        put(&other, &[]);
        assert_eq!(pids(), [one.id(), two.id()]);
        two.kill().unwrap();
        two.wait().unwrap();
        assert_eq!(pids(), [one.id()]);
        put(&other, &[three.id()]);
        assert_eq!(pids(), [one.id(), three.id()]);
        fs::remove_dir_all(&kept).unwrap();
        assert_eq!(pids(), [three.id()]);
        for mut child in [one, three] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_process_is_inside_the_cgroups_above_it() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(root) = mount.and_then(|line| line.split(' ').nth(1)) else { return };
        assert!(is_inside(Path::new(root)));
        assert!(!is_inside(Path::new("/nonexistent/cgroup")));
    }

    #[test]
    fn a_missing_cgroup_is_an_error() {
        assert!(local_pods(Path::new("/nonexistent/cgroup")).is_err());
    }
}
