//! Pods: namespaces, files and processes of one, and ways to run commands in it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};

use super::cgroup::Cgroup;
use super::node::{Holder, Node, pod_v4, pod_v6};
use super::{tail, text};

/// Where a pod finds its node: the resolver and the default gateway.
pub(super) const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

/// A running pod. Clones are the same pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Its node.
    pub node: String,
    /// IPv4 and IPv6.
    pub ips: Vec<IpAddr>,
    pub(super) sandbox: Arc<Sandbox>,
}

/// What a pod's containers share.
#[derive(Debug)]
pub(super) struct Sandbox {
    holder: Holder,
    cgroup: Cgroup,
    dir: PathBuf,
    path: String,
    containers: Mutex<Vec<Child>>,
}

/// What is needed to make a pod's sandbox.
pub(super) struct SandboxSpec<'a> {
    pub(super) uid: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Counted from 1 on each node.
    pub(super) host: u16,
    /// Directories that commands are looked for in, before the usual ones.
    pub(super) programs: &'a Path,
    /// Files to mount over the machine's: (source, target).
    pub(super) mounts: &'a [(PathBuf, PathBuf)],
    /// Directories whose files are seen in `/usr/bin`.
    pub(super) overlays: &'a [PathBuf],
}

impl Sandbox {
    pub(super) fn create(node: &Node, dir: &Path, spec: &SandboxSpec<'_>) -> anyhow::Result<Self> {
        let dir = dir.join(spec.uid);
        std::fs::create_dir_all(&dir)?;
        let (v4, v6) = (pod_v4(node.index, spec.host), pod_v6(node.index, spec.host));
        let resolv = format!(
            "nameserver {GATEWAY_V4}\nsearch {}.svc.cluster.local svc.cluster.local \
             cluster.local\noptions ndots:5\n",
            spec.namespace
        );
        std::fs::write(dir.join("resolv.conf"), resolv)?;
        let hosts = format!(
            "127.0.0.1 localhost\n::1 localhost ip6-localhost\n{v4} {name}\n{v6} {name}\n",
            name = spec.name
        );
        std::fs::write(dir.join("hosts"), hosts)?;
        let mut script = format!(
            "hostname {}\nmount --bind {d}/resolv.conf /etc/resolv.conf\n\
             mount --bind {d}/hosts /etc/hosts\n",
            spec.name,
            d = text(&dir)
        );
        for (source, target) in spec.mounts {
            script.push_str(&mount_script(source, target));
        }
        for programs in spec.overlays {
            // Lower layers only: nothing can be written through it.
            let layers = format!("lowerdir={}:/usr/bin", text(programs));
            script.push_str(&format!("mount -t overlay overlay -o {layers} /usr/bin\n"));
        }
        let cgroup = node.cgroup.child("kubepods")?.child(&format!("pod{}", spec.uid))?;
        let pause = cgroup.child("pause")?;
        let holder =
            Holder::start(&pause, &["--mount", "--uts", "--propagation", "slave"], &script)?;
        connect(node, &holder, spec.host)?;
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            text(spec.programs)
        );
        Ok(Self { holder, cgroup, dir, path, containers: Mutex::default() })
    }

    /// A command inside, in a cgroup of its own container.
    fn command(&self, container: &str, command: &[&str]) -> anyhow::Result<Command> {
        let procs = self.cgroup.child(container)?.procs();
        let enter = format!("echo $$ > {procs} && exec \"$@\"");
        let mut entered = Command::new("sh");
        entered
            .args(["-c", &enter, "sh", "nsenter", "--net", "--mount", "--uts", "--target"])
            .arg(self.holder.pid().to_string())
            .arg("--")
            .args(command)
            .env("PATH", &self.path);
        Ok(entered)
    }

    /// Starts a container's process; what it writes goes to a log.
    pub(super) fn start(
        &self,
        container: &str,
        command: &[String],
        environment: &[(String, String)],
    ) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.dir.join(format!("{container}.log")))?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let child = self
            .command(container, &command)?
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start container {container}"))?;
        self.containers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(child);
        Ok(())
    }

    /// TCP ports that something listens on in the pod.
    pub(super) fn listening(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        for table in ["tcp", "tcp6"] {
            let file = format!("/proc/{}/net/{table}", self.holder.pid());
            for line in std::fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
                let mut words = line.split_whitespace().skip(1);
                let (local, state) = (words.next().unwrap_or(""), words.nth(1).unwrap_or(""));
                // State 0A is LISTEN (include/net/tcp_states.h).
                if state == "0A" {
                    let port = local.rsplit(':').next().unwrap_or("");
                    ports.extend(u16::from_str_radix(port, 16).ok());
                }
            }
        }
        ports
    }

    /// Ends all processes and removes the cgroup; the namespaces go with them.
    pub(super) fn destroy(&self) -> anyhow::Result<()> {
        self.cgroup.destroy()?;
        for child in
            self.containers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter_mut()
        {
            let _ = child.wait();
        }
        Ok(())
    }
}

