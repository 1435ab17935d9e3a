//! Reads a file of a pod as the pod's own processes see it, for policies that name one.
//!
//! Every container has a file system of its own: the path is looked for in one after the other, in the
//! order in which they were started. The invariant: whatever links a pod has in its files, nothing
//! outside of its own root is opened, and nothing is but a plain file of limited size. The agent reads as
//! root without `CAP_DAC_OVERRIDE`: what only another user may read, it may not.
//!
//! Kernel: `openat2(2)` since 5.6; `/proc/<pid>/root` takes `CAP_SYS_PTRACE` (proc(5)).

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::pods::{LocalPod, children, first_process, holds, local_pods};

/// Bytes that a file may have: several times a system's bundle of roots.
const LARGEST: u64 = 1 << 20;

/// Deeper than any runtime nests a container's cgroups.
const MAX_DEPTH: u32 = 8;

/// Reads a file of the pod with this UID, whose cgroup is below `cgroup`. Blocks for as long as the
/// file's file system does.
///
/// # Errors
/// The pod does not run, none of its containers has the file, the agent may not read it, or it is no
/// plain file of at most 1 MiB with something in it.
pub fn read_in_pod(cgroup: &Path, uid: &str, path: &str) -> io::Result<Vec<u8>> {
    let pods = local_pods(cgroup)?;
    let pod = pods.into_iter().find(|pod| pod.uid == uid);
    let pod = pod.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod does not run"))?;
    let mut missing = io::Error::from(Errno::ENOENT);
    for pid in first_of_containers(&pod) {
        let Some(root) = root(&pod, pid)? else { continue };
        match read_below(&root, path) {
            Err(error) if is_absent(&error) => missing = error,
            read => return read,
        }
    }
    Err(missing)
}

/// The first process of each of the pod's containers, the one that was started first before the others.
fn first_of_containers(pod: &LocalPod) -> Vec<u32> {
    let containers = children(&pod.cgroup);
    let mut found: Vec<u32> =
        containers.iter().filter_map(|folder| first_process(folder, MAX_DEPTH)).collect();
    // Where the pod has no cgroups for containers.
    found.extend(Some(pod.pid).filter(|pid| !found.contains(pid)));
    found.sort_by_key(|pid| started(*pid));
    found
}

/// When a process was started, in clock ticks since boot (proc(5), `/proc/<pid>/stat`, field 22).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have blanks and brackets of its own.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// The root folder of a process of the pod. One that still has the node's does not count: what starts a
/// container is in its cgroup before it changes roots (runc's `init`).
fn root(pod: &LocalPod, pid: u32) -> io::Result<Option<File>> {
    let root = match File::open(format!("/proc/{pid}/root")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        root => root?,
    };
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let own = id(root.metadata()?);
    // Who may not see that of the first process may not see that of a runtime's either.
    let of_node = [Some(fs::metadata("/")?), fs::metadata("/proc/1/root/").ok()];
    let is_of_node = of_node.into_iter().flatten().any(|metadata| id(metadata) == own);
    // The number may have passed to a process elsewhere before that.
    Ok((!is_of_node && holds(&pod.cgroup, pid, MAX_DEPTH)).then_some(root))
}

fn read_below(root: &File, path: &str) -> io::Result<Vec<u8>> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    let found = File::from(openat2(root, path, how)?);
    let metadata = found.metadata()?;
    let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if !metadata.is_file() {
        return wrong("not a plain file");
    }
    match metadata.len() {
        // As those of procfs are, some of which wait or change something when they are read.
        0 => return wrong("empty"),
        length if length > LARGEST => return wrong("larger than 1 MiB"),
        _ => {}
    }
    // Only now is it known that to open it has no effect, as that of a device or a pipe may.
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut content = Vec::new();
    file.take(LARGEST).read_to_end(&mut content)?;
    Ok(content)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(root: &Path, path: &str) -> Result<String, String> {
        let read = read_below(&File::open(root).unwrap(), path);
        read.map(|content| String::from_utf8(content).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn links_stay_below_the_root() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(outer.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("/secret", root.join("etc/absolute")).unwrap();
        symlink("../../../../secret", root.join("etc/relative")).unwrap();
        symlink("/proc/self/root/secret", root.join("etc/magic")).unwrap();
        symlink(outer.path().join("secret"), root.join("etc/host")).unwrap();
        for path in ["/secret", "secret", "/../secret", "/etc/absolute", "/etc/relative"] {
            assert_eq!(read(&root, path).as_deref(), Ok("inside"), "{path}");
        }
        for path in ["/etc/magic", "/etc/host", "/etc/none", "/secret/below"] {
            assert!(read(&root, path).is_err(), "{path}");
        }
    }

    #[test]
    fn magic_links_are_not_followed() {
        let error = read(Path::new("/"), "/proc/self/exe").unwrap_err();
        assert!(error.contains("symbolic links"), "{error}");
    }

    #[test]
    fn only_plain_files_of_limited_size() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("none"), "").unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(path("large")).unwrap().set_len(LARGEST + 1).unwrap();
        for (name, expected) in [
            ("folder", "not a plain file"),
            ("pipe", "not a plain file"),
            ("none", "empty"),
            ("large", "larger than 1 MiB"),
        ] {
            assert_eq!(read(root.path(), name).unwrap_err(), expected, "{name}");
        }
    }

    #[test]
    fn a_process_with_the_nodes_root_is_none_of_the_pods() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let cgroups = tempfile::tempdir().unwrap();
        let container = cgroups.path().join("kubepods/podaaa-1/c1");
        fs::create_dir_all(&container).unwrap();
        fs::write(container.join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        let pods = local_pods(cgroups.path()).unwrap();
        let found = first_of_containers(&pods[0]);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "of the node").unwrap();
        let read = |uid| read_in_pod(cgroups.path(), uid, file.path().to_str().unwrap());
        let errors = ["aaa-1", "bbb-2"].map(|uid| read(uid).unwrap_err().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [child.id()]);
        assert_eq!(errors, ["No such file or directory (os error 2)", "the pod does not run"]);
    }
}
