//! Direct services: among whom `connect` draws, what the kernel reports of such connections, and
//! their end before their time.
//!
//! A direct connection goes from one pod of the node to another past the agent. The invariant: a
//! slot that `connect` may draw holds an endpoint, so slots are written before the service that
//! counts them, and go after it.
#![allow(unsafe_code, reason = "tokio takes the ring's descriptor on trust")]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError, RingBuf};
use mesh_common::address::Ip;
use mesh_common::maps::{
    DirectService, FLOW_CLOSED, FLOW_OPENED, Flow, ServiceKey, SlotKey, Target,
};
use tokio::io::unix::AsyncFd;

use super::lock;

/// One service port, in one family, that clients of the node may reach past the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectPort {
    /// What they dial.
    pub service: SocketAddr,
    /// Number of endpoints in use, those of other nodes among them.
    pub endpoints: u32,
    /// Those that are pods of this node, in the mesh.
    pub local: Vec<SocketAddr>,
}

/// The kernel's table of direct services.
pub(super) struct Direct(Mutex<Tables>);

struct Tables {
    services: HashMap<MapData, ServiceKey, DirectService>,
    slots: HashMap<MapData, SlotKey, Target>,
    /// What is in both.
    written: BTreeMap<SocketAddr, DirectPort>,
}

impl Direct {
    pub(super) fn new(
        services: HashMap<MapData, ServiceKey, DirectService>,
        slots: HashMap<MapData, SlotKey, Target>,
    ) -> Self {
        Self(Mutex::new(Tables { services, slots, written: BTreeMap::new() }))
    }

    /// Makes these the direct services, and no others.
    pub(super) fn set(&self, ports: Vec<DirectPort>) -> Result<(), MapError> {
        let mut tables = lock(&self.0);
        let wanted: BTreeMap<_, _> = ports.into_iter().map(|port| (port.service, port)).collect();
        let stale: Vec<SocketAddr> =
            tables.written.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for service in stale {
            tables.remove(service)?;
        }
        wanted.into_values().try_for_each(|port| tables.put(port))
    }
}

impl Tables {
    fn remove(&mut self, service: SocketAddr) -> Result<(), MapError> {
        let key = service_key(service);
        let Some(port) = self.written.get(&service) else { return Ok(()) };
        self.services.remove(&key)?;
        for slot in slots(port) {
            self.slots.remove(&SlotKey { service: key, slot })?;
        }
        self.written.remove(&service);
        Ok(())
    }

    fn put(&mut self, port: DirectPort) -> Result<(), MapError> {
        let before = self.written.get(&port.service);
        if before == Some(&port) {
            return Ok(());
        }
        let service = service_key(port.service);
        let surplus = slots(&port).end..before.map_or(0, |before| slots(before).end);
        for (slot, to) in slots(&port).zip(&port.local) {
            let target = Target { ip: Ip::from(to.ip()), port: to.port().into() };
            self.slots.insert(SlotKey { service, slot }, target, 0)?;
        }
        let local = slots(&port).end;
        self.services.insert(service, DirectService { endpoints: port.endpoints, local }, 0)?;
        for slot in surplus {
            self.slots.remove(&SlotKey { service, slot })?;
        }
        self.written.insert(port.service, port);
        Ok(())
    }
}

fn slots(port: &DirectPort) -> std::ops::Range<u32> {
    0..u32::try_from(port.local.len()).unwrap_or(u32::MAX)
}

fn service_key(service: SocketAddr) -> ServiceKey {
    ServiceKey { ip: service.ip().into(), port: service.port().into() }
}

/// A report of the kernel's about a direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlow {
    /// The client.
    pub client: SocketAddr,
    /// What it dialled.
    pub service: SocketAddr,
    /// The application that it reached.
    pub endpoint: SocketAddr,
    /// What happened.
    pub event: DirectEvent,
}

/// What happened to a direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectEvent {
    /// It is established.
    Opened,
    /// It is over.
    Closed {
        /// Bytes that the client has sent.
        sent: u64,
        /// Bytes that the client has received.
        received: u64,
    },
}

/// The kernel's reports, in order. One reader per agent.
pub struct DirectFlows(AsyncFd<RingBuf<MapData>>);

impl DirectFlows {
    /// Call it within the runtime that reads.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring owns its descriptor, opened once, and closes it when it is dropped.
        let ring = unsafe { AsyncFd::register(ring) };
        ring.map(Self).map_err(Into::into)
    }

    /// Waits for the next report. May be dropped meanwhile: none is lost by that.
    ///
    /// # Errors
    /// The kernel's, then there will be no more.
    pub async fn next(&mut self) -> io::Result<DirectFlow> {
        loop {
            let mut ring = self.0.readable_mut().await?;
            while let Some(item) = ring.get_inner_mut().next() {
                if let Some(flow) = parse(&item) {
                    return Ok(flow);
                }
            }
            ring.clear_ready();
        }
    }
}

/// Reads a [`Flow`] as the kernel program lays it out.
fn parse(bytes: &[u8]) -> Option<DirectFlow> {
    let bytes: &[u8; size_of::<Flow>()] = bytes.try_into().ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    let (sent, received) = (u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1]));
    let (words, _) = bytes[16..64].as_chunks::<4>();
    let ip = |at: usize| Ip(std::array::from_fn(|word| u32::from_ne_bytes(words[at + word])));
    let (ports, _) = bytes[64..].as_chunks::<2>();
    let [client, service, endpoint, kind] = std::array::from_fn(|at| u16::from_ne_bytes(ports[at]));
    let event = match kind {
        FLOW_OPENED => DirectEvent::Opened,
        FLOW_CLOSED => DirectEvent::Closed { sent, received },
        _ => return None,
    };
    let address = |at, port| SocketAddr::new(ip(at).into(), port);
    Some(DirectFlow {
        client: address(0, client),
        service: address(4, service),
        endpoint: address(8, endpoint),
        event,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_as_the_kernel_writes_them() {
        let mut bytes = [7_u64.to_ne_bytes(), 10_u64.to_ne_bytes()].concat();
        for address in ["10.1.0.5", "10.96.0.1", "10.1.0.9"] {
            let ip = Ip::from(address.parse::<std::net::Ipv4Addr>().unwrap());
            bytes.extend(ip.0.iter().flat_map(|word| word.to_ne_bytes()));
        }
        bytes.extend([40_000, 5432, 5433, FLOW_CLOSED].iter().flat_map(|n: &u16| n.to_ne_bytes()));
        let flow = parse(&bytes).unwrap();
        assert_eq!(
            [flow.client, flow.service, flow.endpoint].map(|address| address.to_string()),
            ["10.1.0.5:40000", "10.96.0.1:5432", "10.1.0.9:5433"]
        );
        assert_eq!(flow.event, DirectEvent::Closed { sent: 7, received: 10 });
        assert_eq!(parse(&bytes[1..]), None);
        bytes[70..].copy_from_slice(&9_u16.to_ne_bytes());
        assert_eq!(parse(&bytes), None, "an event of another version");
    }
}