/// Joins the pod to its node: a veth pair, a host route, and a gateway that every pod shares.
fn connect(node: &Node, holder: &Holder, host: u16) -> anyhow::Result<()> {
    let (v4, v6) = (pod_v4(node.index, host), pod_v6(node.index, host));
    let pid = holder.pid();
    node.holder.ip(&format!(
        "link add p{host} type veth peer name eth0 netns {pid}\n\
         addr add {GATEWAY_V4}/32 dev p{host}\n\
         addr add {GATEWAY_V6}/64 dev p{host} nodad\n\
         link set p{host} up\n\
         route add {v4}/32 dev p{host}\n\
         route add {v6}/128 dev p{host}\n"
    ))?;
    holder.sysctl(&["net.ipv4.tcp_congestion_control=reno"])?;
    holder.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add {GATEWAY_V4} dev eth0\n\
         route add default via {GATEWAY_V4} dev eth0\n\
         route add default via {GATEWAY_V6} dev eth0\n"
    ))
}

/// Shell that mounts a file or directory over a path, made on a tmpfs if the machine lacks it.
fn mount_script(source: &Path, target: &Path) -> String {
    let (source, target) = (text(source), text(target));
    let parent = Path::new(&target).parent().map_or_else(|| "/".to_owned(), text);
    format!(
        "[ -e {target} ] || {{ mount -t tmpfs none {parent}; \
         [ -d {source} ] && mkdir -p {target} || touch {target}; }}\n\
         mount --bind {source} {target}\n"
    )
}

impl Pod {
    /// A command that runs in the pod, not started yet.
    ///
    /// # Errors
    /// When the pod's cgroup cannot be made.
    pub fn command(&self, command: &[&str]) -> anyhow::Result<Command> {
        self.sandbox.command("exec", command)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the output.
    pub fn exec(&self, command: &[&str]) -> anyhow::Result<Output> {
        Ok(self.sandbox.command("exec", command)?.stdin(Stdio::null()).output()?)
    }

    /// Runs a command with our own input and output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn exec_attached(&self, command: &[&str]) -> anyhow::Result<std::process::ExitStatus> {
        Ok(self.sandbox.command("exec", command)?.status()?)
    }

    /// Starts a command whose output is read later by `wait_with_output`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &[&str]) -> anyhow::Result<Child> {
        let mut command = self.sandbox.command("exec", command)?;
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().context("start a command")
    }

    /// Starts a command to talk with, line by line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn converse(&self, command: &[&str]) -> anyhow::Result<Conversation> {
        let mut command = self.sandbox.command("exec", command)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Conversation { child, input, output })
    }

    /// Words that, put before a command, run it in the pod.
    ///
    /// # Errors
    /// When the pod's cgroup cannot be made.
    pub fn enter_command(&self) -> anyhow::Result<Vec<String>> {
        let command = self.sandbox.command("exec", &[])?;
        let path = format!("PATH={}", self.sandbox.path);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy().into_owned());
        Ok(["env".to_owned(), path].into_iter().chain(words).collect())
    }

    /// The IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }

    /// What its containers wrote last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let Ok(files) = std::fs::read_dir(&self.sandbox.dir) else { return String::new() };
        let logs =
            files.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "log"));
        logs.filter_map(|file| std::fs::read_to_string(file.path()).ok())
            .map(|log| tail(&log))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// A running command that answers line by line. Ended when dropped.
pub struct Conversation {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    /// The next line, without its end.
    ///
    /// # Errors
    /// When the command has ended.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the command has ended");
        Ok(line.trim_end().to_owned())
    }

    /// Sends a line and reads one.
    ///
    /// # Errors
    /// As [`Conversation::line`].
    pub fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{line}")?;
        self.input.flush()?;
        self.line()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
