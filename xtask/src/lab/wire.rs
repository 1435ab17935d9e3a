//! What passes between the nodes, by tcpdump: ports, TLS versions, and whether some bytes appear in
//! the clear.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::node::Node;

/// A running capture.
pub struct WireCapture {
    child: Child,
    file: PathBuf,
}

/// One direction of a TCP connection: source and destination as they appear in the packets.
type Flow = (Vec<u8>, u16, Vec<u8>, u16);

/// What was seen.
#[derive(Debug, Default)]
pub struct WireReport {
    /// TCP payload by flow, in order of arrival.
    flows: BTreeMap<Flow, Vec<u8>>,
    /// Destination ports of SYN packets.
    opened: BTreeSet<u16>,
}

impl WireCapture {
    pub(super) fn start(node: &Node, run_dir: &Path) -> anyhow::Result<Self> {
        let file = run_dir.join(format!("{}.pcap", node.name));
        // In the lab's cgroup like everything else, so that the guardian ends it too.
        let procs = node.cgroup.child("capture")?.procs();
        let mut child = node
            .holder
            .enter()
            .args(["sh", "-c", &format!("echo $$ > {procs} && exec \"$@\""), "sh"])
            .args([
                "tcpdump",
                "-i",
                "uplink",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "32768",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .arg("tcp")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start tcpdump")?;
        // It says when it listens.
        let mut stderr = std::io::BufReader::new(child.stderr.take().context("no output")?);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            ensure!(std::io::BufRead::read_line(&mut stderr, &mut line)? > 0, "tcpdump ended");
        }
        // Its last lines are statistics that nobody reads; keep the pipe open for them.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Ok(Self { child, file })
    }

    /// Ends the capture and reads it.
    ///
    /// # Errors
    /// When the file is no capture.
    pub fn finish(mut self) -> anyhow::Result<WireReport> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGINT)?;
        self.child.wait()?;
        WireReport::read(&std::fs::read(&self.file)?)
    }
}

impl Drop for WireCapture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl WireReport {
    /// Reads a capture file (pcap, little endian, Ethernet).
    fn read(file: &[u8]) -> anyhow::Result<Self> {
        let magic = file.get(..4).context("an empty capture")?;
        ensure!(
            magic == [0xd4, 0xc3, 0xb2, 0xa1] || magic == [0x4d, 0x3c, 0xb2, 0xa1],
            "not a little-endian pcap file"
        );
        let mut report = Self::default();
        let mut rest = file.get(24..).unwrap_or_default();
        while let (Some(header), Some(body)) = (rest.get(..16), rest.get(16..)) {
            let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
            let length = usize::try_from(length)?;
            let Some(packet) = body.get(..length) else { break };
            report.packet(packet);
            rest = &body[length..];
        }
        Ok(report)
    }

    fn packet(&mut self, packet: &[u8]) -> Option<()> {
        let (source, destination, tcp) = match packet.get(12..14)? {
            [0x08, 0x00] => {
                let ip = packet.get(14..)?;
                let header = usize::from(ip.first()? & 0x0f) * 4;
                let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
                (ip.get(12..16)?, ip.get(16..20)?, ip.get(header..total)?)
            }
            [0x86, 0xdd] => {
                let ip = packet.get(14..)?;
                let total = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
                (ip.get(8..24)?, ip.get(24..40)?, ip.get(40..40 + total)?)
            }
            _ => return None,
        };
        let from = u16::from_be_bytes([*tcp.first()?, *tcp.get(1)?]);
        let to = u16::from_be_bytes([*tcp.get(2)?, *tcp.get(3)?]);
        let flags = *tcp.get(13)?;
        if flags & 0x12 == 0x02 {
            self.opened.insert(to);
        }
        let payload = tcp.get(usize::from(*tcp.get(12)? >> 4) * 4..)?;
        if !payload.is_empty() {
            let flow = (source.to_vec(), from, destination.to_vec(), to);
            self.flows.entry(flow).or_default().extend_from_slice(payload);
        }
        Some(())
    }

    /// Whether these bytes appear in any direction of any connection.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.flows.values().any(|bytes| bytes.windows(needle.len()).any(|part| part == needle))
    }

    /// TCP payload in all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.flows.values().map(Vec::len).sum()
    }

    /// TCP payload to and from a port.
    #[must_use]
    pub fn bytes_on_port(&self, port: u16) -> usize {
        self.flows
            .iter()
            .filter(|((_, from, _, to), _)| *from == port || *to == port)
            .map(|(_, bytes)| bytes.len())
            .sum()
    }

    /// Ports that connections were opened to.
    #[must_use]
    pub fn tcp_server_ports(&self) -> Vec<u16> {
        self.opened.iter().copied().collect()
    }

    /// TLS versions that servers chose, as in their ServerHello.
    #[must_use]
    pub fn tls_versions(&self) -> Vec<&'static str> {
        let chosen: BTreeSet<&'static str> =
            self.flows.values().filter_map(|bytes| server_hello_version(bytes)).collect();
        chosen.into_iter().collect()
    }

    /// Flows that carry data outside TLS records on this port.
    #[must_use]
    pub fn not_tls(&self, port: u16) -> usize {
        let on_port =
            self.flows.iter().filter(|((_, from, _, to), _)| *from == port || *to == port);
        on_port.filter(|(_, bytes)| !matches!(bytes.get(..2), Some([20..=23, 3]))).count()
    }
}

/// RFC 8446 section 4.1.3: legacy version 1.2, and the real one in `supported_versions`.
fn server_hello_version(bytes: &[u8]) -> Option<&'static str> {
    // Record type handshake, message type server_hello.
    if *bytes.first()? != 22 || *bytes.get(5)? != 2 {
        return None;
    }
    let hello = bytes.get(9..)?;
    let session = usize::from(*hello.get(34)?);
    let mut extensions = hello.get(35 + session + 3 + 2..)?;
    while let Some(header) = extensions.get(..4) {
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let body = extensions.get(4..4 + length)?;
        if header[..2] == [0, 43] {
            return Some(if body == [3, 4] { "TLS 1.3" } else { "another TLS version" });
        }
        extensions = &extensions[4 + length..];
    }
    Some("TLS 1.2 or older")
}
