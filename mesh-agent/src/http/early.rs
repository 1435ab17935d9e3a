//! Informational responses (1xx: early hints, processing) on their way from an endpoint to the
//! client, ahead of the final response.
//!
//! An endpoint's connection puts them into the queue of the request; the client's connection takes
//! them out. `101` is not one of them, and `100` is only when nobody waits for it (see `body::Gate`).
//! Source: RFC 9110 §15.2 (a proxy forwards them), RFC 8297.
//!
//! hyper's HTTP/1 server cannot write them. [`Outlet`] writes them below it: only while hyper has
//! flushed all that it had, so never in the middle of another message, and before the final
//! response, which waits until the queue is empty. From the same place it looks whether the client has
//! gone while hyper does not read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::request_body::Gate;
use super::{headers, strict};

/// Waiting ones per request; an endpoint that sends more, faster than they are taken, loses them.
const MOST: usize = 16;

/// Status and headers of an informational response.
pub(super) type Head = (StatusCode, HeaderMap);

/// Those of one request that the client has not got yet; clones are the same queue. `Send`, since
/// hyper wants it of what an endpoint's connection calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Early(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    heads: Mutex<VecDeque<Head>>,
    /// Wakes the client's connection.
    taker: AtomicWaker,
    /// Wakes the one who holds the final response back.
    drained: AtomicWaker,
    /// Whether the client's connection leaves it to us to say `100 Continue`.
    tells_continue: bool,
}

impl Early {
    /// Of an HTTP/2 stream.
    pub(super) fn of_stream() -> Self {
        Self(Arc::new(Queue { tells_continue: true, ..Queue::default() }))
    }

    fn heads(&self) -> MutexGuard<'_, VecDeque<Head>> {
        self.0.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An endpoint has sent one. `100` lets the body out that waits for it.
    pub(super) fn pass(&self, status: StatusCode, headers: &HeaderMap, gate: Option<&Gate>) {
        match gate {
            Some(gate) if status == StatusCode::CONTINUE => {
                gate.open();
                self.tell_continue();
            }
            _ => self.put(status, headers),
        }
    }

    /// The body may come. An HTTP/1 client is told by hyper, when the body is first read.
    pub(super) fn tell_continue(&self) {
        if self.0.tells_continue {
            self.put(StatusCode::CONTINUE, &HeaderMap::new());
        }
    }

    fn put(&self, status: StatusCode, headers: &HeaderMap) {
        let mut headers = headers.clone();
        headers::strip_hop_by_hop(&mut headers, false);
        strict::one_length(&mut headers, Some(status), false);
        let mut heads = self.heads();
        if heads.len() < MOST {
            heads.push_back((status, headers));
            drop(heads);
            self.0.taker.wake();
        }
    }

