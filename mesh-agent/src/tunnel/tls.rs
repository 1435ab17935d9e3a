//! One socket and rustls' buffered connection, used directly.
//!
//! Reads are large and go into memory that the worker's connections share; one read holds many
//! records. Writes are vectored over all the records that wait. tokio-rustls would read and
//! write about once per record (PERFORMANCE.md, section 9).
//!
//! Invariant: plaintext that was decrypted is handed on before more is fed, so rustls holds at
//! most one record of it; at most [`WRITE_BATCH`] of plaintext waits as ciphertext.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::page::PageBuffer;
use super::wire::{Batch, Wire};

/// Octets of one read from the socket. 64 KiB costs a third more, 512 KiB gains little.
const READ_SIZE: usize = 256 * 1024;

/// Plaintext that is handed to TLS at once, about 16 records.
pub(super) const WRITE_BATCH: usize = 256 * 1024;

/// The same while the pod's memory has no room for a batch that the socket does not take.
const SMALL_WRITE_BATCH: usize = 32 * 1024;

/// What the connections of one worker share, as only one of them runs at a time.
struct Scratch {
    memory: PageBuffer,
    batch: Batch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { memory: PageBuffer::new(READ_SIZE), batch: Batch::default() });
}

/// A socket with TLS on it.
pub(super) struct TlsSocket {
    pub(super) socket: TcpStream,
    pub(super) tls: Connection,
}

impl TlsSocket {
    pub(super) fn new(socket: TcpStream, mut tls: Connection) -> io::Result<Self> {
        // What is written is whole batches; Nagle's algorithm would only hold their ends back.
        socket.set_nodelay(true)?;
        tls.set_buffer_limit(None);
        Ok(Self { socket, tls })
    }

    /// Runs the handshake to its end. Plaintext that comes with it goes to `wire`.
    pub(super) async fn handshake(&mut self, wire: &mut Wire) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            loop {
                let flushed = self.poll_flush(cx)?;
                if !self.tls.is_handshaking() && flushed.is_ready() {
                    return Poll::Ready(Ok(()));
                }
                if self.tls.is_handshaking() {
                    let read = ready!(self.poll_read(cx, |octets| {
                        // A failure is kept in `wire`, where the driver finds it.
                        let _ = wire.receive(octets, std::time::Duration::ZERO);
                    }))?;
                    if read == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                } else {
                    ready!(flushed);
                }
            }
        })
        .await
    }

    /// Reads once and hands on what it decrypts to. `Ok(0)` is the peer's end, orderly or not.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut plaintext: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch.memory.octets());
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer))?;
            let mut input = buffer.filled();
            let read = input.len();
            let mut closed = false;
            while !input.is_empty() && !closed {
                closed = self.feed(&mut input, &mut plaintext)?;
            }
            Poll::Ready(Ok(if closed { 0 } else { read }))
        })
    }

    /// Feeds up to 4 KiB, as much as rustls takes at once. True if the peer said close_notify.
    fn feed(&mut self, input: &mut &[u8], plaintext: &mut impl FnMut(&[u8])) -> io::Result<bool> {
        self.tls.read_tls(input as &mut dyn Read)?;
        let state = match self.tls.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // The alert tells the peer why; whether it leaves is not important any more.
                let _ = self.tls.write_tls(&mut TrySocket(&self.socket));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        if state.plaintext_bytes_to_read() > 0 {
            let mut reader = self.tls.reader();
            loop {
                let len = match reader.fill_buf() {
                    Ok([]) => break,
                    Ok(octets) => {
                        plaintext(octets);
                        octets.len()
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                reader.consume(len);
            }
        }
        Ok(state.peer_has_closed())
    }

    /// Moves a batch of what `wire` has to send into TLS.
    pub(super) fn encrypt(&mut self, wire: &mut Wire) -> io::Result<()> {
        let roomy = wire.quota().has_room(WRITE_BATCH);
        let budget = if roomy { WRITE_BATCH } else { SMALL_WRITE_BATCH };
        SCRATCH.with_borrow_mut(|scratch| {
            let batch = &mut scratch.batch;
            wire.transmit(budget, batch);
            let written = {
                let slices: Vec<IoSlice<'_>> = batch.slices().map(IoSlice::new).collect();
                self.tls.writer().write_vectored(&slices)
            };
            let len = batch.len();
            batch.clear();
            if written? == len {
                Ok(())
            } else {
                Err(io::Error::other("TLS took a part of a batch although it has no limit"))
            }
        })
    }

    /// Writes ciphertext until none waits.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        while self.tls.wants_write() {
            let mut socket = PollSocket { socket: &mut self.socket, cx };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Poll::Pending);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Poll::Ready(()))
    }
}

/// The socket as rustls wants it: pending is `WouldBlock`, with the task's waker registered.
struct PollSocket<'a, 'b> {
    socket: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn or_would_block(poll: Poll<io::Result<usize>>) -> io::Result<usize> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Write for PollSocket<'_, '_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write(self.cx, octets))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket without a task: for a last word.
struct TrySocket<'a>(&'a TcpStream);

impl Write for TrySocket<'_> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.try_write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
