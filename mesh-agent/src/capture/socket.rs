//! Sockets of the agent's in a pod's network namespace, and what is asked of them by descriptor.
//!
//! Listeners and connections alike are made inside, and then served from anywhere. It knows no
//! maps: marks are set by `dial`. The invariant: every socket is non-blocking and closed on exec.
#![allow(unsafe_code, reason = "SO_NETNS_COOKIE has no safe wrapper; registering a descriptor")]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::network;

/// Connections that may wait for `accept`; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live variables, and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// A listener on all addresses of one family, shared with an agent that takes over.
pub(super) fn listener(domain: Domain, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    let any: IpAddr = if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
        std::net::Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    // Accepted sockets inherit it, one system call less for each.
    socket.set_tcp_nodelay(true)?;
    // Urgent data stays in the stream, as RFC 6093 wants of everybody: else its octet is lost.
    socket.set_out_of_band_inline(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(any, port)))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A listener that leaves what it accepts unregistered, since another thread may serve it.
#[derive(Debug)]
pub struct Acceptor(AsyncFd<TcpListener>);

impl Acceptor {
    /// Waits for connections of `listener` on this thread's runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: a `TcpListener` owns its descriptor, open for as long as it lives, and always
        // gives the same one.
        let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// The next connection, non-blocking. Safe to cancel.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }

    /// Those that wait already, at most a full queue of them.
    pub fn waiting(&self) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
        // An error is an empty queue, or one that cannot be read any more.
        std::iter::from_fn(|| accept(self.0.get_ref()).ok()).take(BACKLOG as usize)
    }
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok((stream, peer))
}

/// A socket that is about to connect.
pub(super) fn stream(destination: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(destination);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    Ok(socket)
}

/// A socket that is about to connect with an address that is not of its namespace.
pub(super) fn stream_from(source: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
    let socket = stream(destination)?;
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    // Keeps the connection on `lo`, see `network`.
    socket.set_mark(network::MARK)?;
    // One source port serves many destinations; the kernel compares all four numbers.
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(source))?;
    Ok(socket)
}
