//! What is on the wire between nodes: tcpdump at a node's uplink, and what its file shows.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::container::{JOIN, detach};
use super::host;
use super::pcap::WireReport;
use super::topology::{Node, UPLINK};

const PATIENCE: Duration = Duration::from_secs(15);
/// tcpdump's buffer in KiB: at full speed the default loses packets.
const BUFFER: &str = "32768";

/// A capture that is going on. Dropped unfinished, it ends without a result.
#[derive(Debug)]
pub struct WireCapture {
    child: Child,
    file: PathBuf,
}

impl WireCapture {
    /// Starts at a node's uplink; packets after this returns are seen.
    pub(super) fn start(node: &Node, cgroup: &Path, file: PathBuf) -> anyhow::Result<Self> {
        // Beside the nodes' cgroups: nothing is captured or redirected here.
        let tools = cgroup.join("tools");
        fs::create_dir_all(&tools)?;
        let said = file.with_extension("log");
        let log = File::create(&said)?;
        let mut command = host::command("nsenter");
        command.arg(format!("--net={}", host::netns_path(&node.netns).display()));
        command.args(["sh", "-c", JOIN, "capture"]).arg(tools.join("cgroup.procs"));
        command.args([
            "tcpdump",
            "-i",
            UPLINK,
            "-n",
            "-U",
            "--immediate-mode",
            "-B",
            BUFFER,
            "-Z",
            "root",
            "-w",
        ]);
        command.arg(&file).args(["ip", "or", "ip6"]);
        detach(&mut command, &log)?;
        command.stdin(Stdio::null());
        let mut child = command.spawn().context("start tcpdump")?;
        host::wait_for(PATIENCE, "tcpdump to listen", || {
            let text = fs::read_to_string(&said)?;
            if let Some(status) = child.try_wait()? {
                bail!("tcpdump ended: {status}: {text}");
            }
            Ok(text.contains("listening on").then_some(()))
        })?;
        Ok(Self { child, file })
    }

    /// What has been seen so far, while the capture goes on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn so_far(&self) -> anyhow::Result<WireReport> {
        WireReport::parse(&fs::read(&self.file)?)
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// tcpdump does not end, or its file cannot be read.
    pub fn finish(mut self) -> anyhow::Result<WireReport> {
        // What is in flight from the kernel to tcpdump: half a packet buffer's time-out.
        std::thread::park_timeout(Duration::from_millis(500));
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        host::wait_for(PATIENCE, "tcpdump to end", || Ok(self.child.try_wait()?))?;
        WireReport::parse(&fs::read(&self.file)?)
    }
}

impl Drop for WireCapture {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}
