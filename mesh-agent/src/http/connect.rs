//! How the engine reaches an endpoint: a trait that the tunnel (or a test) implements.
//!
//! Invariant: the engine never dials by itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::model::{ConnectionPool, Endpoint, TlsTarget, Workload};

/// Opens byte streams to endpoints in the name of a workload.
///
/// A second implementation is the in-memory one of the tests; outside them there are the tunnel
/// between nodes, the same node, and plaintext, all behind one value.
pub trait Connect: 'static {
    /// The byte stream.
    type Io: ByteStream + 'static;

    /// Opens a stream to `endpoint` as `source`, within the connect time-out of `pool`; in `tls`, if that
    /// is wanted, and never without then.
    ///
    /// `endpoint.workload` is none for addresses outside the mesh, which includes virtual addresses
    /// of no known service: they are dialled as the application would.
    ///
    /// # Errors
    /// Why it could not be opened; nothing of the request was sent then.
    fn connect(
        &self,
        source: &Arc<Workload>,
        endpoint: &Endpoint,
        pool: &ConnectionPool,
        tls: Option<&TlsTarget>,
    ) -> impl Future<Output = Result<Self::Io, ConnectError>>;

    /// Cancelled when what carries `io` is to end: it goes on, but should carry no request that can go
    /// elsewhere. `None`: that never happens before its end.
    fn retired(&self, io: &Self::Io) -> Option<CancellationToken> {
        let _ = io;
        None
    }

    /// Whether a stream to `endpoint` is mutually authenticated, for metrics.
    fn mutual_tls(&self, endpoint: &Endpoint) -> bool {
        endpoint.workload.as_ref().is_some_and(|pod| pod.enrolled)
    }
}

/// Bytes both ways, on one worker.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ByteStream for T {}

/// Why no stream to an endpoint could be opened. All but `Limit` may be tried again elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The other side refused, is unreachable, or failed the handshake: look there.
    #[error("remote connection failure, transport failure reason: {0}")]
    Remote(String),
    /// This side could not even try: no certificate, no socket, a limit. Look at this node's agent.
    #[error("local connection failure, transport failure reason: {0}")]
    Local(String),
    /// The source holds as much of the agent as it may; no other endpoint changes that.
    #[error("overflow")]
    Limit,
    /// No answer within the connect time-out.
    #[error("connection timeout")]
    Timeout,
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Remote(error.to_string()),
        }
    }
}

/// A stream whose first bytes were read already (by protocol detection).
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Bytes,
    io: S,
}

impl<S> Prefixed<S> {
    /// Puts `prefix` back in front of `io`.
    pub fn new(prefix: Bytes, io: S) -> Self {
        Self { prefix, io }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(self.prefix.get(..length).unwrap_or_default());
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
