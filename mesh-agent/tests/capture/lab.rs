//! Two pods and a node between them, as network namespaces that die with this process.
//!
//! Not the lab of `xtask`: no agent, no manifests. The fake agent here only says what it saw.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::capture::{Capture, CaptureOptions, MapSizes, PodListeners, PodNet, PodSettings};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) const POD_A: &str = "10.77.1.2";
pub(crate) const POD_A6: &str = "fd77:1::2";
pub(crate) const POD_B: &str = "10.77.2.2";
pub(crate) const POD_B6: &str = "fd77:2::2";
pub(crate) const NODE: &str = "10.77.1.1";
pub(crate) const NODE6: &str = "fd77:1::1";
pub(crate) const NODE_AT_B: &str = "10.77.2.1";
pub(crate) const NODE_AT_B6: &str = "fd77:2::1";

pub(crate) struct Lab {
    pub(crate) runtime: Runtime,
    pub(crate) node: PodNet,
    pub(crate) a: PodNet,
    pub(crate) b: PodNet,
    pub(crate) options: CaptureOptions,
    _pause: Pause,
}

/// A process in pod A, as a container's pause process: found by its cgroup.
pub(crate) struct Pause(Child);

impl Drop for Pause {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    pub(crate) fn new(cgroup: PathBuf, pin_dir: PathBuf) -> Self {
        let node = namespace();
        let a = namespace();
        let b = namespace();
        for net in [&node, &a, &b] {
            ip(net, "link set lo up");
        }
        let write = |path: &str| node.within(|| std::fs::write(path, "1").unwrap()).unwrap();
        write("/proc/sys/net/ipv4/ip_forward");
        write("/proc/sys/net/ipv6/conf/all/forwarding");
        for (pod, n) in [(&a, 1), (&b, 2)] {
            let file = format!("/proc/{}/fd/{}", std::process::id(), pod.file().as_raw_fd());
            ip(&node, &format!("link add veth{n} type veth peer name eth0 netns {file}"));
            for (net, device, host) in [(&node, format!("veth{n}"), 1), (pod, "eth0".into(), 2)] {
                ip(net, &format!("addr add 10.77.{n}.{host}/24 dev {device}"));
                ip(net, &format!("addr add fd77:{n}::{host}/64 dev {device} nodad"));
                ip(net, &format!("link set {device} up"));
            }
            ip(pod, &format!("route add default via 10.77.{n}.1"));
            ip(pod, &format!("-6 route add default via fd77:{n}::1"));
        }
        let pause = pause(&a, &cgroup.join("kubepods/podaaaa-1/c1"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let options = CaptureOptions { cgroup, pin_dir, sizes: MapSizes::default() };
        Self { runtime, node, a, b, options, _pause: pause }
    }

    pub(crate) fn settings_a() -> PodSettings {
        PodSettings {
            ips: vec![POD_A.parse().unwrap(), POD_A6.parse().unwrap()],
            exclude_outbound_ports: vec![9999],
            exclude_outbound_ranges: vec![
                format!("{NODE_AT_B}/32").parse().unwrap(),
                format!("{NODE_AT_B6}/128").parse().unwrap(),
            ],
            exclude_inbound_ports: vec![],
        }
    }

    pub(crate) fn settings_b() -> PodSettings {
        PodSettings {
            ips: vec![POD_B.parse().unwrap(), POD_B6.parse().unwrap()],
            exclude_inbound_ports: vec![7777],
            ..PodSettings::default()
        }
    }

    /// Answers on the listeners of a pod until dropped.
    pub(crate) fn agent(&self, capture: &Arc<Capture>, listeners: PodListeners) -> Tasks {
        let mut tasks = Tasks(self.runtime.handle().clone(), Vec::new());
        for listener in listeners.outbound {
            let capture = Arc::clone(capture);
            tasks.1.push(self.serve(listener, move |socket| {
                let origin = capture.original_destination(socket);
                format!("captured {}", origin.map_or("nowhere".into(), |to| to.address.to_string()))
            }));
        }
        for (name, sockets) in [("plaintext", listeners.plaintext), ("tunnel", listeners.tunnel)] {
            for listener in sockets {
                tasks.1.push(self.serve(listener, move |socket| {
                    let (to, from) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
                    format!("{name} {to} {}", from.ip())
                }));
            }
        }
        tasks
    }

    /// An application: says who it is and who it sees.
    pub(crate) fn app(&self, net: &PodNet, address: &str) -> Tasks {
        let address: SocketAddr = address.parse().unwrap();
        let bound = net.within(|| TcpListener::bind(address)).unwrap();
        let listener = bound.unwrap_or_else(|error| panic!("{address}: {error}"));
        listener.set_nonblocking(true).unwrap();
        let mut tasks = Tasks(self.runtime.handle().clone(), Vec::new());
        tasks.1.push(self.serve(listener, |socket| format!("app {}", socket.peer_addr().unwrap())));
        tasks
    }

    /// Greets each connection with one line and then echoes; told to quit it closes first.
    fn serve(
        &self,
        listener: TcpListener,
        greet: impl Fn(&tokio::net::TcpStream) -> String + Send + Sync + 'static,
    ) -> JoinHandle<()> {
        let handle = self.runtime.handle().clone();
        self.runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut socket, _)) = listener.accept().await {
                let greeting = greet(&socket);
                handle.spawn(async move {
                    let _ = socket.write_all(format!("{greeting}\n").as_bytes()).await;
                    let mut buffer = [0; 1024];
                    while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                        if buffer.starts_with(b"quit") {
                            break;
                        }
                        let _ = socket.write_all(&buffer[..length]).await;
                    }
                });
            }
        })
    }
}

