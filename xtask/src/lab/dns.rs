//! The cluster's name server: UDP and TCP on every node, at the same virtual address.
//!
//! Sockets are made inside the node's namespace; the threads that serve them live in the lab's own
//! process and end with it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use super::topology::Node;
use super::zone::Zone;
use super::{Lab, host};

const PORT: u16 = 53;
/// How long a thread that should end may go on waiting.
const PATIENCE: Duration = Duration::from_millis(200);
/// Longest query over UDP: what EDNS clients announce as a rule.
const MAX_QUERY: usize = 4096;

/// Threads that answer. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Resolvers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Resolvers {
    /// Starts to answer from `zone` at `address` on every node.
    pub(super) fn start(
        nodes: &[Node],
        address: Ipv4Addr,
        zone: &Arc<RwLock<Zone>>,
    ) -> anyhow::Result<Self> {
        let mut resolvers = Self { stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        for node in nodes {
            let (udp, tcp) = host::within(&host::netns_path(&node.netns), || {
                let udp = UdpSocket::bind((address, PORT)).context("bind UDP port 53")?;
                let tcp = TcpListener::bind((address, PORT)).context("bind TCP port 53")?;
                udp.set_read_timeout(Some(PATIENCE))?;
                tcp.set_nonblocking(true)?;
                Ok((udp, tcp))
            })?;
            let (zone_udp, stop_udp) = (Arc::clone(zone), Arc::clone(&resolvers.stop));
            resolvers.spawn("lab-dns-udp", move || serve_udp(&udp, &zone_udp, &stop_udp))?;
            let (zone_tcp, stop_tcp) = (Arc::clone(zone), Arc::clone(&resolvers.stop));
            resolvers.spawn("lab-dns-tcp", move || serve_tcp(&tcp, &zone_tcp, &stop_tcp))?;
        }
        Ok(resolvers)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

impl Lab {
    /// Has the cluster's name server answer for a name outside the cluster, from now on with these
    /// addresses; with none, the name has none.
    ///
    /// # Errors
    /// The lab is broken.
    pub fn set_name(&self, name: &str, ips: &[IpAddr]) -> anyhow::Result<()> {
        let mut state = self.shared.lock();
        state.names.insert(name.to_lowercase(), ips.to_vec());
        state.sync(&self.shared)
    }
}

fn serve_udp(socket: &UdpSocket, zone: &RwLock<Zone>, stop: &AtomicBool) {
    let mut query = [0; MAX_QUERY];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
        let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = query.get(..length).and_then(|query| zone.answer(query, true)) {
            // A client that went away asks no more.
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, zone: &RwLock<Zone>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // One client at a time: it has PATIENCE for its query.
            Ok((mut client, _)) => {
                let _ = answer_tcp(&mut client, zone);
            }
            Err(_) => std::thread::park_timeout(PATIENCE / 10),
        }
    }
}

/// One query and its answer, each after two bytes of length (RFC 1035 4.2.2).
fn answer_tcp(client: &mut TcpStream, zone: &RwLock<Zone>) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut length = [0; 2];
    client.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
    client.read_exact(&mut query)?;
    let answer = zone.read().unwrap_or_else(PoisonError::into_inner).answer(&query, false);
    let Some(answer) = answer else { return Ok(()) };
    let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
    client.write_all(&[length.to_be_bytes().as_slice(), &answer].concat())
}
