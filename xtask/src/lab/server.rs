//! A lab in a process of its own, so that several commands can use it one after the other: the
//! process that owns it, and the socket by which they ask it.
//!
//! One question and one answer for each connection, each a line of JSON. A question that cannot be
//! answered, or an asker that goes away, never ends the lab.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Lab, RUN, WireCapture, WireReport, wait};

/// An asker that says nothing for this long is not waited for.
const SILENCE: Duration = Duration::from_secs(5);

/// How a lab is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Name to find it by.
    pub name: String,
    /// Nodes.
    pub nodes: usize,
    /// Worker threads of each agent.
    pub workers: usize,
    /// The agent's binary; none for a cluster without the mesh.
    pub agent: Option<PathBuf>,
}

/// A pod as it is shown to people.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PodRow {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: String,
    /// IPv4 and IPv6.
    pub ips: Vec<std::net::IpAddr>,
}

/// What a wire capture has shown, as far as it can be said without knowing what to look for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WireSummary {
    /// TCP ports that connections were opened to.
    pub ports: Vec<u16>,
    /// TLS versions that servers chose.
    pub tls: Vec<String>,
    /// Bytes of TCP payload to and from the mesh's port.
    pub bytes: usize,
    /// Bytes of TCP payload to and from other ports.
    pub elsewhere: usize,
    /// Directions of connections on the mesh's port that are not TLS records.
    pub not_tls: usize,
    /// Those of the texts asked for that appear in the clear.
    pub clear: Vec<String>,
}

/// A lab that another process owns.
#[derive(Debug)]
pub struct Served {
    name: String,
    /// Its process and the pipe that binds it to ours, if we have started it.
    server: Option<Child>,
}

// === impl Served ===

impl Served {
    /// A lab that is up already.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), server: None }
    }

    /// Starts one and waits until it answers. It ends with us, unless [`Served::keep`] is called.
    ///
    /// # Errors
    /// There is one of that name, or why it did not come up.
    pub fn start(options: &ServeOptions) -> anyhow::Result<Self> {
        let name = &options.name;
        ensure!(
            UnixStream::connect(socket(name)).is_err(),
            "lab `{name}` is up already: `cargo xtask lab down --name {name}`"
        );
        std::fs::create_dir_all(RUN)?;
        let log = File::create(log_file(name))?;
        // A session of its own: Ctrl-C reaches us, and the pipe tells the server.
        let mut command = Command::new("setsid");
        command.arg(crate::tool::own_program()?).args(["lab", "serve"]);
        command.args([options.nodes.to_string(), options.workers.to_string(), name.clone()]);
        command.args(&options.agent);
        let child = command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut served = Self { name: name.clone(), server: Some(child) };
        served.wait_until_up()?;
        Ok(served)
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        wait(|| {
            if let Some(status) = self.server.as_mut().and_then(|child| child.try_wait().ok()?) {
                let log = std::fs::read_to_string(log_file(&self.name)).unwrap_or_default();
                bail!("the lab did not come up: {status}: {}", log.trim());
            }
            Ok(self.ask(&json!({})).is_ok())
        })
    }

    /// One question, one answer.
    ///
    /// # Errors
    /// The lab is not up, or what it answered.
    pub(super) fn ask(&self, question: &Value) -> anyhow::Result<Value> {
        let path = socket(&self.name);
        let mut stream = UnixStream::connect(&path)
            .with_context(|| format!("lab `{}` is not up ({})", self.name, path.display()))?;
        writeln!(stream, "{question}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).context("the lab ended")?;
        match answer["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => Ok(answer["ok"].clone()),
        }
    }

    /// Leaves the lab up when we end.
    ///
    /// # Errors
    /// It does not answer.
    pub fn keep(&mut self) -> anyhow::Result<()> {
        self.ask(&json!({ "keep": true }))?;
        self.server = None;
        Ok(())
    }

    /// Removes the lab and waits until it is gone.
    ///
    /// # Errors
    /// It is not up, or could not be removed in full.
    pub fn down(mut self) -> anyhow::Result<()> {
        self.ask(&json!({ "down": true }))?;
        wait(|| Ok(!Path::new(RUN).join(&self.name).exists())).context("the lab is still there")?;
        if let Some(mut server) = self.server.take() {
            let status = server.wait()?;
            ensure!(status.success(), "the lab could not be removed in full: {status}");
        }
        Ok(())
    }

    /// Applies manifests as `kubectl apply` would.
    ///
    /// # Errors
    /// A manifest that cannot be read or run; the message names object and field.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.ask(&json!({ "apply": manifests })).map(drop)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.ask(&json!({ "delete": [kind, namespace, name] })).map(drop)
    }

    /// Waits until every pod is ready and its node's agent has enrolled it.
    ///
    /// # Errors
    /// When one is not in time; the message holds the end of a log.
    pub fn wait_enrolled(&self) -> anyhow::Result<()> {
        self.ask(&json!({ "wait": true })).map(drop)
    }

    /// All pods.
    ///
    /// # Errors
    /// The lab is not up.
    pub fn pods(&self) -> anyhow::Result<Vec<PodRow>> {
        Ok(serde_json::from_value(self.ask(&json!({ "pods": true }))?)?)
    }

    /// What the containers of a pod, `namespace/name`, have written.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn log(&self, pod: &str) -> anyhow::Result<String> {
        let answer = self.ask(&json!({ "log": pod }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// A command to be run in a pod, `namespace/name`.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn command_in(&self, pod: &str, command: &[impl AsRef<str>]) -> anyhow::Result<Command> {
        let words: Vec<String> = serde_json::from_value(self.ask(&json!({ "enter": pod }))?)?;
        let (program, arguments) = words.split_first().context("no answer")?;
        let mut entered = Command::new(program);
        entered.args(arguments).args(command.iter().map(AsRef::as_ref));
        Ok(entered)
    }

    /// Asks a node's agent by `meshctl`.
    ///
    /// # Errors
    /// When it fails; the message holds what it wrote.
    pub fn meshctl(&self, node: &str, arguments: &[impl AsRef<str>]) -> anyhow::Result<String> {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let answer = self.ask(&json!({ "meshctl": arguments, "node": node }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Records what passes a node's uplink from now on.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn capture_wire(&self, node: &str) -> anyhow::Result<()> {
        self.ask(&json!({ "capture_wire": node })).map(drop)
    }

    /// Ends that, and says what was seen; `texts` are looked for in the clear.
    ///
    /// # Errors
    /// When nothing was recorded.
    pub fn wire_summary(&self, port: u16, texts: &[&str]) -> anyhow::Result<WireSummary> {
        let answer = self.ask(&json!({ "wire_summary": texts, "port": port }))?;
        Ok(serde_json::from_value(answer)?)
    }
}

impl Drop for Served {
    /// Ends the server, which removes its lab, and waits for it.
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            drop(server.stdin.take());
            let _ = server.wait();
            let run_dir = Path::new(RUN).join(&self.name);
            if wait(|| Ok(!run_dir.exists())).is_err() {
                crate::tool::say(&format!("lab: {} is still there", run_dir.display()));
            }
        }
    }
}