    /// The next one.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Head> {
        self.0.taker.register(cx.waker());
        let head = self.heads().pop_front();
        if head.is_none() {
            self.0.drained.wake();
        }
        head.map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until all have been taken.
    pub(super) async fn drained(&self) {
        poll_fn(|cx| {
            self.0.drained.register(cx.waker());
            if self.heads().is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// The queue of an HTTP/1 connection's request in flight, of which there is never more than one. A
/// new one for each: what comes late for a request that was given up is not the next one's.
#[derive(Clone, Debug, Default)]
pub(super) struct Current(Rc<RefCell<Early>>);

impl Current {
    /// The queue of the next request.
    pub(super) fn next(&self) -> Early {
        let early = Early::default();
        *self.0.borrow_mut() = early.clone();
        early
    }
}

/// An HTTP/1 client's connection, with the informational responses of its request.
#[derive(Debug)]
pub(super) struct Outlet<S> {
    io: S,
    current: Current,
    /// One that is being written.
    text: BytesMut,
    /// hyper has written since it last flushed: it may be within a message.
    within: bool,
    /// What was found while hyper does not read.
    ahead: Ahead,
    /// Cancelled when the client is found to have gone.
    gone: CancellationToken,
}

/// What the client has sent beyond what hyper has asked for.
#[derive(Clone, Copy, Debug)]
enum Ahead {
    /// hyper reads itself, and learns of an end by that.
    Hyper,
    Nothing,
    Byte(u8),
    End,
}

impl<S> Outlet<S> {
    pub(super) fn new(io: S, current: Current, gone: CancellationToken) -> Self {
        let (text, ahead) = (BytesMut::new(), Ahead::Hyper);
        Self { io, current, text, within: false, ahead, gone }
    }

    /// The connection, and a byte of it that hyper has not got.
    pub(super) fn into_parts(self) -> (S, Option<u8>) {
        let byte = match self.ahead {
            Ahead::Byte(byte) => Some(byte),
            Ahead::Hyper | Ahead::Nothing | Ahead::End => None,
        };
        (self.io, byte)
    }
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Writes what waits, unless hyper is within a message.
    fn poll_early(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.text.is_empty() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.text))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.text.advance(written);
            }
            if self.within {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready((status, headers)) = self.current.0.borrow().poll_take(cx) else {
                return Poll::Ready(Ok(()));
            };
            encode(&mut self.text, status, &headers);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outlet<S> {
    /// Before hyper writes: nothing goes to a client that has gone, however fast the answer was.
    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.within {
            self.look(cx);
            if matches!(self.ahead, Ahead::End) {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        ready!(self.poll_early(cx))?;
        self.within = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> Outlet<S> {
    /// Looks whether the client has gone while its request is under way. hyper could, too, but would
    /// take a new buffer of 8 KiB for it with each request, as the old one is held by the head.
    fn look(&mut self, cx: &mut Context<'_>) {
        if !matches!(self.ahead, Ahead::Nothing) {
            return;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, &mut buf) else { return };
        self.ahead = match (read, buf.filled()) {
            // The next request: what comes after it is seen when hyper has taken it.
            (Ok(()), &[byte]) => Ahead::Byte(byte),
            _ => {
                self.gone.cancel();
                Ahead::End
            }
        };
    }
}

fn encode(text: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    text.put_slice(b"HTTP/1.1 ");
    text.put_slice(status.as_str().as_bytes());
    text.put_slice(b" ");
    text.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    text.put_slice(b"\r\n");
    for (name, value) in headers {
        text.put_slice(name.as_str().as_bytes());
        text.put_slice(b": ");
        text.put_slice(value.as_bytes());
        text.put_slice(b"\r\n");
    }
    text.put_slice(b"\r\n");
}

impl<S: AsyncRead + Unpin> AsyncRead for Outlet<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ahead = std::mem::replace(&mut self.ahead, Ahead::Nothing);
        match ahead {
            Ahead::Byte(byte) => buf.put_slice(&[byte]),
            Ahead::End => {
                self.ahead = Ahead::End;
                return Poll::Ready(Ok(()));
            }
            Ahead::Hyper | Ahead::Nothing => {}
        }
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if matches!(ahead, Ahead::Byte(_)) && read.is_pending() {
            return Poll::Ready(Ok(()));
        }
        // It waits, or has come to the end, and knows.
        if buf.filled().is_empty() {
            self.ahead = Ahead::Hyper;
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Outlet<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_begin(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_begin(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes us only once its own buffer is empty.
        self.within = false;
        ready!(self.poll_early(cx))?;
        self.look(cx);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_written_as_http1() {
        let mut headers = HeaderMap::new();
        headers.append("link", "</a.css>; rel=preload".parse().unwrap());
        headers.append("link", "</b.js>; rel=preload".parse().unwrap());
        let mut text = BytesMut::new();
        encode(&mut text, StatusCode::EARLY_HINTS, &headers);
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\
                        link: </b.js>; rel=preload\r\n\r\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_flood_is_bounded() {
        let early = Early::default();
        for _ in 0..1000 {
            early.put(StatusCode::PROCESSING, &HeaderMap::new());
        }
        assert_eq!(early.heads().len(), MOST);
    }
}
