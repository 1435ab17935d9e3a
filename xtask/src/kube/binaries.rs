//! Finds, unpacks or builds Kubernetes' programs and containerd.
//!
//! Kubernetes is one program that is etcd, kube-apiserver, kubelet and so on by the name that it is
//! started as; its source is the Go module in `xtask/kube`. What was unpacked or built is kept in
//! `target/lab/kube/bin`.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::oci::sha256;
use crate::peers::go;
use crate::tool::{find, installed, run, say, workspace};

/// What an API server needs.
const API: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
/// What nodes need, too.
const MORE: [&str; 6] =
    ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "helm", "coredns"];
const CONTAINERD: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
const CONTAINERD_VERSION: &str = "v2.3.7";
/// Snapshotters that need headers of C libraries.
const CONTAINERD_TAGS: &str = "no_btrfs,no_zfs,no_devmapper";
/// The files that decide what a build makes.
const RECIPE: [&str; 4] = ["go.mod", "go.sum", "main.go", "build.sh"];
/// Debian's place for the network plugins that containerd starts.
const NETWORK_PLUGINS: [&str; 4] = [
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/lib/cni/loopback",
    "/usr/lib/cni/portmap",
];
/// Programs of the machine that a lab with nodes uses.
const OF_MACHINE: [&str; 10] = [
    "ip",
    "nft",
    "nsenter",
    "unshare",
    "curl",
    "python3",
    "containerd",
    "runc",
    "nginx",
    "busybox",
];

/// What is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// etcd and the API server.
    Api,
    /// The same, and the controllers.
    Controllers,
    /// Nodes with pods.
    Nodes,
}

/// Why Kubernetes cannot run here; a test that sees it is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle(pub String);

/// Where the programs are.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Binaries {
    /// Kubernetes' programs.
    pub(super) folder: PathBuf,
    /// Those of containerd 2; none where it was not asked for.
    pub(super) containerd: Option<PathBuf>,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Obstacle {}

/// Finds the programs, and unpacks or builds them the first time.
///
/// # Errors
/// There is no way to have them here; or what cannot run here for another reason.
pub(super) fn prepare(need: Need) -> Result<Binaries, Obstacle> {
    if need == Need::Nodes
        && let Some(obstacle) = machine()
    {
        return Err(obstacle);
    }
    look_or_make(need).map_err(|error| Obstacle(format!("{error:#}")))
}

/// Builds the programs from source, unless that was done already.
///
/// # Errors
/// No Go, here or to be fetched, or what the build said.
pub(super) fn build() -> anyhow::Result<PathBuf> {
    let _lock = lock()?;
    let stamp = built_stamp()?;
    if !fs::read_to_string(cache().join("stamp")).is_ok_and(|found| found == stamp) {
        build_into_cache(&stamp)?;
    }
    Ok(cache())
}

/// Why no node can run on this machine.
fn machine() -> Option<Obstacle> {
    let say = |text: String| Some(Obstacle(text));
    if !nix::unistd::geteuid().is_root() {
        return say("a node needs root".to_owned());
    }
    if let Err(error) = crate::lab::ground::cgroup_mount() {
        return say(format!("{error:#}"));
    }
    let plugin = NETWORK_PLUGINS.iter().find(|file| !Path::new(file).exists());
    let missing = plugin.or_else(|| OF_MACHINE.iter().find(|program| find(program).is_none()));
    missing.and_then(|name| say(format!("{name} is not installed: run `cargo xtask setup`")))
}

fn look_or_make(need: Need) -> anyhow::Result<Binaries> {
    let _lock = lock()?;
    if let Some(folder) = std::env::var_os("KUBE_BIN").map(PathBuf::from) {
        return given(&folder, need);
    }
    let cache = cache();
    let built = built_stamp()?;
    let stamp = fs::read_to_string(cache.join("stamp")).unwrap_or_default();
    if stamp == built || stamp.starts_with("from ") {
        return in_cache(&cache);
    }
    if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        && need == Need::Api
        && has(&folder, &API)
    {
        return Ok(Binaries { folder, containerd: None });
    }
    build_into_cache(&built)?;
    in_cache(&cache)
}

/// The programs of a folder that a person has named.
fn given(folder: &Path, need: Need) -> anyhow::Result<Binaries> {
    let folder =
        fs::canonicalize(folder).with_context(|| format!("KUBE_BIN: {}", folder.display()))?;
    let all = has(&folder, &API) && (need == Need::Api || has(&folder, &MORE));
    if all {
        let containerd = has(&folder, &CONTAINERD).then(|| folder.clone());
        return Ok(Binaries { folder, containerd });
    }
    let packed = folder.join("kube.zst");
    let containerd = packed_containerd(&folder)?;
    let meta = packed.metadata().with_context(|| {
        format!("KUBE_BIN={}: neither programs nor kube.zst in it", folder.display())
    })?;
    let stamp = format!("from {} {} {}", packed.display(), meta.len(), meta.mtime());
    if !fs::read_to_string(cache().join("stamp")).is_ok_and(|found| found == stamp) {
        say(&format!("kube: unpacking {}", packed.display()));
        fill_cache(&stamp, |folder| unpack(&packed, containerd.as_deref(), folder))?;
    }
    in_cache(&cache())
}

