//! What users of the tunnel hold: one CONNECT stream as an asynchronous byte stream.
//!
//! Shutdown is END_STREAM and leaves reading open. A peer's RST_STREAM is `ConnectionReset`.
//! Dropping a stream that has not been shut down resets it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::TunnelError;
use super::connection::SharedRef;
use super::wire::{Reason, StreamId};

/// One stream through a tunnel.
pub struct TunnelStream {
    shared: SharedRef,
    id: StreamId,
}

// === impl TunnelStream ===

impl TunnelStream {
    pub(super) fn new(shared: SharedRef, id: StreamId) -> Self {
        Self { shared, id }
    }

    /// Cancelled when the connection takes no further streams; this one goes on.
    #[must_use]
    pub fn retired(&self) -> CancellationToken {
        self.shared.borrow().retired.clone()
    }

    /// Ends both directions at once, as a TCP reset does; what was not sent is dropped.
    pub fn reset(&mut self) {
        let mut shared = self.shared.borrow_mut();
        // RFC 9113 section 8.5: the code for a TCP connection that was reset.
        shared.wire.reset(self.id, Reason::CONNECT_ERROR);
        shared.wake_driver();
    }

    /// Reads without a copy: up to `max` octets in one piece, empty at the peer's END_STREAM.
    ///
    /// # Errors
    /// `ConnectionReset` if the stream or its connection was reset.
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<io::Result<Bytes>> {
        let mut shared = self.shared.borrow_mut();
        let polled = shared.wire.read_bytes(self.id, max);
        match &polled {
            Poll::Ready(Ok(_)) => shared.wake_driver(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if let Some(waiter) = shared.waiters.get_mut(&self.id) {
                    wait(&mut waiter.read, cx);
                }
            }
        }
        polled.map_err(to_io)
    }

    /// Writes without a copy: takes what there is room for off `octets`.
    ///
    /// # Errors
    /// `ConnectionReset` as above; `BrokenPipe` after shutdown.
    pub fn poll_write_bytes(
        &mut self,
        cx: &mut Context<'_>,
        octets: &mut Bytes,
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |wire, id| wire.write_bytes(id, octets))
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut super::wire::Wire, StreamId) -> Poll<Result<usize, Reason>>,
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        let polled = write(&mut shared.wire, self.id);
        match &polled {
            Poll::Ready(Ok(_)) => shared.wake_driver(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if let Some(waiter) = shared.waiters.get_mut(&self.id) {
                    wait(&mut waiter.write, cx);
                }
            }
        }
        polled.map_err(to_io)
    }

    /// Client: waits for the far end's answer.
    pub(super) async fn answered(self) -> Result<Self, TunnelError> {
        let status = std::future::poll_fn(|cx| self.poll_answer(cx)).await?;
        if (200..300).contains(&status) { Ok(self) } else { Err(TunnelError::Refused(status)) }
    }

    fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Result<u16, TunnelError>> {
        let mut shared = self.shared.borrow_mut();
        let Some(waiter) = shared.waiters.get_mut(&self.id) else {
            return Poll::Ready(Err(TunnelError::Closed(shared.end())));
        };
        if let Some(status) = waiter.status {
            return Poll::Ready(Ok(status));
        }
        wait(&mut waiter.read, cx);
        match shared.wire.stream_reset(self.id) {
            None => Poll::Pending,
            Some(_) if shared.wire.failure().is_some() => {
                Poll::Ready(Err(TunnelError::Closed(shared.end())))
            }
            Some(reason) => Poll::Ready(Err(TunnelError::Reset(reason))),
        }
    }

    /// Server: answers, with END_STREAM for a refusal.
    pub(super) fn respond(&mut self, status: u16, end: bool) {
        let mut shared = self.shared.borrow_mut();
        shared.wire.respond(self.id, status, end);
        shared.wake_driver();
    }
}

impl std::fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TunnelStream").field(&self.id.number()).finish()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            match this.poll_read_bytes(cx, buffer.remaining()) {
                Poll::Ready(Ok(octets)) if octets.is_empty() => break,
                Poll::Ready(Ok(octets)) => buffer.put_slice(&octets),
                // What was read before an error or a pause is handed over first.
                _ if buffer.filled().len() > before => break,
                other => return Poll::Ready(ready!(other).map(|_| ())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |wire, id| wire.write(id, octets))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |wire, id| {
            let mut written = 0;
            for slice in slices.iter().filter(|slice| !slice.is_empty()) {
                match wire.write(id, slice) {
                    Poll::Ready(Ok(taken)) => written += taken,
                    _ if written > 0 => break,
                    other => return other,
                }
            }
            Poll::Ready(Ok(written))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: what was written leaves by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.shared.borrow_mut();
        shared.wire.finish(self.id);
        shared.wake_driver();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.waiters.remove(&self.id);
        shared.wire.release(self.id);
        shared.wake_driver();
    }
}

fn wait(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

fn to_io(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::STREAM_CLOSED => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, format!("tunnel stream ended: {reason}"))
}
