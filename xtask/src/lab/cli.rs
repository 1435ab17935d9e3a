//! `cargo xtask lab`: a lab for hand work. A process in the background owns it; the other commands
//! talk to that process over a socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Lab, RUN, text, wait};
use crate::tool::say;

/// Name of the lab when none is given.
const DEFAULT_NAME: &str = "hand";

/// Commands of `cargo xtask lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Make a lab and leave it up
    Up {
        /// Nodes
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// Worker threads of each agent
        #[arg(long, default_value_t = 2)]
        workers: usize,
        /// Manifests to apply
        #[arg(short, long)]
        file: Vec<PathBuf>,
        /// A cluster without the mesh
        #[arg(long)]
        no_agent: bool,
        /// Name, where several labs are up at once
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Apply manifests
    Apply {
        /// Files
        #[arg(short, long, required = true)]
        file: Vec<PathBuf>,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Run a command in a pod
    Exec {
        /// `namespace/name`, or a name in `default`
        pod: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List pods
    Ps {
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Show an agent's log
    Logs {
        /// Node
        #[arg(default_value = "node1")]
        node: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Ask a node's agent: the arguments are meshctl's
    Meshctl {
        /// Node
        node: String,
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
        /// Arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Remove the lab
    Down {
        /// Name of the lab
        #[arg(long, default_value = DEFAULT_NAME)]
        name: String,
    },
    /// Own a lab until told to stop: what `up` leaves in the background
    #[command(hide = true)]
    Serve {
        /// Nodes
        nodes: usize,
        /// Worker threads of each agent
        workers: usize,
        /// Name
        name: String,
        /// The agent's binary
        agent: Option<PathBuf>,
    },
}

/// Runs a command.
///
/// # Errors
/// What went wrong, in words for the one who typed it.
pub fn run(command: LabCommand) -> anyhow::Result<()> {
    match command {
        LabCommand::Up { nodes, workers, file, no_agent, name } => {
            up(nodes, workers, &file, no_agent, &name)
        }
        LabCommand::Apply { file, name } => apply(&name, &file),
        LabCommand::Exec { pod, name, command } => exec(&name, &pod, &command),
        LabCommand::Ps { name } => {
            for row in ask(&name, &json!({ "ps": true }))?.as_array().into_iter().flatten() {
                println!("{}", row.as_str().unwrap_or_default());
            }
            Ok(())
        }
        LabCommand::Logs { node, name } => {
            let log = Path::new(RUN).join(&name).join("nodes").join(node).join("agent.log");
            let log =
                std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
            print!("{log}");
            Ok(())
        }
        LabCommand::Meshctl { node, name, arguments } => {
            let answer = ask(&name, &json!({ "meshctl": arguments, "node": node }))?;
            print!("{}", answer.as_str().unwrap_or_default());
            Ok(())
        }
        LabCommand::Down { name } => {
            ask(&name, &json!({ "down": true }))?;
            wait(|| Ok(!Path::new(RUN).join(&name).exists())).context("the lab is still there")
        }
        LabCommand::Serve { nodes, workers, name, agent } => {
            serve(nodes, workers, &name, agent.as_deref())
        }
    }
}

fn socket(name: &str) -> PathBuf {
    Path::new(RUN).join(name).join("lab.sock")
}

fn up(
    nodes: usize,
    workers: usize,
    files: &[PathBuf],
    no_agent: bool,
    name: &str,
) -> anyhow::Result<()> {
    crate::setup::run_setup(&crate::setup::SetupArgs::default())?;
    let built = crate::build::all()?;
    ensure!(!socket(name).exists(), "lab `{name}` is up already: `cargo xtask lab down`");
    std::fs::create_dir_all(RUN)?;
    let log = std::fs::File::create(Path::new(RUN).join(format!("{name}.log")))?;
    let mut command = Command::new("setsid");
    command.arg(std::env::current_exe()?).args(["lab", "serve"]);
    command.args([nodes.to_string(), workers.to_string(), name.to_owned()]);
    if !no_agent {
        command.arg(&built.mesh_agent);
    }
    let mut child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    wait(|| {
        if let Some(status) = child.try_wait()? {
            let log = Path::new(RUN).join(format!("{name}.log"));
            bail!("the lab did not come up: {status}: {}", std::fs::read_to_string(log)?);
        }
        Ok(UnixStream::connect(socket(name)).is_ok())
    })?;
    apply(name, files)?;
    say(&format!("lab `{name}` is up; `cargo xtask lab ps`, `exec POD -- CMD`, `down`"));
    Ok(())
}

fn apply(name: &str, files: &[PathBuf]) -> anyhow::Result<()> {
    for file in files {
        let manifests =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        ask(name, &json!({ "apply": manifests })).with_context(|| text(file))?;
    }
    Ok(())
}

fn exec(name: &str, pod: &str, command: &[String]) -> anyhow::Result<()> {
    let pod = if pod.contains('/') { pod.to_owned() } else { format!("default/{pod}") };
    let answer = ask(name, &json!({ "enter": pod }))?;
    let prefix: Vec<&str> =
        answer.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (program, arguments) = prefix.split_first().context("no answer")?;
    let status = Command::new(program).args(arguments).args(command).status()?;
    std::process::exit(status.code().unwrap_or(1));
}

/// One question, one answer, each a line of JSON.
fn ask(name: &str, question: &Value) -> anyhow::Result<Value> {
    let path = socket(name);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("lab `{name}` is not up ({})", path.display()))?;
    writeln!(stream, "{question}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line).context("the lab ended")?;
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(answer["ok"].clone()),
    }
}

fn serve(nodes: usize, workers: usize, name: &str, agent: Option<&Path>) -> anyhow::Result<()> {
    let mut builder = Lab::builder().nodes(nodes).workers(workers).name(name);
    if let Some(agent) = agent {
        builder = builder.agent(agent);
    }
    let lab = builder.build()?;
    let listener = UnixListener::bind(socket(name))?;
    listener.set_nonblocking(true)?;
    loop {
        // Readiness of pods changes by itself.
        lab.cluster().refresh()?;
        let Ok((stream, _)) = listener.accept() else {
            super::pause();
            continue;
        };
        stream.set_nonblocking(false)?;
        let mut line = String::new();
        BufReader::new(stream.try_clone()?).read_line(&mut line)?;
        let question: Value = serde_json::from_str(&line).unwrap_or_default();
        let answer = match answer(&lab, &question) {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(&stream, "{answer}")?;
        if question["down"] == true {
            let _ = std::fs::remove_file(Path::new(RUN).join(format!("{name}.log")));
            return lab.down();
        }
    }
}

fn answer(lab: &Lab, question: &Value) -> anyhow::Result<Value> {
    if let Some(manifests) = question["apply"].as_str() {
        lab.apply(manifests)?;
        return Ok(Value::Null);
    }
    if let Some(pod) = question["enter"].as_str() {
        return Ok(json!(lab.pod(pod)?.enter_command()?));
    }
    if let Some(arguments) = question["meshctl"].as_array() {
        let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
        let node = question["node"].as_str().unwrap_or("node1");
        return Ok(json!(lab.meshctl(node, &arguments)?));
    }
    if question["ps"] == true {
        let rows = lab.pods().into_iter().map(|pod| {
            let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
            format!("{:<32} {:<8} {}", pod.name, pod.node, ips.join(" "))
        });
        return Ok(json!(rows.collect::<Vec<_>>()));
    }
    Ok(Value::Null)
}
