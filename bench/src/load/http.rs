//! HTTP requests: a fixed number of workers, each with one request under way.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::client::{Link, Target};
use super::lines::{Line, Vary};
use super::report::{Counts, ErrorKind, Failure};
use super::schedule::Schedule;
use super::timer::Timer;
use super::{HttpArgs, print, seconds};
use crate::digest::{Hasher, pattern};

/// A longer body is counted by its hash.
const MAX_BODY_AS_TEXT: usize = 256;

/// What every worker does.
struct Job {
    target: Target,
    schedule: Schedule,
    method: Method,
    body: Bytes,
    /// Hash that an answer's body must have.
    expected: Option<String>,
    timeout: Duration,
    new_connections: bool,
    connection_age: Option<Duration>,
    grpc: bool,
    count_header: Option<HeaderName>,
    /// Whether bodies are only counted.
    discard: bool,
    vary: Option<Vary>,
    /// Whether each request is told when it ends.
    lines: bool,
}

/// What counts of an answer.
struct Answer {
    status: u16,
    grpc_status: Option<String>,
    header: Option<String>,
    body: String,
    length: u64,
}

pub(super) async fn run(args: HttpArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.concurrency > 0 && args.connections > 0, "nothing would be sent");
    anyhow::ensure!(args.rate.is_none_or(|rate| rate > 0.0), "--rate must be over 0");
    let concurrency = args.concurrency;
    let shared = if args.new_connections { 0 } else { args.connections };
    let until_eof = args.until_eof;
    let start = Instant::now();
    let job = Arc::new(prepare(args, start)?);
    if until_eof {
        let job = Arc::clone(&job);
        // Not a task: a read of standard input cannot be cancelled and would hold up the end.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            job.schedule.stop();
        });
    }
    let links: Vec<Link> = (0..shared).map(|_| job.target.link()).collect();
    let mut workers = JoinSet::new();
    for number in 0..concurrency {
        let link = match number.checked_rem(links.len()).and_then(|index| links.get(index)) {
            Some(link) => link.share(),
            None => job.target.link(),
        };
        workers.spawn(work(Arc::clone(&job), link));
    }
    let mut total = Counts::new();
    while let Some(counts) = workers.join_next().await {
        total.merge(counts??);
    }
    print(&total.report(start.elapsed()))
}

fn prepare(args: HttpArgs, start: Instant) -> anyhow::Result<Job> {
    let mut target = args.target;
    target.http2 |= args.grpc;
    if args.grpc {
        target.headers.push("content-type: application/grpc".to_owned());
        target.headers.push("te: trailers".to_owned());
    }
    let mut body = match (args.body, args.body_size) {
        (Some(text), _) => Bytes::from(text),
        (None, size) => {
            let mut generated = vec![0; size.unwrap_or(0)];
            pattern(0, &mut generated);
            Bytes::from(generated)
        }
    };
    let default = if body.is_empty() && !args.grpc { Method::GET } else { Method::POST };
    if args.grpc {
        body = message(&body)?;
    }
    let expected = args.expect_echo.then(|| {
        let mut hasher = Hasher::new();
        hasher.update(&body);
        hasher.finish().1
    });
    Ok(Job {
        target: Target::new(&target)?,
        schedule: Schedule::new(
            start,
            args.requests,
            args.duration.map(seconds).transpose()?,
            args.rate,
        ),
        method: args.method.unwrap_or(default),
        body,
        expected,
        timeout: Duration::from_millis(args.timeout_ms),
        new_connections: args.new_connections,
        connection_age: args.connection_age.map(seconds).transpose()?,
        grpc: args.grpc,
        count_header: args.count_header,
        discard: args.discard,
        vary: args.vary.as_deref().map(Vary::parse).transpose()?,
        lines: args.lines,
    })
}

/// A gRPC message: not compressed, length, content.
fn message(content: &[u8]) -> anyhow::Result<Bytes> {
    let mut message = BytesMut::with_capacity(content.len() + 5);
    message.put_u8(0);
    message.put_u32(u32::try_from(content.len())?);
    message.put_slice(content);
    Ok(message.freeze())
}