/// The archive of containerd in a folder, if there is one.
fn packed_containerd(folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = folder.read_dir().with_context(|| format!("read {}", folder.display()))?;
    let mut archives = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        (name.starts_with("containerd-") && name.ends_with(".tar.zst")).then_some(path)
    });
    Ok(archives.next())
}

fn unpack(kube: &Path, containerd: Option<&Path>, folder: &Path) -> anyhow::Result<()> {
    let program = folder.join("kube");
    let mut command = Command::new(installed("zstd")?);
    run(command.args(["-q", "-d", "-f"]).arg(kube).arg("-o").arg(&program))?;
    // It has the archive's permissions.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    if let Some(archive) = containerd {
        let own = folder.join("containerd2");
        fs::create_dir_all(&own)?;
        run(Command::new("tar").arg("-C").arg(own).arg("--zstd").arg("-xf").arg(archive))?;
    }
    Ok(())
}

fn build_into_cache(stamp: &str) -> anyhow::Result<()> {
    let go = go().context(
        "Kubernetes' programs are not here, and they cannot be built: set KUBE_BIN to a folder that \
         has them, or install Go",
    )?;
    say("kube: building Kubernetes from xtask/kube: 10 to 25 minutes, 3 GB of Go's cache, once");
    fill_cache(stamp, |folder| {
        let script = recipe().join("build.sh");
        let path = with_folder_of(&go)?;
        run(Command::new("sh").arg(script).arg(folder).env("PATH", &path))?;
        let mut containerd = Command::new(&go);
        containerd.args(["install", "-trimpath", "-ldflags=-s -w", "-tags", CONTAINERD_TAGS]);
        let module = "github.com/containerd/containerd/v2/cmd";
        containerd
            .args(CONTAINERD.iter().map(|name| format!("{module}/{name}@{CONTAINERD_VERSION}")));
        run(containerd.env("GOBIN", folder.join("containerd2")).env("CGO_ENABLED", "0"))
    })
}

fn with_folder_of(program: &Path) -> anyhow::Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = program.parent().map(Path::to_path_buf);
    Ok(std::env::join_paths(own.into_iter().chain(std::env::split_paths(&path)))?)
}

/// Makes the cache anew: nobody sees it half full.
fn fill_cache(stamp: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let cache = cache();
    let draft = cache.with_extension("new");
    remove(&draft)?;
    fs::create_dir_all(&draft)?;
    fill(&draft)?;
    for program in API.iter().chain(&MORE) {
        let link = draft.join(program);
        if !link.exists() {
            symlink("kube", &link)?;
        }
    }
    fs::write(draft.join("stamp"), stamp)?;
    remove(&cache)?;
    fs::rename(&draft, &cache).with_context(|| format!("make {}", cache.display()))
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}

fn in_cache(cache: &Path) -> anyhow::Result<Binaries> {
    ensure!(has(cache, &API) && has(cache, &MORE), "{} is not complete", cache.display());
    let containerd = cache.join("containerd2");
    let containerd = has(&containerd, &CONTAINERD).then_some(containerd);
    Ok(Binaries { folder: cache.to_owned(), containerd })
}

fn has(folder: &Path, programs: &[&str]) -> bool {
    programs.iter().all(|program| folder.join(program).is_file())
}

fn built_stamp() -> anyhow::Result<String> {
    let mut all = CONTAINERD_VERSION.as_bytes().to_vec();
    for name in RECIPE {
        let file = recipe().join(name);
        all.extend(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(format!("built {}", sha256(&all)))
}

fn recipe() -> PathBuf {
    workspace().join("xtask/kube")
}

fn cache() -> PathBuf {
    super::folder().join("bin")
}

/// One process at a time; freed when dropped.
fn lock() -> anyhow::Result<File> {
    fs::create_dir_all(super::folder())?;
    let file = File::create(super::folder().join("bin.lock"))?;
    file.lock().context("wait for another process that makes Kubernetes' programs")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_programs_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = given(folder.path(), Need::Api).unwrap_err();
        assert!(error.to_string().contains("neither programs nor kube.zst"), "{error:#}");
    }

    #[test]
    fn a_folder_with_the_programs_is_used_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for program in API {
            fs::write(folder.path().join(program), "").unwrap();
        }
        let found = given(folder.path(), Need::Api).unwrap();
        assert_eq!(found.folder, fs::canonicalize(folder.path()).unwrap());
        assert!(given(folder.path(), Need::Nodes).is_err());
    }
}
