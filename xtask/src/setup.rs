//! `cargo xtask setup`: what building Rust eBPF and running the lab need, found or installed.
//!
//! Everything is looked for first; only what is missing is installed, by commands that are shown.
//! Nothing is removed, no service is started, no default is changed.
//!
//! eBPF programs need the library source of exactly the compiler in use, and `bpf-linker` with an
//! LLVM at least as new as the compiler's. Two ways lead there: Debian's `rustc-web` (pinned, tried
//! in CI, takes precedence) and a rustup nightly with `rust-src`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::tool::{cargo, cargo_bin, find, output, run, say};

/// The linker that turns LLVM bitcode into a BPF object. Newer ones need a newer LLVM than Debian's.
const BPF_LINKER: &str = "0.13.0";

/// Debian's compiler for Chromium and Firefox: current on stable releases.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";

/// Packages that make Debian's route.
const DEBIAN_TOOLCHAIN: [Package; 3] = [
    Package { name: "rustc-web", file: DEBIAN_RUSTC, why: "compiles eBPF" },
    Package { name: "rust-web-src", file: DEBIAN_LIBRARY, why: "core for the eBPF target" },
    Package { name: "llvm-22-dev", file: "/usr/lib/llvm-22/lib/libLLVM.so", why: "bpf-linker" },
];

/// Not needed to build, but to test.
const DEBIAN_LINTS: [Package; 2] = [
    Package { name: "rust-web-clippy", file: DEBIAN_CLIPPY, why: "lints for eBPF" },
    Package { name: "cargo-web", file: DEBIAN_CARGO, why: "runs them" },
];

/// Packages that the lab, the demo and the tests use.
const LAB: [Package; 19] = [
    Package { name: "iproute2", file: "ip", why: "nodes and pods of the lab" },
    Package { name: "nftables", file: "nft", why: "virtual IPs in the lab" },
    Package { name: "nginx-light", file: "nginx", why: "an application of the demo" },
    Package { name: "haproxy", file: "haproxy", why: "a peer in measurements" },
    Package { name: "curl", file: "curl", why: "a client of the demo" },
    Package { name: "tcpdump", file: "tcpdump", why: "proof from the wire" },
    Package { name: "procps", file: "sysctl", why: "forwarding in the lab's nodes" },
    Package { name: "util-linux", file: "nsenter", why: "commands inside a pod" },
    Package { name: "python3", file: "python3", why: "small clients in the lab's tests" },
    Package { name: "python3-h2", file: PYTHON_H2, why: "foreign HTTP/2 peers" },
    Package { name: "python3-grpcio", file: PYTHON_GRPC, why: "foreign gRPC peers" },
    Package { name: "openssl", file: "openssl", why: "foreign TLS peers" },
    // Without a service where there is a package without one.
    Package { name: "postgresql", file: "pg_ctlcluster", why: "an application in the mesh" },
    Package { name: "python3-psycopg2", file: PSYCOPG2, why: "its client" },
    Package { name: "mariadb-server-core", file: "mariadbd", why: "an application in the mesh" },
    Package { name: "mariadb-client-core", file: "mariadb", why: "its client" },
    Package { name: "redis-tools", file: "redis-check-rdb", why: "an application and its client" },
    Package { name: "mosquitto", file: "mosquitto", why: "an application in the mesh" },
    Package { name: "mosquitto-clients", file: "mosquitto_pub", why: "its client" },
];
const PYTHON_H2: &str = "/usr/lib/python3/dist-packages/h2/__init__.py";
const PYTHON_GRPC: &str = "/usr/lib/python3/dist-packages/grpc/__init__.py";
const PSYCOPG2: &str = "/usr/lib/python3/dist-packages/psycopg2/__init__.py";

/// Another kernel in a virtual machine.
const VM: [Package; 4] = [
    Package { name: "qemu-system-x86", file: "qemu-system-x86_64", why: "other kernels" },
    Package { name: "busybox-static", file: "busybox", why: "their first program" },
    Package { name: "cpio", file: "cpio", why: "their first files" },
    Package { name: "kmod", file: "modprobe", why: "their modules" },
];