async fn work(job: Arc<Job>, mut link: Link) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    let mut timer = job.schedule.is_paced().then(Timer::new).transpose()?;
    while let Some((number, due)) = job.schedule.take(Instant::now()) {
        if let Some(timer) = &mut timer {
            timer.wait(due.saturating_duration_since(Instant::now())).await?;
        }
        counts.requests += 1;
        if job.new_connections {
            link = job.target.link();
        }
        if let Some(age) = job.connection_age {
            link.renew(age);
        }
        let exchange = exchange(&job, number, &mut link, &mut counts.connections);
        let ended = match timeout(job.timeout, exchange).await {
            Ok(ended) => ended,
            Err(_) => {
                let text = format!("no whole answer in {} ms", job.timeout.as_millis());
                Err(Failure { kind: ErrorKind::Timeout, text })
            }
        };
        if job.lines {
            let line = Line::new(number, job.schedule.start().elapsed(), due.elapsed());
            print(&match &ended {
                Ok(answer) => line.answered(answer.status, answer.header.as_deref(), &answer.body),
                Err(failure) => line.failed(failure),
            })?;
        }
        match ended {
            Ok(answer) => {
                counts.latencies.record(due.elapsed());
                count(&mut counts, &job, answer);
            }
            Err(failure) => {
                link.abandon();
                counts.fail(failure);
            }
        }
    }
    Ok(counts)
}

fn count(counts: &mut Counts, job: &Job, answer: Answer) {
    *counts.statuses.entry(answer.status).or_default() += 1;
    counts.bytes += answer.length;
    if !job.discard {
        counts.bodies.add(&answer.body, 1);
    }
    if job.count_header.is_some() {
        counts.headers.add(answer.header.as_deref().unwrap_or("(none)"), 1);
    }
    if job.grpc {
        let status = answer.grpc_status.unwrap_or_else(|| "(none)".to_owned());
        *counts.grpc_statuses.entry(status).or_default() += 1;
    }
    counts.succeeded += 1;
}

async fn exchange(
    job: &Job,
    number: u64,
    link: &mut Link,
    connections: &mut u64,
) -> Result<Answer, Failure> {
    let last = job.new_connections && matches!(link, Link::Http1(_));
    let request = || {
        let mut request = job.target.request(job.method.clone(), job.body.clone());
        if last {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(vary) = &job.vary {
            vary.apply(number, request.headers_mut());
        }
        request
    };
    read(link.send(&job.target, request, connections).await?, job).await
}

async fn read(response: Response<Incoming>, job: &Job) -> Result<Answer, Failure> {
    let (head, mut body) = response.into_parts();
    let mut hasher = Hasher::new();
    let mut discarded = 0;
    let mut text = Vec::new();
    // In a trailers-only answer the status is in the head.
    let mut grpc_status = head.headers.get("grpc-status").cloned();
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| ErrorKind::Body.because(&error))?.into_data() {
            Ok(data) if job.discard => discarded += data.len() as u64,
            Ok(data) => {
                hasher.update(&data);
                let room = (MAX_BODY_AS_TEXT + 1).saturating_sub(text.len());
                text.extend(data.iter().take(room));
            }
            Err(frame) => {
                let trailers = frame.trailers_ref();
                grpc_status = trailers.and_then(|t| t.get("grpc-status").cloned()).or(grpc_status);
            }
        }
    }
    let (length, hash) = hasher.finish();
    if let Some(expected) = &job.expected
        && *expected != hash
    {
        let text = format!("{length} bytes came back with hash {hash}, not {expected}");
        return Err(Failure { kind: ErrorKind::Mismatch, text });
    }
    let body = if text.len() > MAX_BODY_AS_TEXT {
        format!("sha256:{hash} ({length} bytes)")
    } else {
        String::from_utf8_lossy(&text).into_owned()
    };
    let as_text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let counted = job.count_header.as_ref().and_then(|name| head.headers.get(name));
    Ok(Answer {
        status: head.status.as_u16(),
        grpc_status: grpc_status.as_ref().map(as_text),
        header: counted.map(as_text),
        body,
        length: length + discarded,
    })
}
