//! HTTP/2 connections, both ends, on the `h2` crate: streams are requests.
//!
//! Not hyper's: it passes no informational responses, and takes a reset for an end. Limits that are
//! not set here (resets, pings, empty frames) are `h2`'s own.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{BodyError, ResponseBody};
use super::connect::ByteStream;
use super::early::Early;
use super::incoming::Incoming;
use super::request_body::RequestBody;

/// Credit of one stream: what a stream that is not read may hold in memory.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Credit for a whole connection: the most that HTTP/2 allows, so that a stream that is not read
/// holds up only itself (PERFORMANCE: a shared window hangs everybody).
pub(super) const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Streams that a client may have open on one connection; it queues the others by itself.
const MAX_STREAMS: u32 = 256;
/// Bytes of a head, counted as HPACK does (RFC 7541 §4.1: 32 more for each field). Envoy takes
/// 60 KiB of names and values.
const MAX_HEAD: u32 = 96 * 1024;
/// Bytes that a stream may have waiting to be sent.
const SEND_BUFFER: usize = 64 * 1024;
/// Bytes that a request and its response may hold at the worst, over HTTP/2 on both sides: two
/// streams' windows, and two buffers to send from. `MAX_BUFFER` keeps HTTP/1 below it.
pub const REQUEST_MEMORY: usize = 2 * (STREAM_WINDOW as usize + SEND_BUFFER);
/// Bytes of each of an HTTP/1 connection's two buffers; a head must fit in one (Envoy takes 60 KiB).
pub(super) const MAX_BUFFER: usize = REQUEST_MEMORY / 4;
/// Streams on a connection until the peer's settings are known (hyper's default, too).
pub(super) const INITIAL_STREAMS: usize = 100;

// === server ===

/// Serves a client's connection; `respond` answers one request.
///
/// # Errors
/// The client broke the protocol or the connection.
pub(super) async fn serve<S, F>(
    io: S,
    tasks: &TaskTracker,
    shutdown: CancellationToken,
    respond: impl Fn(Request<Incoming>, Early) -> F,
) -> Result<(), h2::Error>
where
    S: ByteStream,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(io)
        .await?;
    let mut stop = Some(Box::pin(shutdown.cancelled_owned()));
    loop {
        let accepted = poll_fn(|cx| {
            if stop.as_mut().is_some_and(|stop| stop.as_mut().poll(cx).is_ready()) {
                stop = None;
                connection.graceful_shutdown();
            }
            connection.poll_accept(cx)
        });
        let Some(accepted) = accepted.await else { return Ok(()) };
        let (request, reply) = accepted?;
        let early = Early::of_stream();
        let head = request.method() == Method::HEAD;
        let (parts, stream) = request.into_parts();
        let body = Incoming::of_stream(stream, &parts.headers);
        let request = Request::from_parts(parts, body);
        let responding = Box::pin(respond(request, early.clone()));
        tasks.spawn_local(answer(responding, early, reply, head));
    }
}