/// Real Kubernetes.
const KUBE: [Package; 5] = [
    Package { name: "containerd", file: "containerd", why: "a runtime of Kubernetes' nodes" },
    Package { name: "runc", file: "runc", why: "their containers" },
    Package { name: "containernetworking-plugins", file: CNI, why: "their pods' networks" },
    Package { name: "busybox-static", file: "busybox", why: "their images" },
    Package { name: "zstd", file: "zstd", why: "unpacks prebuilt programs" },
];
const CNI: &str = "/usr/lib/cni/bridge";

/// A C compiler: `ring`, `aws-lc-sys` and the linking of any Rust program need it.
const C_COMPILER: Package = Package { name: "gcc", file: "cc", why: "linking, C in crates" };

/// Both ways, for those who must go by hand.
const BY_HAND: &str = "\
To build eBPF by hand, either
  rustup toolchain install nightly --component rust-src
  cargo binstall bpf-linker@0.13.0
or, on Debian 12 and later,
  apt-get update && apt-get install rustc-web rust-web-src rust-web-clippy cargo-web llvm-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 \\
    cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22";

/// Options of `cargo xtask setup`.
#[derive(Clone, Debug, Default, Args)]
pub struct SetupArgs {
    /// Say what is missing; install nothing
    #[arg(long)]
    pub check: bool,
    /// Only what building needs, nothing for the lab
    #[arg(long)]
    pub build_only: bool,
}

/// The compiler for eBPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Debian's `rustc-web`, with `RUSTC_BOOTSTRAP`.
    Debian,
    /// A nightly of rustup that has `rust-src`; its name.
    Rustup(String),
}

struct Package {
    name: &'static str,
    /// A program on PATH, or an absolute path, that is there once the package is.
    file: &'static str,
    why: &'static str,
}

impl Package {
    fn installed(&self) -> bool {
        if self.file.starts_with('/') {
            Path::new(self.file).exists()
        } else {
            find(self.file).is_some()
        }
    }
}

