//! A node: how it is started, and what a test does to it.
//!
//! It is a process tree with mount, uts, ipc, pid, cgroup and network namespaces of its own on the
//! machine's files (`node-init.sh`), with containerd, the kubelet and kube-proxy in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{KubeLab, network};
use crate::lab::container::JOIN;
use crate::lab::{host, wait_for};

const INIT: &str = include_str!("node-init.sh");
const RUNC: &str = include_str!("runc.sh");
const LIMITS: &str = include_str!("limits.py");
const CONTAINERD: &str = include_str!("containerd.toml");
const KUBELET: &str = include_str!("kubelet.yaml");
/// What the end of every process of a node may take.
const END: Duration = Duration::from_secs(10);

/// A node of a lab.
#[derive(Clone, Copy, Debug)]
pub struct KubeNode<'a> {
    pub(super) lab: &'a KubeLab,
    /// `metadata.name`.
    pub name: &'a str,
    pub(super) number: u8,
}

/// Writes what every node of a lab needs.
pub(super) fn write_programs(lab: &Path) -> anyhow::Result<()> {
    for (name, text) in [("node-init.sh", INIT), ("runc.sh", RUNC), ("limits.py", LIMITS)] {
        let path = lab.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

impl KubeNode<'_> {
    /// Its folder in the lab's.
    fn dir(&self) -> PathBuf {
        self.lab.dir().join(self.name)
    }

    fn cgroup(&self) -> anyhow::Result<PathBuf> {
        let lab = self.lab.ground.cgroup.as_ref().context("a node without a cgroup")?;
        Ok(lab.join(self.name))
    }

    /// Writes its configuration.
    pub(super) fn prepare(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        let dir = self.dir();
        for folder in ["log", "config", "containerd", "kubelet"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let lab = self.lab.dir().display().to_string();
        let config = dir.join("config");
        fs::write(
            config.join("containerd.toml"),
            CONTAINERD.replace("@RUNC@", &format!("{lab}/runc.sh")),
        )?;
        let kubelet = KUBELET.replace("@PKI@", &format!("{lab}/pki")).replace("@NODE@", self.name);
        fs::write(config.join("kubelet.yaml"), kubelet)?;
        let ranges =
            network::pods(self.number).map(|range| serde_json::json!([{ "subnet": range }]));
        let bridge = serde_json::json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        });
        let ports = serde_json::json!({
            "type": "portmap", "capabilities": { "portMappings": true },
        });
        let network = serde_json::json!({
            "cniVersion": "1.0.0", "name": "lab", "plugins": [bridge, ports],
        });
        fs::write(config.join("cni.conflist"), network.to_string())?;
        let images: String = images.iter().map(|image| format!("{}\n", image.display())).collect();
        fs::write(config.join("images"), images)?;
        Ok(())
    }

    /// Its IPv4 and IPv6 address.
    #[must_use]
    pub fn ips(&self) -> [std::net::IpAddr; 2] {
        network::node(self.number)
    }

    /// Turns it on. It is ready a few seconds later.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub fn power_on(&self) -> anyhow::Result<()> {
        ensure!(self.lab.ground.pid(self.name).is_none(), "{} is on already", self.name);
        let facts = &self.lab.facts;
        let cgroup = self.cgroup()?;
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let log = self.dir().join("log/init.log");
        let mut command = self.lab.ground.command(self.name, Some(&cgroup), &log)?;
        let space = format!("{}{}", self.lab.ground.prefix, self.name);
        command.args(["nsenter", &format!("--net={}", host::netns_path(&space).display())]);
        command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork"]);
        command.args(["--kill-child", "--propagation", "private", "sh"]);
        let lab = self.lab.dir();
        command.arg(lab.join("node-init.sh")).arg(lab).arg(self.name);
        let [v4, v6] = self.ips();
        command.args([format!("{v4},{v6}"), facts.place.url()]).arg(&facts.binaries.folder);
        command.arg(facts.binaries.containerd.as_deref().unwrap_or(Path::new("")));
        self.lab.children.spawn(self.name, command.arg(network::PODS))
    }

    /// Pulls its plug: every process of it is gone at once, its disk stays.
    ///
    /// # Errors
    /// It is off, or does not end.
    pub fn crash(&self) -> anyhow::Result<()> {
        self.lab.ground.end(self.name)?;
        self.lab.children.collect(self.name);
        let events = self.cgroup()?.join("cgroup.events");
        wait_for(END, &format!("the end of {}", self.name), || {
            let text = fs::read_to_string(&events)?;
            Ok(text.lines().any(|line| line == "populated 0").then_some(()))
        })
    }

    /// The machine's number for its first process.
    ///
    /// # Errors
    /// It is off.
    pub fn pid(&self) -> anyhow::Result<i32> {
        let parent = self.lab.ground.pid(self.name);
        let parent = parent.with_context(|| format!("{} is off", self.name))?;
        for entry in Path::new("/proc").read_dir()?.filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // proc(5): number, name in parentheses, state, number of the parent.
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
            if after.split(' ').nth(1) == Some(&parent.to_string()) {
                return Ok(pid);
            }
        }
        bail!("{} has no first process", self.name)
    }

    /// A command on the node, as a shell of its administrator would run it; not started yet.
    ///
    /// # Errors
    /// It is off.
    pub fn command(&self, words: &[&str]) -> anyhow::Result<Command> {
        let pid = self.pid()?;
        let mut command = host::command("sh");
        // In the node's cgroup too: it ends with the node, and eBPF at the node's root applies.
        command.args(["-c", JOIN, "node"]).arg(self.cgroup()?.join("init/cgroup.procs"));
        command.args(["nsenter", "--target", &pid.to_string(), "--all", "--"]).args(words);
        self.lab.set_environment(&mut command);
        Ok(command)
    }

    /// Runs a command on the node to its end.
    ///
    /// # Errors
    /// The node is off, or the command cannot be started. One that fails is no error.
    pub fn exec(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.command(words)?;
        command.stdin(Stdio::null()).output().with_context(|| format!("run {words:?}"))
    }

    /// What one of its programs has written: `init`, `containerd`, `kubelet`, `kube-proxy`.
    #[must_use]
    pub fn log(&self, program: &str) -> String {
        let log = self.dir().join("log").join(format!("{program}.log"));
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Cuts its wire to everyone else.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn cut_wire(&self) -> anyhow::Result<()> {
        self.set_wire("down")
    }

    /// Mends it.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn mend_wire(&self) -> anyhow::Result<()> {
        self.set_wire("up")
    }

    fn set_wire(&self, state: &str) -> anyhow::Result<()> {
        let control = network::control(&self.lab.ground.prefix);
        host::ip(Some(&control), &[format!("link set {} {state}", network::wire(self.number))])
    }
}
