//! `malha-load`: makes requests and connections, and says as JSON what came back.
//!
//! With `--requests N` exactly N requests are made, so that counts can be compared. Standard output
//! holds JSON only: one document, or one line at each step for the modes that hold connections.

mod client;
mod histogram;
mod http;
mod lines;
mod no_read;
mod report;
mod schedule;
mod tcp;
mod timer;
mod websocket;

use std::io::Write;
use std::time::Duration;

use ::http::Uri;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

/// Command line of `malha-load`.
#[derive(Debug, Parser)]
#[command(name = "malha-load", version, about = "Makes traffic and counts what comes back")]
pub struct Settings {
    /// Threads that make traffic
    #[arg(long, global = true, default_value_t = 1)]
    pub threads: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make HTTP requests
    Http(HttpArgs),
    /// Ask for large answers and read nothing of their bodies
    NoRead(NoReadArgs),
    /// WebSocket messages that must come back
    Websocket(WebsocketArgs),
    /// TCP connections to a server that sends back every byte
    #[command(subcommand)]
    Tcp(TcpCommand),
}

#[derive(Debug, Subcommand)]
enum TcpCommand {
    /// Hold connections that carry nothing, then see whether each still works
    Idle(IdleArgs),
    /// Send a message, wait until it is back, again
    Ping(PingArgs),
    /// Send bytes, end our half, compare what comes back
    Bulk(BulkArgs),
}

/// Where to connect, and in which words to ask.
#[derive(Clone, Debug, Args)]
struct TargetArgs {
    /// `http://host[:port]/path?query`
    url: Uri,
    /// Connect here (`host:port`) whatever the URL says
    #[arg(long)]
    connect: Option<String>,
    /// `Host` or `:authority`, if not the URL's
    #[arg(long)]
    host: Option<String>,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    http2: bool,
    /// `name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
}

#[derive(Debug, Args)]
struct HttpArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Make exactly this many requests
    #[arg(short = 'n', long, required_unless_present_any = ["duration", "until_eof"])]
    requests: Option<u64>,
    /// Stop after this many seconds
    #[arg(short, long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Stop when standard input ends
    #[arg(long)]
    until_eof: bool,
    /// Requests at once
    #[arg(short, long, default_value_t = 1)]
    concurrency: usize,
    /// HTTP/2 connections that the requests share
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// A connection for each request
    #[arg(long)]
    new_connections: bool,
    /// Close a connection of HTTP/1.1 at this age, between two requests
    #[arg(long, value_name = "SECONDS", conflicts_with = "new_connections")]
    connection_age: Option<f64>,
    /// Requests per second, evenly spaced; latency counts from when a request was due
    #[arg(long)]
    rate: Option<f64>,
    /// A unary gRPC call with the body as its message; implies --http2
    #[arg(long)]
    grpc: bool,
    #[arg(short = 'X', long)]
    method: Option<::http::Method>,
    /// Body to send
    #[arg(long, conflicts_with = "body_size")]
    body: Option<String>,
    /// Length of a generated body to send
    #[arg(long)]
    body_size: Option<usize>,
    /// The answer's body must be the request's
    #[arg(long)]
    expect_echo: bool,
    /// Only count what comes back: no hash, no table of bodies (for measurements)
    #[arg(long, conflicts_with = "expect_echo")]
    discard: bool,
    /// Milliseconds until a request has failed
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Count the values of this header of the answers
    #[arg(long)]
    count_header: Option<::http::HeaderName>,
    /// A header whose value is different for each of so many requests, then the same again:
    /// `x-user=300` is `x-user: user-0` to `user-299`
    #[arg(long, value_name = "NAME=COUNT")]
    vary: Option<String>,
    /// A line of JSON for each request as it ends, before the report
    #[arg(long)]
    lines: bool,
}

#[derive(Debug, Args)]
struct NoReadArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Answers to leave unread
    #[arg(short = 'n', long, default_value_t = 1)]
    requests: usize,
    /// HTTP/2 connections to spread them over; HTTP/1.1 needs one for each
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds to hold them once all are open
    #[arg(long, default_value_t = 10.0)]
    hold: f64,
    /// Milliseconds to wait for the head of an answer
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

#[derive(Debug, Args)]
struct WebsocketArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(short = 'n', long, default_value_t = 1)]
    messages: u64,
    /// Bytes in a message
    #[arg(long, default_value_t = 64)]
    size: usize,
}

#[derive(Debug, Args)]
struct IdleArgs {
    /// `host:port`
    address: String,
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// Seconds to hold them once all are open
    #[arg(long, default_value_t = 10.0)]
    hold: f64,
}

#[derive(Debug, Args)]
struct PingArgs {
    /// `host:port`
    address: String,
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// Messages on each connection
    #[arg(short = 'n', long, default_value_t = 1)]
    messages: u64,
    /// Bytes in a message
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Milliseconds until a message has failed
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Milliseconds between messages
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
}

#[derive(Debug, Args)]
struct BulkArgs {
    /// `host:port`
    address: String,
    /// Bytes to send
    #[arg(long, default_value_t = 1 << 20)]
    bytes: u64,
}

/// Runs what the command line asks for.
///
/// # Errors
/// The run could not start, or what had to come back unchanged did not. Failed requests are not an
/// error: they are in the report.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    match settings.command {
        Command::Http(args) => http::run(args).await,
        Command::NoRead(args) => no_read::run(args).await,
        Command::Websocket(args) => websocket::run(args).await,
        Command::Tcp(TcpCommand::Idle(args)) => tcp::idle(args).await,
        Command::Tcp(TcpCommand::Ping(args)) => tcp::ping(args).await,
        Command::Tcp(TcpCommand::Bulk(args)) => tcp::bulk(args).await,
    }
}

/// One JSON document in one line, at once, also into a pipe.
fn print(document: &impl Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, document)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

fn seconds(text: f64) -> anyhow::Result<Duration> {
    Ok(Duration::try_from_secs_f64(text)?)
}