/// Finds or installs what is needed.
///
/// # Errors
/// Something is missing and cannot be installed: the message names it and how to get it.
pub fn run_setup(args: &SetupArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let toolchain = Toolchain::find();
    let linker = installed_linker();
    let debian = !matches!(toolchain, Some(Toolchain::Rustup(_)));
    let mut missing: Vec<&Package> = Vec::new();
    missing.extend((!C_COMPILER.installed()).then_some(&C_COMPILER));
    if !args.build_only {
        missing.extend(LAB.iter().filter(|package| !package.installed()));
        missing.extend(KUBE.iter().filter(|package| !package.installed()));
        let vm = if cfg!(target_arch = "x86_64") { &VM[..] } else { &[] };
        let vm = vm.iter().filter(|package| !package.installed());
        // Both want busybox.
        missing.extend(vm.filter(|package| KUBE.iter().all(|other| other.name != package.name)));
        missing.extend(DEBIAN_LINTS.iter().filter(|package| debian && !package.installed()));
    }
    // The linker is built against the compiler's LLVM.
    if toolchain.is_none() || (debian && linker.as_deref() != Some(BPF_LINKER)) {
        missing.extend(DEBIAN_TOOLCHAIN.iter().filter(|package| !package.installed()));
    }
    match &toolchain {
        Some(toolchain) => say(&format!("setup: eBPF compiler: {toolchain}")),
        None => say("setup: eBPF compiler: none yet"),
    }
    say(&format!("setup: bpf-linker: {}", linker.as_deref().unwrap_or("none yet")));
    for Package { name, file, why } in &missing {
        say(&format!("setup: missing: package {name} ({file}: {why})"));
    }
    let linker_is_right = linker.as_deref() == Some(BPF_LINKER);
    if missing.is_empty() && linker_is_right {
        say(&format!("setup: everything is there ({:.2} s)", start.elapsed().as_secs_f64()));
        return Ok(());
    }
    ensure!(!args.check, "something is missing: run `cargo xtask setup`\n{BY_HAND}");
    install_packages(&missing, toolchain.is_none())?;
    let toolchain = match toolchain {
        Some(toolchain) => toolchain,
        None => Toolchain::find_or_install()?,
    };
    if !linker_is_right {
        install_linker(&toolchain)?;
    }
    say(&format!("setup: done in {:.0} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Installs `missing` from Debian. Packages of the toolchain may be absent there, as rustup is the
/// other way; any other must not.
fn install_packages(missing: &[&Package], toolchain_missing: bool) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = |packages: &[&Package]| {
        packages.iter().map(|package| package.name).collect::<Vec<_>>().join(" ")
    };
    let only_toolchain = missing.iter().all(|package| is_toolchain(package));
    let problem = if find("apt-get").is_none() {
        Some("this is not Debian (no apt-get)")
    } else if !nix::unistd::geteuid().is_root() {
        Some("installing packages needs root")
    } else {
        None
    };
    if let Some(problem) = problem {
        if only_toolchain && toolchain_missing && find("rustup").is_some() {
            say(&format!("setup: {problem}: trying rustup"));
            return Ok(());
        }
        bail!("{problem}; install these yourself: {}\n{BY_HAND}", names(missing));
    }
    run(Command::new("apt-get").args(["-qq", "update"]))
        .or_else(|error| bail!("{error:#}\nis a package mirror within reach?"))?;
    let (available, absent): (Vec<&Package>, Vec<&Package>) =
        missing.iter().copied().partition(|package| has_candidate(package.name));
    if !absent.is_empty() {
        let by_rustup = absent.iter().all(|package| is_toolchain(package));
        ensure!(
            by_rustup && find("rustup").is_some(),
            "this Debian release has no package {}\n{BY_HAND}",
            names(&absent)
        );
        say(&format!("setup: no package {} here: trying rustup", names(&absent)));
    }
    let wanted = available.iter().filter(|package| absent.is_empty() || !is_toolchain(package));
    let wanted: Vec<_> = wanted.map(|package| package.name).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut install = Command::new("apt-get");
    // A package's service is not started: RUNLEVEL stops init scripts, SYSTEMD_OFFLINE systemctl.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    install.env("SYSTEMD_OFFLINE", "1");
    // Another apt may hold the lock: wait.
    install.args(["-qq", "-o", "DPkg::Lock::Timeout=300", "install", "-y"]);
    run(install.arg("--no-install-recommends").args(wanted))
}

fn is_toolchain(package: &Package) -> bool {
    let mut debian = DEBIAN_TOOLCHAIN.iter().chain(&DEBIAN_LINTS);
    debian.any(|other| other.name == package.name)
}

fn has_candidate(package: &str) -> bool {
    let policy = output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]));
    policy.is_ok_and(|text| {
        let candidate = text.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        candidate.is_some_and(|version| version != "(none)")
    })
}

fn install_linker(toolchain: &Toolchain) -> anyhow::Result<()> {
    let mut install = cargo();
    if *toolchain != Toolchain::Debian && find("cargo-binstall").is_some() {
        // Upstream's own binary, with the LLVM that rustup's compilers need inside.
        install.args(["binstall", "--no-confirm", &format!("bpf-linker@{BPF_LINKER}")]);
    } else {
        let llvm = toolchain.llvm()?;
        let prefix = format!("/usr/lib/llvm-{llvm}");
        ensure!(Path::new(&prefix).exists(), "bpf-linker needs {prefix}: install llvm-{llvm}-dev");
        // Without these the build fails with `unable to find library -lLLVM`.
        install.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
        install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
        install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    }
    run(&mut install).with_context(|| format!("install bpf-linker\n{BY_HAND}"))
}

/// The version of the bpf-linker that a build would use.
fn installed_linker() -> Option<String> {
    let text = output(Command::new(find("bpf-linker")?).arg("--version")).ok()?;
    Some(text.trim().strip_prefix("bpf-linker ")?.to_owned())
}

