//! `malha-echo`: answers HTTP/1.1, HTTP/2 (prior knowledge), gRPC, WebSocket and TCP, and says in
//! its answers what it saw: addresses, headers, version, body hash.
//!
//! One process may listen on many ports. It binds `[::]` for both address families, and `0.0.0.0`
//! where the machine has no IPv6. With `--call` it is one service among several: it asks others
//! before it answers.

mod body;
mod call;
mod control;
mod grpc;
mod http;
mod tcp;
mod turns;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::call::Call;
use self::turns::Turns;

/// Connections served at once on one port; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16_384;

/// Length of the accept queue of one port; the kernel may cut it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What to listen on, and who to say we are.
#[derive(Clone, Debug, Parser)]
#[command(name = "malha-echo", version, about = "Answers with what it saw")]
pub struct Settings {
    /// Port for HTTP/1.1, HTTP/2 (h2c), gRPC and WebSocket; may be repeated
    #[arg(long, value_name = "PORT")]
    pub http: Vec<u16>,
    /// Port that sends back every byte, then closes its half; may be repeated
    #[arg(long, value_name = "PORT")]
    pub tcp: Vec<u16>,
    /// Port where the server speaks first (one line), then sends back every byte; may be repeated
    #[arg(long, value_name = "PORT")]
    pub banner: Vec<u16>,
    /// Address to bind; `::` takes IPv4 too
    #[arg(long, default_value = "::")]
    pub bind: IpAddr,
    /// Version to report
    #[arg(long, env = "VERSION", default_value = "")]
    pub app_version: String,
    /// Pod name to report; the host's name if absent
    #[arg(long, env = "HOSTNAME")]
    pub pod: Option<String>,
    /// Threads that serve
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Parameters of requests that do not have them, as a query: `status=504&delay-ms=100`
    #[arg(long, value_name = "QUERY", default_value = "")]
    pub default: String,
    /// Ask this URL before each answer, which then has the worst status of those asked; may be
    /// repeated
    #[arg(long, value_name = "URL")]
    pub call: Vec<::http::Uri>,
    /// HTTP requests served at once, as by an application with so many threads; more wait
    #[arg(long)]
    pub slots: Option<usize>,
    /// Print each HTTP request as a line of JSON
    #[arg(long)]
    pub log: bool,
}

/// Who answers, part of every answer, and what it does by itself.
#[derive(Debug)]
struct Server {
    pod: String,
    version: String,
    default: String,
    calls: Vec<Call>,
    slots: Option<Semaphore>,
    log: bool,
    turns: Turns,
}

/// The two ends of an accepted connection as the application sees them.
#[derive(Clone, Copy, Debug)]
struct Ends {
    remote: SocketAddr,
    local: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Http,
    Tcp,
    Banner,
}

/// Listens on every port of `settings` and serves until a listener fails.
///
/// Port 0 lets the kernel choose. Each bound address is printed as one line
/// (`http [::]:8080`), then `ready`.
///
/// # Errors
/// A port that cannot be bound, or no port at all.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let server = Arc::new(Server {
        pod: settings.pod.or(host).unwrap_or_else(|| "unknown".to_owned()),
        version: settings.app_version,
        default: settings.default,
        calls: settings.call.into_iter().map(Call::new).collect::<anyhow::Result<_>>()?,
        slots: settings.slots.map(Semaphore::new),
        log: settings.log,
        turns: Turns::default(),
    });
    let ports = (settings.http.iter().map(|port| (*port, Mode::Http)))
        .chain(settings.tcp.iter().map(|port| (*port, Mode::Tcp)))
        .chain(settings.banner.iter().map(|port| (*port, Mode::Banner)));
    let mut listeners = JoinSet::new();
    for (port, mode) in ports {
        let listener = listen(settings.bind, port)
            .with_context(|| format!("listen on port {port} of {}", settings.bind))?;
        announce(&format!("{} {}", mode.name(), listener.local_addr()?))?;
        let server = Arc::clone(&server);
        listeners.spawn(crate::accept(listener, MAX_CONNECTIONS, move |stream, remote| {
            serve(stream, remote, mode, Arc::clone(&server))
        }));
    }
    anyhow::ensure!(!listeners.is_empty(), "give at least one of --http, --tcp, --banner");
    announce("ready")?;
    match listeners.join_next().await {
        Some(ended) => ended.context("a listener panicked")?,
        None => Ok(()),
    }
}

/// One line on standard output, at once, also into a pipe.
fn announce(line: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

async fn serve(stream: TcpStream, remote: SocketAddr, mode: Mode, server: Arc<Server>) {
    let Ok(local) = stream.local_addr() else { return };
    // Small answers must not wait for the client's acknowledgements.
    let _ = stream.set_nodelay(true);
    let ends = Ends { remote: canonical(remote), local: canonical(local) };
    // A client that breaks its connection is that client's business: errors end the connection.
    match mode {
        Mode::Http => drop(http::serve(stream, ends, server).await),
        Mode::Tcp => drop(tcp::echo(stream).await),
        Mode::Banner => drop(tcp::banner(stream, ends, &server).await),
    }
}

fn listen(bind: IpAddr, port: u16) -> std::io::Result<TcpListener> {
    match bind_to(SocketAddr::new(bind, port)) {
        Err(error)
            if bind == Ipv6Addr::UNSPECIFIED
                && matches!(
                    error.raw_os_error(),
                    Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
                ) =>
        {
            bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        bound => bound,
    }
}

fn bind_to(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// `::ffff:10.0.0.1` is what a dual-stack socket calls 10.0.0.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Banner => "banner",
        }
    }
}
