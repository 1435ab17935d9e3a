//! HTTP/1.1 and HTTP/2 of the echo server: the answer says what the request looked like here.
//!
//! The version is found by the connection's first bytes. Bodies are never collected, whatever
//! their size.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::anyhow;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::body::{self, Answer};
use super::call::Called;
use super::control::Control;
use super::{Ends, Server, announce, grpc};
use crate::digest::Hasher;
use crate::{wait, websocket};

/// What a request asks of its connection rather than of its answer.
enum Wish {
    /// Send no further answer after the ones that are under way.
    Close,
    /// Speak WebSocket from here on.
    WebSocket(OnUpgrade),
}

/// The JSON answer.
#[derive(Serialize)]
struct Seen<'a> {
    pod: &'a str,
    version: &'a str,
    method: &'a str,
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: &'a str,
    http: &'static str,
    headers: BTreeMap<&'a str, Vec<String>>,
    trailers: BTreeMap<&'a str, Vec<String>>,
    body_length: u64,
    body_sha256: String,
    remote: String,
    local: String,
    /// What other servers answered.
    #[serde(skip_serializing_if = "<[Called]>::is_empty")]
    calls: &'a [Called],
}

/// A request's body and trailers, read to their end.
struct Whole {
    length: u64,
    sha256: String,
    trailers: HeaderMap,
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(
    stream: TcpStream,
    ends: Ends,
    server: Arc<Server>,
) -> anyhow::Result<()> {
    // One wish at a time is enough: a close is idempotent and an upgrade ends HTTP.
    let (wishes, mut wished) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let (server, wishes) = (Arc::clone(&server), wishes.clone());
        async move { respond(request, ends, &server, &wishes).await }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut upgrade = None;
    loop {
        tokio::select! {
            // First what is asked, then the end: an upgrade is asked for before HTTP ends.
            biased;
            Some(wish) = wished.recv() => match wish {
                Wish::Close => connection.as_mut().graceful_shutdown(),
                Wish::WebSocket(on) => upgrade = Some(on),
            },
            ended = connection.as_mut() => match ended {
                Ok(()) => break,
                Err(error) => return Err(anyhow!(error)),
            },
        }
    }
    // The request that asked may have been answered in the same step that ended HTTP.
    if let Ok(Wish::WebSocket(on)) = wished.try_recv() {
        upgrade = Some(on);
    }
    match upgrade {
        Some(on) => Ok(websocket::echo(TokioIo::new(on.await?)).await?),
        None => Ok(()),
    }
}

async fn respond(
    request: Request<Incoming>,
    ends: Ends,
    server: &Server,
    wishes: &mpsc::Sender<Wish>,
) -> anyhow::Result<Response<Answer>> {
    let mut control = match control(&request, server) {
        Ok(control) => control,
        Err(message) => return Ok(refusal(message)),
    };
    if control.abort {
        if server.log {
            let (head, body) = request.into_parts();
            log(&describe(&head, read(body).await?, &[], ends, server)?)?;
        }
        return Err(anyhow!("asked to abort"));
    }
    if control.close {
        // A full channel holds an earlier wish to close.
        let _ = wishes.try_send(Wish::Close);
    }
    if grpc::is_grpc(request.headers()) && request.version() == Version::HTTP_2 {
        return Ok(grpc::respond(request, &control, server).await);
    }
    if let Some(accept) = websocket::accept_key(request.headers()) {
        return switch(request, &accept, server, wishes);
    }
    let _slot = match &server.slots {
        Some(slots) => Some(slots.acquire().await?),
        None => None,
    };
    wait(control.delay).await;
    let mut response = answer(request, &mut control, ends, server).await?;
    *response.status_mut() = control.status;
    sign(response.headers_mut(), server);
    Ok(response)
}

/// What is to be done for a request.
fn control(request: &Request<Incoming>, server: &Server) -> Result<Control, String> {
    let query = request.uri().query().unwrap_or_default();
    let mut control = Control::parse(query, request.headers(), &server.default)?;
    if !control.turns.is_empty() {
        let kind = request.uri().path_and_query().map_or("/", |kind| kind.as_str());
        control.turn(server.turns.next(kind)?);
    }
    Ok(control)
}

/// Answers, with the worst status of the servers that are asked first.
async fn answer(
    request: Request<Incoming>,
    control: &mut Control,
    ends: Ends,
    server: &Server,
) -> anyhow::Result<Response<Answer>> {
    if control.stream {
        let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
        let mut response = Response::new(request.into_body().boxed_unsync());
        if let Some(value) = content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        return Ok(response);
    }
    let (head, body) = request.into_parts();
    let whole = read(body).await?;
    let mut calls = Vec::new();
    for call in server.calls.iter().filter(|_| !control.alone) {
        calls.push(call.ask(&head.headers).await);
    }
    if let Some(worst) = calls.iter().filter_map(Called::failure).max() {
        control.status = worst;
    }
    let seen = || describe(&head, whole, &calls, ends, server);
    let json = if server.log || control.size.is_none() { seen()? } else { Vec::new() };
    if server.log {
        log(&json)?;
    }
    let (length, kind, body) = if let Some(size) = control.size {
        let body = body::generated(size, control.pause, control.trailers);
        (size, "application/octet-stream", body)
    } else {
        let length = json.len() as u64;
        (length, "application/json", body::streamed(json.into(), control.trailers))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if control.trailers {
        headers.insert(header::TRAILER, HeaderValue::from(body::TRAILER));
    } else if !control.chunked {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// Says in JSON what a request was.
fn describe(
    head: &Parts,
    body: Whole,
    calls: &[Called],
    ends: Ends,
    server: &Server,
) -> anyhow::Result<Vec<u8>> {
    let seen = Seen {
        pod: &server.pod,
        version: &server.version,
        method: head.method.as_str(),
        scheme: head.uri.scheme_str(),
        authority: head.uri.authority().map(http::uri::Authority::as_str),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        http: version_name(head.version),
        headers: listed(&head.headers),
        trailers: listed(&body.trailers),
        body_length: body.length,
        body_sha256: body.sha256,
        remote: ends.remote.to_string(),
        local: ends.local.to_string(),
        calls,
    };
    Ok(serde_json::to_vec(&seen)?)
}

/// A line of the server's log.
fn log(json: &[u8]) -> std::io::Result<()> {
    announce(&String::from_utf8_lossy(json))
}

/// Reads a body to its end without keeping it.
async fn read(mut body: Incoming) -> anyhow::Result<Whole> {
    let mut hasher = Hasher::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => hasher.update(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let (length, sha256) = hasher.finish();
    Ok(Whole { length, sha256, trailers })
}

/// 101, and the connection's task takes over once HTTP has let go.
fn switch(
    mut request: Request<Incoming>,
    accept: &str,
    server: &Server,
    wishes: &mpsc::Sender<Wish>,
) -> anyhow::Result<Response<Answer>> {
    let upgrade = hyper::upgrade::on(&mut request);
    wishes
        .try_send(Wish::WebSocket(upgrade))
        .map_err(|_| anyhow!("this connection is being closed"))?;
    let mut response = Response::new(body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(accept)?);
    sign(headers, server);
    Ok(response)
}

fn refusal(message: String) -> Response<Answer> {
    let mut response = Response::new(body::full(message));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Says in headers who answered, for answers whose body cannot.
pub(super) fn sign(headers: &mut HeaderMap, server: &Server) {
    for (name, text) in [("x-echo-pod", &server.pod), ("x-echo-version", &server.version)] {
        // A name that cannot stand in a header is in the JSON all the same.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    }
}

fn listed(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let values = |name| {
        let all = headers.get_all(name).iter();
        all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    headers.keys().map(|name| (name.as_str(), values(name))).collect()
}

fn version_name(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
