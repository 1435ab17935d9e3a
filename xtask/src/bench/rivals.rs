//! Other people's proxies in the pods outside the mesh: started with the configurations of
//! `bench/peers`, with as many workers as an agent, all that a run has to do with for the whole of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::cpu;
use super::ground::Way;
use crate::lab::{Lab, Pod, wait_for};
use crate::peers::{cache, envoy};
use crate::tool::{installed, output};

const HTTP: u16 = 8080;
/// Before the configuration.
const ENVOY_ARGUMENTS: &[&str] =
    &["--disable-hot-restart", "--log-level", "error", "--config-path"];
const START: Duration = Duration::from_secs(30);

/// A proxy or a pair of them.
pub(super) struct Rival {
    /// As scenarios and tables name it.
    pub(super) name: &'static str,
    program: Program,
    /// Configuration at the client's end.
    near: (&'static str, &'static str),
    /// Configuration at the server's end; without it the near one goes to the pod on its own node.
    far: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Nginx,
    Haproxy,
    Envoy,
}

macro_rules! config {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../bench/peers/", $name)))
    };
}

/// All of them; the place in the list makes the port.
pub(super) const RIVALS: &[Rival] = &[
    Rival {
        name: "nginx hop",
        program: Program::Nginx,
        near: config!("nginx-hop.conf"),
        far: None,
    },
    Rival {
        name: "haproxy hop",
        program: Program::Haproxy,
        near: config!("haproxy-hop.cfg"),
        far: None,
    },
    Rival {
        name: "nginx pair",
        program: Program::Nginx,
        near: config!("nginx-near.conf"),
        far: Some(config!("nginx-far.conf")),
    },
    Rival {
        name: "haproxy pair",
        program: Program::Haproxy,
        near: config!("haproxy-http-near.cfg"),
        far: Some(config!("haproxy-http-far.cfg")),
    },
    Rival {
        name: "haproxy h2 pair",
        program: Program::Haproxy,
        near: config!("haproxy-grpc-near.cfg"),
        far: Some(config!("haproxy-grpc-far.cfg")),
    },
    Rival {
        name: "envoy http pair",
        program: Program::Envoy,
        near: config!("envoy-http-near.yaml"),
        far: Some(config!("envoy-http-far.yaml")),
    },
    Rival {
        name: "envoy tcp pair",
        program: Program::Envoy,
        near: config!("envoy-tcp-near.yaml"),
        far: Some(config!("envoy-tcp-far.yaml")),
    },
    Rival {
        name: "envoy hbone pair",
        program: Program::Envoy,
        near: config!("envoy-hbone-near.yaml"),
        far: Some(config!("envoy-hbone-far.yaml")),
    },
];

/// A rival that serves.
pub(super) struct Running {
    /// Where its client connects.
    pub(super) entrance: SocketAddr,
    children: Vec<Child>,
}

/// The pods that rivals run in and between.
pub(super) struct Places<'a> {
    pub(super) lab: &'a Lab,
    pub(super) client: &'a Pod,
    pub(super) far: &'a Pod,
    pub(super) near: &'a Pod,
    /// Words before a command that keep it on its node's core.
    pub(super) pin: [Vec<String>; 2],
    /// Threads or processes that serve, of each.
    pub(super) workers: usize,
}

/// Starts those among `ways`, and waits until they serve. By name.
pub(super) fn start(
    places: &Places<'_>,
    ways: &[Way],
) -> anyhow::Result<BTreeMap<&'static str, Running>> {
    let dir = places.lab.shared_dir();
    certificates(&dir)?;
    let ports = 7001_u16..;
    RIVALS
        .iter()
        .zip(ports)
        .filter(|(rival, _)| ways.contains(&Way::Rival(rival.name)))
        .map(|(rival, port)| {
            let running = rival.start(places, &dir, port);
            Ok((rival.name, running.with_context(|| format!("start {}", rival.name))?))
        })
        .collect()
}

impl Rival {
    fn start(&self, places: &Places<'_>, dir: &Path, port: u16) -> anyhow::Result<Running> {
        let entrance = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let far = SocketAddr::new(places.far.ip(), port + 500);
        let mut running = Running { entrance, children: Vec::new() };
        let target = match self.far {
            None => SocketAddr::new(places.near.ip(), HTTP),
            Some(config) => {
                let application = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP);
                let [_, pin] = &places.pin;
                let addresses = (far, application);
                running.add(self.run(config, dir, addresses, (places.far, pin), places.workers)?);
                far
            }
        };
        let [pin, _] = &places.pin;
        let (addresses, place) = ((entrance, target), (places.client, &pin[..]));
        running.add(self.run(self.near, dir, addresses, place, places.workers)?);
        if self.far.is_some() {
            serves(places.client, far)?;
        }
        serves(places.client, entrance)?;
        Ok(running)
    }

    /// Runs one end in a pod.
    fn run(
        &self,
        (file, template): (&str, &str),
        dir: &Path,
        (listen, target): (SocketAddr, SocketAddr),
        (pod, pin): (&Pod, &[String]),
        workers: usize,
    ) -> anyhow::Result<Child> {
        let path = dir.join(file);
        let text = fill(template, dir, file, (listen, target), workers);
        fs::write(&path, text)?;
        let path = path.to_string_lossy().into_owned();
        let mut words = pin.to_vec();
        words.extend(self.program.command(path, workers)?);
        let log = fs::File::create(dir.join(format!("{file}.log")))?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = pod.command(&words)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {words:?}"))
    }
}

