//! Reads requests from one captured connection and answers each through `outbound`.
//!
//! Invariant: when told to stop, requests in flight are finished, no further one is taken. A
//! connection that was upgraded is handed over to `upgrade` and lives on until its bytes end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::CONNECTION_WINDOW;
use super::connect::{ByteStream, Connect, Prefixed};
use super::engine::{ConnectionFacts, Engine};
use super::outbound;
use super::upgrade::{self, Handover};

/// Credit of one HTTP/2 stream: what a stream that is not read may hold in memory.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Streams that a client may have open on one connection; it queues the others by itself.
const MAX_STREAMS: u32 = 256;

/// Versions of HTTP, as far as connections differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A connection that did not end well. The client's fault, or its network's.
#[derive(Debug, thiserror::Error)]
#[error("client connection failed")]
pub struct ServeError(#[from] hyper::Error);

/// Where the tasks of an HTTP/2 connection run: on the worker, counted by its tracker.
#[derive(Clone, Debug)]
pub(super) struct LocalExecutor(pub(super) TaskTracker);

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn_local(future);
    }
}

/// One connection's state.
pub(super) struct Connection {
    pub(super) facts: ConnectionFacts,
    pub(super) version: HttpVersion,
    /// Filled by a response that upgrades.
    pub(super) handover: RefCell<Option<Handover>>,
}

/// Serves a connection until it ends. Must run within the worker's `LocalSet`.
///
/// # Errors
/// The client broke the protocol or the connection; requests before that were answered.
pub async fn serve<C: Connect, S: ByteStream + 'static>(
    engine: &Engine<C>,
    io: S,
    facts: ConnectionFacts,
    version: HttpVersion,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let connection = Rc::new(Connection { facts, version, handover: RefCell::default() });
    match version {
        HttpVersion::Http1 => serve_http1(engine, io, connection, shutdown).await,
        HttpVersion::Http2 => serve_http2(engine, io, connection, shutdown).await,
    }
}

async fn serve_http1<C: Connect, S: ByteStream + 'static>(
    engine: &Engine<C>,
    io: S,
    connection: Rc<Connection>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let service = service_fn(|request| {
        let (engine, connection) = (engine.clone(), Rc::clone(&connection));
        async move { Ok::<_, Infallible>(outbound::respond(&engine, &connection, request).await) }
    });
    let mut http =
        http1::Builder::new().half_close(true).serve_connection(TokioIo::new(io), service);
    let ended = tokio::select! {
        ended = &mut http => ended,
        () = shutdown.cancelled() => {
            std::pin::Pin::new(&mut http).graceful_shutdown();
            (&mut http).await
        }
    };
    if let Err(error) = ended {
        if error.is_parse() {
            outbound::refused(engine, &connection);
        }
        return Err(error.into());
    }
    let parts = http.into_parts();
    let handover = connection.handover.borrow_mut().take();
    let mut io = Prefixed::new(parts.read_buf, parts.io.into_inner());
    match handover {
        Some(handover) => upgrade::copy(io, handover).await,
        // hyper has shut it down already unless it was closed by the client.
        None => drop(io.shutdown().await),
    }
    Ok(())
}

async fn serve_http2<C: Connect, S: ByteStream + 'static>(
    engine: &Engine<C>,
    io: S,
    connection: Rc<Connection>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let owner = engine.clone();
    let service = service_fn(move |request| {
        let (engine, connection) = (owner.clone(), Rc::clone(&connection));
        async move { Ok::<_, Infallible>(outbound::respond(&engine, &connection, request).await) }
    });
    let http = http2::Builder::new(LocalExecutor(engine.shared.tasks.clone()))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(io), service);
    let mut http = pin!(http);
    tokio::select! {
        ended = &mut http => return Ok(ended?),
        () = shutdown.cancelled() => http.as_mut().graceful_shutdown(),
    }
    Ok(http.await?)
}
