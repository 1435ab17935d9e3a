//! A byte stream in TLS.
//!
//! Invariant: of HTTP the end of a stream without `close_notify` is an error, as a body could have been
//! cut short (RFC 8446 section 6.1). Of opaque bytes it is an end, as Envoy takes it: many servers just
//! close, and what the bytes mean is their ends' to say.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::model::Alpn;

/// A stream that has shaken hands.
#[derive(Debug)]
pub struct TlsIo<S> {
    stream: TlsStream<S>,
    is_opaque: bool,
}

impl<S> TlsIo<S> {
    pub(super) fn new(stream: TlsStream<S>, alpn: Alpn) -> Self {
        Self { stream, is_opaque: alpn == Alpn::None }
    }

    /// What carries it.
    pub fn carrier(&self) -> &S {
        self.stream.get_ref().0
    }

    /// What carries it; the session ends without a word.
    pub fn into_carrier(self) -> S {
        self.stream.into_inner().0
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_opaque = self.is_opaque;
        Pin::new(&mut self.stream).poll_read(cx, buf).map(|read| match read {
            Err(error) if is_opaque && error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            read => read,
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