impl Program {
    fn command(self, config: String, workers: usize) -> anyhow::Result<Vec<String>> {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Nginx => (installed("nginx")?, &["-c"]),
            Self::Haproxy => (installed("haproxy")?, &["-db", "-f"]),
            Self::Envoy => (envoy::ensure(&cache())?, ENVOY_ARGUMENTS),
        };
        let program = program.to_string_lossy().into_owned();
        let arguments = arguments.iter().map(ToString::to_string);
        let mut words: Vec<String> =
            [program].into_iter().chain(arguments).chain([config]).collect();
        // The others have it in their configuration.
        if self == Self::Envoy {
            words.extend(["--concurrency".to_owned(), workers.to_string()]);
        }
        Ok(words)
    }
}

/// Versions of the rivals' programs, as they give them.
pub(super) fn versions() -> anyhow::Result<Vec<String>> {
    let first =
        |text: &str| text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    let mut versions = Vec::new();
    for (program, flag) in [("nginx", "-v"), ("haproxy", "-v")] {
        // nginx writes it to standard error.
        let output = Command::new(installed(program)?).arg(flag).output()?;
        let text = [output.stdout, output.stderr].concat();
        versions.extend(first(&String::from_utf8_lossy(&text)));
    }
    let text = output(Command::new(envoy::ensure(&cache())?).arg("--version"))?;
    let version = text.split('/').find(|part| part.starts_with("1."));
    versions.push(format!("envoy {}", version.unwrap_or(text.trim())));
    Ok(versions)
}

fn fill(
    template: &str,
    dir: &Path,
    name: &str,
    (listen, target): (SocketAddr, SocketAddr),
    workers: usize,
) -> String {
    template
        .replace("@WORKERS@", &workers.to_string())
        .replace("@DIR@", &dir.to_string_lossy())
        .replace("@NAME@", name)
        .replace("@LISTEN@", &listen.to_string())
        .replace("@LISTEN_IP@", &listen.ip().to_string())
        .replace("@LISTEN_PORT@", &listen.port().to_string())
        .replace("@TARGET@", &target.to_string())
        .replace("@TARGET_IP@", &target.ip().to_string())
        .replace("@TARGET_PORT@", &target.port().to_string())
        .replace("@AUTHORITY@", &SocketAddr::new(target.ip(), HTTP).to_string())
}

/// A root, and a certificate for each end of a pair: ECDSA on P-256, as the mesh's own.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    let openssl = |words: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(dir).args(["req", "-x509", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
        output(command.args(words)).map(drop)
    };
    openssl(&["-subj", "/CN=root", "-keyout", "root.key", "-out", "root.pem"])?;
    for name in ["near", "far"] {
        let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
        let (subject, alternative) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let ca = ["-CA", "root.pem", "-CAkey", "root.key", "-addext", "basicConstraints=CA:FALSE"];
        let own = ["-subj", &subject, "-addext", &alternative, "-keyout", &key, "-out", &cert];
        openssl(&[&ca[..], &own].concat())?;
        // haproxy wants both in one file.
        let both = [fs::read(dir.join(&cert))?, fs::read(dir.join(&key))?].concat();
        fs::write(dir.join(format!("{name}.both.pem")), both)?;
    }
    Ok(())
}

/// Waits until something listens there, seen from the client.
fn serves(client: &Pod, at: SocketAddr) -> anyhow::Result<()> {
    let connect =
        "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)";
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    wait_for(START, &format!("a proxy at {at}"), || {
        let output = client.exec(&["python3", "-c", connect, &ip, &port])?;
        Ok(output.status.success().then_some(()))
    })
}

impl Running {
    fn add(&mut self, child: Child) {
        self.children.push(child);
    }

    /// Its processes.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.children.iter().flat_map(|child| cpu::family(child.id())).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            // A worker of nginx ends with its master; the lab's guardian ends what is left.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_template_is_left_unfilled() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7001));
        let target = SocketAddr::from(([10, 0, 0, 2], 8080));
        for rival in RIVALS {
            for (file, template) in [Some(rival.near), rival.far].into_iter().flatten() {
                let text = fill(template, Path::new("/run/x"), file, (listen, target), 2);
                assert!(!text.contains('@') || text.contains("\"@type\""), "{file}: {text}");
                let left = text.replace("\"@type\"", "");
                assert!(!left.contains('@'), "{file}: {left}");
            }
        }
    }
}
