//! What carries a byte stream to where an endpoint is: a socket, a stream of a tunnel, or TLS over one of
//! them. Not here: the choice (`upstream`).

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::TunnelStream;
use super::quota::Permit;
use crate::model::Keepalive;
use crate::origination::TlsIo;

/// An open stream.
#[derive(Debug)]
pub struct UpstreamIo {
    carrier: Carrier,
    _permit: Permit,
}

/// What carries a stream.
#[derive(Debug)]
pub(super) enum Carrier {
    /// A socket.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Tunnel(TunnelStream),
    /// TLS that the destination's policy asks for.
    Tls(Box<TlsIo<Carrier>>),
}

// === impl UpstreamIo ===

impl UpstreamIo {
    pub(super) fn new(carrier: Carrier, permit: Permit) -> Self {
        Self { carrier, _permit: permit }
    }

    /// Cancelled when the stream's tunnel takes no further ones: its far end stops, or its certificate
    /// was renewed. `None` for a socket of its own.
    #[must_use]
    pub fn retired(&self) -> Option<CancellationToken> {
        self.carrier.retired()
    }

    /// Has the kernel look after a peer that is silent (tcp(7), `SO_KEEPALIVE`). A tunnel has its own
    /// ways, and is not touched.
    pub fn keep_alive(&self, keepalive: &Keepalive) {
        let Some(stream) = self.carrier.socket() else { return };
        let mut settings = socket2::TcpKeepalive::new();
        if let Some(time) = keepalive.time {
            settings = settings.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            settings = settings.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            settings = settings.with_retries(probes);
        }
        if let Err(error) = socket2::SockRef::from(stream).set_tcp_keepalive(&settings) {
            tracing::debug!(%error, "keep-alive not set");
        }
    }

    /// Ends the stream so that the far side sees a reset.
    pub fn reset(self) {
        self.carrier.reset();
    }
}

// === impl Carrier ===

impl Carrier {
    fn retired(&self) -> Option<CancellationToken> {
        match self {
            Self::Tcp(_) => None,
            Self::Tunnel(stream) => Some(stream.retired()),
            Self::Tls(tls) => tls.carrier().retired(),
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Tunnel(_) => None,
            Self::Tls(tls) => tls.carrier().socket(),
        }
    }

    fn reset(self) {
        match self {
            Self::Tcp(stream) => reset_tcp(stream),
            Self::Tunnel(mut stream) => stream.reset(),
            Self::Tls(tls) => tls.into_carrier().reset(),
        }
    }
}

/// Closes a socket with a reset instead of an orderly end.
pub fn reset_tcp(stream: impl AsFd) {
    // Zero linger makes close(2) send RST (tcp(7), SO_LINGER); failure leaves an orderly close.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tunnel(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_read(cx, buf)
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.carrier.is_write_vectored()
    }
}