impl Toolchain {
    /// The toolchain that is there, without starting a program.
    #[must_use]
    pub fn find() -> Option<Self> {
        if DEBIAN_TOOLCHAIN.iter().all(Package::installed) {
            return Some(Self::Debian);
        }
        let toolchains = rustup_home()?.join("toolchains").read_dir().ok()?;
        let mut names: Vec<String> = toolchains
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let library = entry.path().join("lib/rustlib/src/rust/library/core/src/lib.rs");
                let name = entry.file_name().into_string().ok()?;
                (name.starts_with("nightly") && library.exists()).then_some(name)
            })
            .collect();
        // Plain `nightly-<host>` sorts after the dated ones.
        names.sort();
        names.pop().map(Self::Rustup)
    }

    fn find_or_install() -> anyhow::Result<Self> {
        if let Some(toolchain) = Self::find() {
            return Ok(toolchain);
        }
        ensure!(find("rustup").is_some(), "neither Debian's rustc-web nor rustup\n{BY_HAND}");
        let mut install = Command::new("rustup");
        install.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        run(install.args(["--component", "rust-src"])).with_context(|| BY_HAND.to_owned())?;
        Self::find().context("rustup has installed no nightly with rust-src")
    }

    /// The major version of the compiler's LLVM, which bpf-linker must have too.
    fn llvm(&self) -> anyhow::Result<String> {
        let mut rustc = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Rustup(name) => {
                let mut rustc = Command::new("rustup");
                rustc.args(["run", name, "rustc"]);
                rustc
            }
        };
        let text = output(rustc.arg("-vV"))?;
        let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let major = version.and_then(|version| version.split('.').next());
        major.map(str::to_owned).context("the compiler does not name its LLVM")
    }

    /// `cargo clippy` for this toolchain; `None` if rustup's has none.
    #[must_use]
    pub fn clippy(&self) -> Option<Command> {
        match self {
            Self::Debian => {
                // rustup's cargo would start rustup's clippy, which is of another compiler.
                let mut command = Command::new(DEBIAN_CARGO);
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders =
                    std::iter::once("/usr/bin".into()).chain(std::env::split_paths(&path));
                command.env("PATH", std::env::join_paths(folders).ok()?);
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                Some(command)
            }
            Self::Rustup(name) => {
                let driver = rustup_home()?.join("toolchains").join(name).join("bin/cargo-clippy");
                driver.exists().then(|| self.cargo())
            }
        }
    }

    /// A cargo that builds with this toolchain; nothing of the stable toolchain's settings leaks in.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = cargo();
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]).env_remove("RUSTC");
                command
            }
        };
        command.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        command
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Debian => write!(f, "Debian's rustc-web ({DEBIAN_RUSTC})"),
            Self::Rustup(name) => write!(f, "rustup's {name} with rust-src"),
        }
    }
}

fn rustup_home() -> Option<PathBuf> {
    let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
    home.or_else(|| Some(std::env::home_dir()?.join(".rustup")))
}

/// PATH with the folder of `cargo install` in it, where rustc looks for its linker; `None` if it is
/// there already.
#[must_use]
pub fn path_with_cargo_bin() -> Option<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = cargo_bin()?;
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    if folders.contains(&own) {
        return None;
    }
    folders.push(own);
    std::env::join_paths(folders).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_names_the_version_and_packages_that_setup_installs() {
        assert!(BY_HAND.contains(&format!("--version {BPF_LINKER} ")));
        assert!(BY_HAND.contains(&format!("bpf-linker@{BPF_LINKER}\n")));
        for package in DEBIAN_TOOLCHAIN.iter().chain(&DEBIAN_LINTS) {
            assert!(BY_HAND.contains(package.name), "{}", package.name);
        }
    }

    #[test]
    fn a_package_that_does_not_exist_has_no_candidate() {
        assert!(!has_candidate("malha-no-such-package"));
    }
}
