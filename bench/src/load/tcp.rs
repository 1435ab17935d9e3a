//! TCP towards a server that sends back every byte: idle connections, ping-pong, bulk.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::report::{Counts, ErrorKind, Failure};
use super::{BulkArgs, IdleArgs, PingArgs, print, seconds};
use crate::digest::{Hasher, pattern};
use crate::wait;

/// Bytes written or read at a time.
const CHUNK: usize = 64 * 1024;

/// How long one held connection may take to answer at the end.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Held {
    state: &'static str,
    open: usize,
    failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    alive: Option<usize>,
}

#[derive(Serialize)]
struct Moved {
    bytes_sent: u64,
    bytes_received: u64,
    sha256_sent: String,
    sha256_received: String,
    same: bool,
    seconds: f64,
    megabits_per_second: f64,
}

pub(super) async fn idle(args: IdleArgs) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for _ in 0..args.connections {
        if let Ok(stream) = TcpStream::connect(&args.address).await {
            open.push(stream);
        }
    }
    let (count, failed) = (open.len(), args.connections - open.len());
    print(&Held { state: "holding", open: count, failed, alive: None })?;
    sleep(seconds(args.hold)?).await;
    let mut alive = 0;
    for stream in &mut open {
        if let Ok(Ok(true)) = timeout(PROBE_TIMEOUT, exchange(stream, b"ping\n")).await {
            alive += 1;
        }
    }
    print(&Held { state: "done", open: count, failed, alive: Some(alive) })
}

pub(super) async fn ping(args: PingArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let args = Arc::new(args);
    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(ping_one(Arc::clone(&args)));
    }
    let mut total = Counts::new();
    while let Some(counts) = workers.join_next().await {
        total.merge(counts?);
    }
    print(&total.report(start.elapsed()))
}

/// Messages on one connection; the first that fails is the last, as later ones mean nothing.
async fn ping_one(args: Arc<PingArgs>) -> Counts {
    let mut counts = Counts::new();
    let mut stream = match TcpStream::connect(&args.address).await {
        Ok(stream) => stream,
        Err(error) => {
            counts.fail(ErrorKind::Connect.because(&error));
            return counts;
        }
    };
    counts.connections = 1;
    // Otherwise a message may wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut message = vec![0; args.size];
    for number in 0..args.messages {
        pattern(number, &mut message);
        counts.requests += 1;
        let sent = Instant::now();
        let limit = Duration::from_millis(args.timeout_ms);
        let failure = match timeout(limit, exchange(&mut stream, &message)).await {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => {
                let text = format!("message {number} came back changed");
                Some(Failure { kind: ErrorKind::Mismatch, text })
            }
            Ok(Err(error)) => Some(ErrorKind::Request.because(&error)),
            Err(error) => Some(ErrorKind::Timeout.because(&error)),
        };
        if let Some(failure) = failure {
            counts.fail(failure);
            break;
        }
        counts.latencies.record(sent.elapsed());
        counts.succeeded += 1;
        counts.bytes += args.size as u64;
        wait(Duration::from_millis(args.interval_ms)).await;
    }
    counts
}

/// Whether `message` came back as it went.
async fn exchange(stream: &mut TcpStream, message: &[u8]) -> io::Result<bool> {
    stream.write_all(message).await?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).await?;
    Ok(answer == message)
}

pub(super) async fn bulk(args: BulkArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let (read, write) = TcpStream::connect(&args.address).await?.into_split();
    let (sent, received) = tokio::try_join!(send(write, args.bytes), receive(read))?;
    let ((bytes_sent, sha256_sent), (bytes_received, sha256_received)) = (sent, received);
    let seconds = start.elapsed().as_secs_f64();
    let moved = Moved {
        same: bytes_sent == bytes_received && sha256_sent == sha256_received,
        bytes_sent,
        bytes_received,
        sha256_sent,
        sha256_received,
        seconds,
        megabits_per_second: bytes_received as f64 * 8.0 / 1e6 / seconds.max(f64::EPSILON),
    };
    print(&moved)?;
    anyhow::ensure!(moved.same, "not what was sent came back");
    Ok(())
}

/// Sends `bytes` of the pattern and ends our half.
async fn send(mut stream: OwnedWriteHalf, bytes: u64) -> io::Result<(u64, String)> {
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < bytes {
        let length = (CHUNK as u64).min(bytes - offset);
        // At most CHUNK, so both the cast and the split hold.
        let (part, _) = chunk.split_at_mut(length as usize);
        pattern(offset, part);
        hasher.update(part);
        stream.write_all(part).await?;
        offset += length;
    }
    stream.shutdown().await?;
    Ok(hasher.finish())
}

async fn receive(mut stream: OwnedReadHalf) -> io::Result<(u64, String)> {
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut chunk).await?;
        match chunk.get(..length) {
            None | Some([]) => return Ok(hasher.finish()),
            Some(part) => hasher.update(part),
        }
    }
}