/// One stream: informational responses, the final one, its body. A client that resets the stream
/// ends the work for it. What responds is large, and let go of before the body: hence the box.
async fn answer(
    mut responding: Pin<Box<impl Future<Output = Response<ResponseBody>>>>,
    early: Early,
    mut reply: SendResponse<Bytes>,
    head: bool,
) {
    let response = poll_fn(|cx| {
        // First: a body that breaks off with the stream fails at its endpoint. An error here is a
        // connection that is gone.
        if reply.poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        let responded = responding.as_mut().poll(cx);
        // Also those that came together with the final one.
        while let Poll::Ready((status, headers)) = early.poll_take(cx) {
            let mut informational = Response::new(());
            *informational.status_mut() = status;
            *informational.headers_mut() = headers;
            if let Err(error) = reply.send_informational(informational) {
                tracing::debug!(%error, "informational response not sent");
            }
        }
        responded.map(Some)
    });
    let Some(response) = response.await else { return };
    drop(responding);
    let (mut parts, body) = response.into_parts();
    // A proxy with a clock adds what the origin left out (RFC 9110 §6.6.1).
    parts.headers.entry(DATE).or_insert_with(now);
    if let Some(length) = body.size_hint().exact()
        && !(head && length == 0)
        && !parts.status.is_informational()
        && parts.status != StatusCode::NO_CONTENT
        && parts.status != StatusCode::NOT_MODIFIED
    {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let ended = body.is_end_stream();
    // An error is a stream or connection that the client has given up.
    let Ok(mut stream) = reply.send_response(Response::from_parts(parts, ()), ended) else {
        return;
    };
    if !ended {
        send(body, &mut stream).await;
    }
}

fn now() -> HeaderValue {
    let text = httpdate::fmt_http_date(std::time::SystemTime::now());
    // A date is visible ASCII.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

// === client ===

/// A connection to an endpoint, and what drives it.
pub(super) type Connected<S> = (SendRequest<Bytes>, h2::client::Connection<S, Bytes>);

/// Greets an endpoint.
///
/// # Errors
/// It does not speak HTTP/2, or the connection is gone.
pub(super) async fn connect<S: ByteStream>(io: S) -> Result<Connected<S>, h2::Error> {
    h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(INITIAL_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(io)
        .await
}

/// Why there is no response.
pub(super) enum StreamError {
    /// Nothing was sent: the request comes back whole.
    Unsent(Box<Request<RequestBody>>),
    /// The request was sent, at least in part.
    Failed(h2::Error),
}

/// Sends a request on a connection and waits for the head of its response. The body goes up by
/// itself until it ends or `abandoned` is cancelled.
///
/// # Errors
/// The stream or the connection failed before there was a head.
pub(super) async fn exchange(
    connection: &SendRequest<Bytes>,
    request: Request<RequestBody>,
    tasks: &TaskTracker,
    abandoned: &CancellationToken,
    early: &Early,
) -> Result<Response<Incoming>, StreamError> {
    let Ok(mut connection) = connection.clone().ready().await else {
        return Err(StreamError::Unsent(Box::new(request)));
    };
    let (head, body) = request.into_parts();
    let gate = body.gate();
    let ended = body.is_end_stream();
    let sent = connection.send_request(Request::from_parts(head, ()), ended);
    let (mut response, mut stream) = sent.map_err(StreamError::Failed)?;
    if !ended {
        let abandoned = abandoned.clone();
        tasks.spawn_local(async move {
            tokio::select! {
                () = send(body, &mut stream) => {}
                () = abandoned.cancelled() => stream.send_reset(Reason::CANCEL),
            }
        });
    }
    let head = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(informational))) = response.poll_informational(cx) {
            if informational.status() == StatusCode::SWITCHING_PROTOCOLS {
                // There is none in HTTP/2 (RFC 9113 §8.6).
                return Poll::Ready(Err(Reason::PROTOCOL_ERROR.into()));
            }
            early.pass(informational.status(), informational.headers(), gate.as_deref());
        }
        Pin::<&mut ResponseFuture>::new(&mut response).poll(cx)
    });
    let (parts, stream) = head.await.map_err(StreamError::Failed)?.into_parts();
    let body = Incoming::of_stream(stream, &parts.headers);
    Ok(Response::from_parts(parts, body))
}

/// Whether the endpoint says that it has not begun with the stream: refused, or after the last one
/// that a connection which ends will serve. Then any request may be sent again (RFC 9113 §8.7).
pub(super) fn untouched(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let after_last = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
    error.is_remote() && (refused || after_last)
}

// === both ===

/// Sends a body as fast as the peer gives credit. A body that breaks off resets the stream; a
/// stream that the peer resets ends it.
async fn send<B: Body<Data = Bytes, Error = BodyError> + Unpin>(
    mut body: B,
    stream: &mut SendStream<Bytes>,
) {
    loop {
        if !credit(stream).await {
            return;
        }
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                return Poll::Ready(Some(frame));
            }
            stream.poll_reset(cx).map(|_reset| None)
        });
        let (sent, ended) = match frame.await {
            // The peer, or its connection, is gone.
            None => return,
            Some(None) => (stream.send_data(Bytes::new(), true), true),
            Some(Some(Err(error))) => return stream.send_reset(error.reason()),
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let ended = body.is_end_stream();
                    (stream.send_data(data, ended), ended)
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        // An error is a stream that is over.
                        let _ = stream.send_trailers(trailers);
                    }
                    return;
                }
            },
        };
        if sent.is_err() || ended {
            return;
        }
    }
}

/// Waits for room for at least a byte; `false` if the stream is over.
async fn credit(stream: &mut SendStream<Bytes>) -> bool {
    stream.reserve_capacity(1);
    poll_fn(|cx| {
        if stream.capacity() > 0 {
            return Poll::Ready(true);
        }
        match stream.poll_reset(cx) {
            Poll::Ready(_) => return Poll::Ready(false),
            Poll::Pending => {}
        }
        stream.poll_capacity(cx).map(|capacity| matches!(capacity, Some(Ok(_))))
    })
    .await
}