/// Servers that stop when dropped. Connections that they accepted live on.
pub(crate) struct Tasks(Handle, Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.1.drain(..) {
            task.abort();
            // Until the listener is really closed.
            let _ = self.0.block_on(task);
        }
    }
}

/// An application's connection, seen from the client.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) greeting: String,
}

impl Client {
    pub(crate) fn connect(net: &PodNet, to: &str) -> io::Result<Self> {
        let to: SocketAddr = to.parse().unwrap();
        Self::with(net, || TcpStream::connect_timeout(&to, PATIENCE))
    }

    pub(crate) fn with(
        net: &PodNet,
        connect: impl FnOnce() -> io::Result<TcpStream>,
    ) -> io::Result<Self> {
        Self::greeted(net.within(connect)??)
    }

    pub(crate) fn greeted(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut greeting)?;
        if greeting.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { stream, greeting: greeting.trim_end().to_owned() })
    }

    /// Whether the other end still echoes.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut answer = [0; 4];
        self.stream.write_all(b"ping").is_ok()
            && self.stream.read_exact(&mut answer).is_ok()
            && &answer == b"ping"
    }

    /// Lets the other end close first, which leaves it in TIME_WAIT.
    pub(crate) fn quit(mut self) {
        self.stream.write_all(b"quit").unwrap();
        assert_eq!(self.stream.read(&mut [0; 1]).unwrap(), 0);
    }

    pub(crate) fn peer(&self) -> String {
        self.stream.peer_addr().unwrap().to_string()
    }

    pub(crate) fn local_ip(&self) -> IpAddr {
        self.stream.local_addr().unwrap().ip()
    }
}

fn namespace() -> PodNet {
    // A thread of its own, since `unshare` cannot be taken back.
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        PodNet::open("/proc/thread-self/ns/net").unwrap()
    })
    .join()
    .unwrap()
}

pub(crate) fn ip(net: &PodNet, arguments: &str) -> String {
    let output = net
        .within(|| Command::new("ip").args(arguments.split_whitespace()).output().unwrap())
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn pause(net: &PodNet, cgroup: &PathBuf) -> Pause {
    std::fs::create_dir_all(cgroup).unwrap();
    let child = net.within(|| Command::new("sleep").arg("600").spawn().unwrap()).unwrap();
    let pause = Pause(child);
    std::fs::write(cgroup.join("cgroup.procs"), pause.0.id().to_string()).unwrap();
    pause
}
