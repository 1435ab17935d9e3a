//! The agent's own connections: out of a pod into the world, and into a pod's application.
//!
//! Both are made in the pod's network namespace, so that its routes, its network policy and its
//! address count. Neither is captured again (BYPASS). The way in is announced to the kernel
//! before the SYN (ADMIT); the kernel takes the announcement out when the socket closes. The
//! invariant: a dial whose announcement fails sends no SYN, or it would end in the agent itself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use mesh_common::address::Ip;
use mesh_common::maps::{ADMIT, ADMITTED_AGENT, ADMITTED_DIRECT, AdmitKey, BYPASS, Mark};
use socket2::Socket;
use tokio::net::{TcpSocket, TcpStream};

use super::netns::PodNet;
use super::{lock, socket};

/// Source ports for borrowed addresses: those that Linux does not draw by default
/// (`net.ipv4.ip_local_port_range` is 32768 to 60999), since the client itself may be about to
/// use one of its own.
const LOW_PORTS: std::ops::RangeInclusive<u16> = 1024..=32_767;
const HIGH_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;
const PORTS: u32 = LOW_PORT_COUNT + (*HIGH_PORTS.end() - *HIGH_PORTS.start() + 1) as u32;
const LOW_PORT_COUNT: u32 = (*LOW_PORTS.end() - *LOW_PORTS.start() + 1) as u32;

/// Ports tried for one dial. Each taken one costs about 20 microseconds; when so many in a row
/// are taken, the client has tens of thousands of connections to this port of the pod.
const MAX_ATTEMPTS: u32 = 256;

const BPF_NOEXIST: u64 = 1;

/// What dialling needs of the kernel maps.
pub(super) struct Dialer {
    marks: Mutex<SkStorage<MapData, Mark>>,
    admitted: Mutex<HashMap<MapData, AdmitKey, u8>>,
    next_port: AtomicU32,
}

impl Dialer {
    pub(super) fn new(
        marks: SkStorage<MapData, Mark>,
        admitted: HashMap<MapData, AdmitKey, u8>,
    ) -> Self {
        // An agent that takes over should not start where the other one did.
        let start = std::process::id().wrapping_mul(7919);
        Self {
            marks: Mutex::new(marks),
            admitted: Mutex::new(admitted),
            next_port: AtomicU32::new(start),
        }
    }

    /// Connects from a pod to anywhere.
    pub(super) async fn out_of_pod(
        &self,
        net: &PodNet,
        destination: SocketAddr,
        timeout: Duration,
    ) -> io::Result<TcpStream> {
        let socket = net.within(|| socket::stream(destination))??;
        self.mark(&socket, BYPASS)?;
        connect(socket, destination, timeout).await
    }

    /// Connects to a pod's application with the client's address.
    pub(super) async fn to_pod(
        &self,
        net: &PodNet,
        client: IpAddr,
        destination: SocketAddr,
        timeout: Duration,
    ) -> io::Result<TcpStream> {
        let deadline = tokio::time::Instant::now() + timeout;
        for _ in 0..MAX_ATTEMPTS {
            let source = SocketAddr::new(client, self.draw_port());
            let socket = match net.within(|| socket::stream_from(source, destination))? {
                Err(error) if is_taken(&error) => continue,
                other => other?,
            };
            self.mark(&socket, BYPASS | ADMIT)?;
            let key = admit_key(source, destination);
            if !self.announce(&key)? {
                continue;
            }
            let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
            match connect(socket, destination, rest).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    // If it got as far as the SYN the kernel has done so already. Nobody else
                    // has announced the same numbers since: the port's turn comes much later.
                    self.take_back(&key);
                    if !is_taken(&error) {
                        return Err(error);
                    }
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no free source port for the client"))
    }

    fn draw_port(&self) -> u16 {
        port_at(self.next_port.fetch_add(1, Ordering::Relaxed))
    }

    fn mark(&self, socket: &Socket, flags: u32) -> io::Result<()> {
        let mark = Mark { flags, reserved: 0 };
        lock(&self.marks).insert(&socket.as_raw_fd(), mark, 0).map_err(io::Error::other)
    }

    /// `false` if another connection has the same four numbers.
    fn announce(&self, key: &AdmitKey) -> io::Result<bool> {
        match lock(&self.admitted).insert(key, ADMITTED_AGENT, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn take_back(&self, key: &AdmitKey) {
        // Absent if the kernel was first.
        let _ = lock(&self.admitted).remove(key);
    }

    /// Client and endpoint of connections that the kernel has announced by itself.
    pub(super) fn admitted_directly(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let address = |ip: Ip, port| SocketAddr::new(ip.into(), port);
        lock(&self.admitted)
            .iter()
            .flatten()
            .filter(|(_, by)| *by == ADMITTED_DIRECT)
            .map(|(key, _)| {
                (
                    address(key.source, key.source_port),
                    address(key.destination, key.destination_port),
                )
            })
            .collect()
    }

    /// Number of announced connections, by walking the map: for status and tests.
    pub(super) fn admitted(&self) -> usize {
        lock(&self.admitted).keys().count()
    }
}

const fn port_at(n: u32) -> u16 {
    let n = n % PORTS;
    if n < LOW_PORT_COUNT {
        *LOW_PORTS.start() + n as u16
    } else {
        *HIGH_PORTS.start() + (n - LOW_PORT_COUNT) as u16
    }
}

fn admit_key(source: SocketAddr, destination: SocketAddr) -> AdmitKey {
    AdmitKey {
        source: source.ip().into(),
        destination: destination.ip().into(),
        source_port: source.port(),
        destination_port: destination.port(),
    }
}

/// Taken by one of ours (bind), by a connection that is not quite over (connect), or by the
/// client itself (the connect program).
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

async fn connect(
    socket: Socket,
    destination: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(timeout, socket.connect(destination))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_its_turn_and_none_is_the_clients() {
        let drawn: std::collections::BTreeSet<u16> = (0..PORTS).map(port_at).collect();
        assert_eq!(drawn.len(), PORTS as usize);
        assert!(drawn.iter().all(|port| !(32_768..61_000).contains(port) && *port >= 1024));
        assert_eq!(port_at(PORTS), port_at(0));
    }
}