fn socket(name: &str) -> PathBuf {
    Path::new(RUN).join(name).join("lab.sock")
}

/// Beside the lab's own files, so that it is there when the lab did not come up.
fn log_file(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.log"))
}

// === the owner's side ===

/// A lab and what was begun on it.
struct Server {
    lab: Lab,
    wire: Option<WireCapture>,
    /// Whether it stays when the one that started it ends.
    kept: Arc<AtomicBool>,
}

/// Owns a lab until told to stop, or until standard input ends before `keep` was asked for.
///
/// # Errors
/// Why the lab cannot be made or removed.
pub(super) fn serve(options: &ServeOptions) -> anyhow::Result<()> {
    let kept = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&kept);
    let name = options.name.clone();
    // Also while the lab is being made. Ending is enough: its guardian cleans up.
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        if !watched.load(Ordering::SeqCst) {
            let _ = std::fs::remove_file(log_file(&name));
            std::process::exit(0);
        }
    });
    let mut builder =
        Lab::builder().nodes(options.nodes).workers(options.workers).name(&options.name);
    if let Some(agent) = &options.agent {
        builder = builder.agent(agent);
    }
    let mut server = Server { lab: builder.build()?, wire: None, kept };
    let listener = UnixListener::bind(socket(&options.name))?;
    listener.set_nonblocking(true)?;
    loop {
        let Ok((stream, _)) = listener.accept() else {
            super::pause();
            continue;
        };
        if server.converse(&stream).unwrap_or(false) {
            let _ = std::fs::remove_file(log_file(&options.name));
            return server.lab.down();
        }
    }
}

impl Server {
    /// Reads a question and answers it; whether it was to stop.
    fn converse(&mut self, stream: &UnixStream) -> anyhow::Result<bool> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let question: Value = serde_json::from_str(&line)?;
        let answer = match self.answer(&question) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        let mut stream = stream;
        let told = writeln!(stream, "{answer}");
        if question["down"] == true {
            return Ok(true);
        }
        told?;
        Ok(false)
    }

    fn answer(&mut self, question: &Value) -> anyhow::Result<Value> {
        let lab = &self.lab;
        if let Some(manifests) = question["apply"].as_str() {
            lab.apply(manifests)?;
        } else if let Some([kind, namespace, name]) = words(&question["delete"]).get(..3) {
            lab.delete(kind, namespace, name)?;
        } else if let Some(pod) = question["enter"].as_str() {
            return Ok(json!(lab.pod(pod)?.enter_command()?));
        } else if let Some(pod) = question["log"].as_str() {
            return Ok(json!(lab.pod(pod)?.log()?));
        } else if !question["meshctl"].is_null() {
            let node = question["node"].as_str().unwrap_or("node1");
            return Ok(json!(lab.meshctl(node, &words(&question["meshctl"]))?));
        } else if question["wait"] == true {
            lab.wait_all_ready()?;
            lab.pods().iter().try_for_each(|pod| lab.wait_enrolled(pod))?;
        } else if question["pods"] == true {
            let rows = lab.pods().into_iter().map(|pod| PodRow {
                name: pod.name,
                node: pod.node,
                ips: pod.ips,
            });
            return Ok(serde_json::to_value(rows.collect::<Vec<_>>())?);
        } else if let Some(node) = question["capture_wire"].as_str() {
            self.wire = Some(lab.capture_wire(node)?);
        } else if let Some(port) = question["port"].as_u64() {
            let report = self.wire.take().context("nothing was recorded")?.finish()?;
            let texts = words(&question["wire_summary"]);
            return Ok(serde_json::to_value(summary(&report, u16::try_from(port)?, &texts))?);
        } else if question["keep"] == true {
            self.kept.store(true, Ordering::SeqCst);
        }
        Ok(Value::Null)
    }
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn summary(report: &WireReport, port: u16, texts: &[&str]) -> WireSummary {
    let bytes = report.bytes_on_port(port);
    let clear = texts.iter().filter(|text| report.contains(text.as_bytes()));
    WireSummary {
        ports: report.tcp_server_ports(),
        tls: report.tls_versions().into_iter().map(str::to_owned).collect(),
        bytes,
        elsewhere: report.bytes() - bytes,
        not_tls: report.not_tls(port),
        clear: clear.map(|text| (*text).to_owned()).collect(),
    }
}
