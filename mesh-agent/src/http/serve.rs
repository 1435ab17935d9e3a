//! Reads requests from one captured connection and answers each through `outbound`.
//!
//! Invariant: when told to stop, no request that was sent is lost. An HTTP/1 client learns from its
//! next answer that the connection ends (`Connection: close`; closing an idle one could cross a
//! request), an HTTP/2 client from GOAWAY. A connection that was upgraded is handed over to `upgrade`
//! and lives on until its bytes end.
//!
//! An HTTP/1 client that ends its half has gone, as for Envoy: what it asked for is dropped with its
//! connection.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::connect::{ByteStream, Connect, Prefixed};
use super::early::{Current, Early, Outlet};
use super::engine::{ConnectionFacts, Engine};
use super::incoming::Incoming;
use super::upgrade::{self, Handover};
use super::{http2, outbound};

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
pub enum ServeError {
    /// Over HTTP/1.
    #[error("client connection failed")]
    Http1(#[from] hyper::Error),
    /// Over HTTP/2.
    #[error("client connection failed")]
    Http2(#[from] h2::Error),
    /// The client went away in the middle of a request's body.
    #[error("client has gone")]
    Gone,
}

/// How an HTTP/1 connection ends before its time; clones are the same connection's.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    /// After the request that it serves.
    pub(super) last: CancellationToken,
    /// At once: the client has gone.
    pub(super) gone: CancellationToken,
}

/// One connection's state.
pub(super) struct Connection {
    pub(super) facts: ConnectionFacts,
    pub(super) version: HttpVersion,
    /// Cancelled when the agent stops: further requests are for the next one.
    pub(super) shutdown: CancellationToken,
    /// Without effect in HTTP/2.
    pub(super) ending: Ending,
    /// Filled by a response that upgrades.
    pub(super) handover: RefCell<Option<Handover>>,
}

impl Connection {
    /// Says in an HTTP/1 response that no further request is taken, and has hyper see to it. Not where
    /// the connection leaves HTTP with it.
    pub(super) fn close_after<B>(&self, response: &mut Response<B>) {
        if self.version == HttpVersion::Http1 && self.handover.borrow().is_none() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
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
    let (ending, handover) = (Ending::default(), RefCell::default());
    let connection = Rc::new(Connection { facts, version, shutdown, ending, handover });
    match version {
        HttpVersion::Http1 => serve_http1(engine, io, connection).await,
        HttpVersion::Http2 => serve_http2(engine, io, connection).await,
    }
}

async fn serve_http1<C: Connect, S: ByteStream + 'static>(
    engine: &Engine<C>,
    io: S,
    connection: Rc<Connection>,
) -> Result<(), ServeError> {
    let current = Current::default();
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (engine, connection) = (engine.clone(), Rc::clone(&connection));
        let early = current.next();
        async move {
            let request = request.map(Incoming::Http1);
            let response = outbound::respond(&engine, &connection, request, &early).await;
            // They go before it.
            early.drained().await;
            Ok::<_, Infallible>(response)
        }
    });
    let outlet = Outlet::new(io, current.clone(), connection.ending.gone.clone());
    let mut http = http1::Builder::new()
        // The outlet sees the client go, and takes no buffer for it.
        .half_close(true)
        .max_buf_size(http2::MAX_BUFFER)
        .serve_connection(TokioIo::new(outlet), service);
    let ended = tokio::select! {
        biased;
        // Before what comes of it: a request whose body has broken off fails at its endpoint.
        () = connection.ending.gone.cancelled() => return Err(ServeError::Gone),
        ended = &mut http => ended,
        () = connection.ending.last.cancelled() => {
            std::pin::Pin::new(&mut http).graceful_shutdown();
            tokio::select! {
                biased;
                () = connection.ending.gone.cancelled() => return Err(ServeError::Gone),
                ended = &mut http => ended,
            }
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
    let (io, byte) = parts.io.into_inner().into_parts();
    let read = match byte {
        Some(byte) => [&parts.read_buf[..], &[byte]].concat().into(),
        None => parts.read_buf,
    };
    let mut io = Prefixed::new(read, io);
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
) -> Result<(), ServeError> {
    let (owner, shutdown) = (engine.clone(), connection.shutdown.clone());
    let respond = move |request, early: Early| {
        let (engine, connection) = (owner.clone(), Rc::clone(&connection));
        async move { outbound::respond(&engine, &connection, request, &early).await }
    };
    Ok(http2::serve(io, &engine.shared.tasks, shutdown, respond).await?)
}
