//! Copies bytes both ways between an application's socket and its upstream.
//!
//! Half-close passes through in each direction, a reset arrives as a reset, and a reader that does
//! not read stops the far writer. Nothing is buffered while nothing flows: the scratch buffer
//! belongs to the worker, and only what a write did not take is kept, out of the pod's memory if it
//! is more than [`SMALL_READ`].

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::{PageBuffer, Permit, Quota};

/// Bytes per read. Large enough that a bulk stream makes few system calls; one per worker.
const SCRATCH: usize = 64 * 1024;

/// Bytes per read while the pod's memory has no room for what a write may not take of more.
const SMALL_READ: usize = 16 * 1024;

/// Reads in a row before other tasks of the worker get a turn.
const BURST: usize = 16;

thread_local! {
    static BUFFER: RefCell<PageBuffer> = RefCell::new(PageBuffer::new(SCRATCH));
}

/// Bytes that passed, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Transferred {
    /// From the connection's client to the upstream.
    pub(super) sent: u64,
    /// From the upstream to the client.
    pub(super) received: u64,
}

/// Which side ended a copy abnormally, and how.
#[derive(Debug)]
pub(super) enum Broken {
    /// The client's side failed: tell the upstream.
    Client,
    /// The upstream's side failed: tell the client.
    Upstream,
}

/// Copies until both directions ended. What waits comes out of the memory of `quota`'s pod;
/// `progress` hears of bytes as they pass (sent, received).
///
/// # Errors
/// The side that failed. The caller resets the other one.
pub(super) async fn bidirectional<C, U>(
    client: &mut C,
    upstream: &mut U,
    first: &[u8],
    quota: &Arc<Quota>,
    progress: impl Fn(u64, u64),
) -> (Transferred, Result<(), Broken>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = Half { pending: first.to_vec(), ..Half::default() };
    let mut back = Half::default();
    let result = poll_fn(|cx| {
        let before = (forth.total, back.total);
        let there = forth.poll(cx, client, upstream, quota).map_err(|failed| match failed {
            Failed::Read => Broken::Client,
            Failed::Write => Broken::Upstream,
        });
        let here = match &there {
            Poll::Ready(Err(_)) => Poll::Pending,
            _ => back.poll(cx, upstream, client, quota).map_err(|failed| match failed {
                Failed::Read => Broken::Upstream,
                Failed::Write => Broken::Client,
            }),
        };
        if before != (forth.total, back.total) {
            progress(forth.total - before.0, back.total - before.1);
        }
        match (there, here) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    (Transferred { sent: forth.total, received: back.total }, result)
}

enum Failed {
    Read,
    Write,
}

/// One direction.
#[derive(Default)]
struct Half {
    /// What the last write did not take.
    pending: Vec<u8>,
    /// How much of `pending` is written.
    written: usize,
    /// The reader saw the end.
    ended: bool,
    /// The end was passed on.
    closed: bool,
    /// Bytes passed on.
    total: u64,
    /// Set aside for `pending`.
    room: Option<Permit>,
}

impl Half {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        quota: &Arc<Quota>,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..BURST {
            ready!(self.flush_pending(cx, to)).map_err(|_| Failed::Write)?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Failed::Write)?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            match self.transfer(cx, from, to, quota) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // What was written so far must not wait for the next byte to be read.
                    let _ = Pin::new(&mut *to).poll_flush(cx).map_err(|_| Failed::Write)?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn flush_pending<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            let taken = ready!(Pin::new(&mut *to).poll_write(cx, rest))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += taken;
            self.total += taken as u64;
        }
        if self.written > 0 {
            self.pending = Vec::new();
            self.written = 0;
            self.room = None;
        }
        Poll::Ready(Ok(()))
    }

    /// One read and one write through the worker's buffer.
    fn transfer<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        quota: &Arc<Quota>,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|scratch| {
            let size = if quota.has_room(SCRATCH) { SCRATCH } else { SMALL_READ };
            let mut buffer = ReadBuf::new(&mut scratch.octets()[..size]);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(|_| Failed::Read)?;
            let filled = buffer.filled();
            if filled.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let taken = match Pin::new(to).poll_write(cx, filled) {
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Write)),
                Poll::Pending => 0,
            };
            self.total += taken as u64;
            if taken < filled.len() {
                self.pending = filled[taken..].to_vec();
                if self.pending.len() > SMALL_READ {
                    self.room = quota.room(self.pending.len());
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::tunnel::{Budget, Usage};

    #[tokio::test]
    async fn half_close_passes_each_way() {
        let (mut client, mut client_far) = duplex(1000);
        let (mut server, mut server_far) = duplex(1000);
        let quota = Quota::unlimited();
        let copy = async {
            bidirectional(&mut client_far, &mut server_far, b"first ", &quota, |_, _| {}).await
        };
        let ends = async {
            client.write_all(b"request").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"first request");
            server.write_all(b"late answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"late answer");
        };
        let ((moved, result), ()) = tokio::join!(copy, ends);
        assert!(result.is_ok());
        assert_eq!(moved, Transferred { sent: 13, received: 11 });
    }

    #[tokio::test]
    async fn a_reader_that_stops_holds_the_writer() {
        let (mut client, mut client_far) = duplex(1000);
        let (server, mut server_far) = duplex(1000);
        let quota = Quota::unlimited();
        let copy = bidirectional(&mut client_far, &mut server_far, b"", &quota, |_, _| {});
        let mut sent = 0_usize;
        let write = async {
            loop {
                sent += client.write(&[7; 500]).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            _ = copy => unreachable!("nobody closes"),
            () = write => unreachable!("nobody reads"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        assert!(sent < 10_000, "{sent} bytes were taken from a writer whose reader does not read");
        drop(server);
    }

    /// Bytes that a copy takes from a writer whose reader does not read, and what its pod has set
    /// aside meanwhile.
    async fn taken(quota: &Arc<Quota>) -> (usize, usize) {
        let (mut client, mut client_far) = duplex(1 << 20);
        let (_server, mut server_far) = duplex(1);
        client.write_all(&[7; 1 << 20]).await.unwrap();
        let copy = bidirectional(&mut client_far, &mut server_far, b"", quota, |_, _| {});
        let mut copy = Box::pin(copy);
        assert!(futures_util::poll!(&mut copy).is_pending());
        let held = quota.held().memory;
        drop(copy);
        let mut rest = Vec::new();
        drop(client);
        client_far.read_to_end(&mut rest).await.unwrap();
        ((1 << 20) - rest.len(), held)
    }

    #[tokio::test]
    async fn what_waits_comes_out_of_the_pods_memory() {
        let budget = Budget::new(Usage { memory: 1 << 20, ..Usage::default() });
        let quota = Quota::new("p".into(), budget, 100);
        assert_eq!(taken(&quota).await, (SCRATCH, SCRATCH - 1));
        assert_eq!(quota.held().memory, 0);
        let all = (1 << 20) / 3 * 2;
        let _all = quota.room(all).unwrap();
        assert_eq!(taken(&quota).await, (SMALL_READ, all), "makes do with less");
    }
}
