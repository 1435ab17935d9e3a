//! Enrolment: what a pod's entry in each kernel map says, and in which order entries come and go.
//!
//! Everything here may be done again: an agent that starts anew enrolls the pods that it finds.
//! The invariant: a pod's connections are redirected only while there is somebody to take them,
//! so maps and listeners are complete before a program is attached, and go after it.

use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError, SockHash};
use ipnet::IpNet;
use mesh_common::address::Ip;
use mesh_common::maps::{self, Inbound, ListenerKey, Pod, PortKey, RangeData};
use mesh_common::ports;
use socket2::Domain;

use super::netns::PodNet;
use super::{CaptureError, loader, network, socket};

/// Captured connections of one pod that may wait for the agent at one time; more are refused, so
/// that one pod cannot fill the map for all.
const PENDING_LIMIT: u32 = 4096;

/// What of a pod's traffic is captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// The pod's addresses; the first of each family counts.
    pub ips: Vec<IpAddr>,
    /// Destination ports that connect as if the mesh were not there.
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations that connect as if the mesh were not there.
    pub exclude_outbound_ranges: Vec<IpNet>,
    /// Ports of the pod that are reached as if the mesh were not there.
    pub exclude_inbound_ports: Vec<u16>,
}

/// The agent's listeners in one pod: IPv4 and, if the pod has an IPv6 address, IPv6.
///
/// Non-blocking. Closing them ends the pod's service, so they go last.
#[derive(Debug, Default)]
pub struct PodListeners {
    /// Captured outbound connections, port 15001.
    pub outbound: Vec<TcpListener>,
    /// Inbound connections as they come, port 15006; their local address is what was dialled.
    pub plaintext: Vec<TcpListener>,
    /// Inbound tunnels, port 15008.
    pub tunnel: Vec<TcpListener>,
}

/// The maps that the agent writes at enrolment, and the program that it attaches.
pub(super) struct Tables {
    pub(super) ebpf: Ebpf,
    pub(super) pods: HashMap<MapData, u64, Pod>,
    pub(super) pending: HashMap<MapData, u64, i64>,
    pub(super) inbound: HashMap<MapData, Ip, Inbound>,
    pub(super) ports: HashMap<MapData, PortKey, u8>,
    pub(super) ranges: LpmTrie<MapData, RangeData, u8>,
    pub(super) listeners: SockHash<MapData, ListenerKey>,
}

/// The pod's address of each family.
fn addresses(ips: &[IpAddr]) -> (Option<IpAddr>, Option<IpAddr>) {
    (ips.iter().copied().find(IpAddr::is_ipv4), ips.iter().copied().find(IpAddr::is_ipv6))
}

/// Makes the namespace ready and the listeners in it.
pub(super) fn listen(net: &PodNet, settings: &PodSettings) -> Result<PodListeners, CaptureError> {
    let (v4, v6) = addresses(&settings.ips);
    if v4.or(v6).is_none() {
        return Err(CaptureError::NoAddress);
    }
    network::prepare(net, v6.is_some()).map_err(CaptureError::network("set up routes"))?;
    let domains = [v4.map(|_| Domain::IPV4), v6.map(|_| Domain::IPV6)];
    let bind = |port| -> std::io::Result<Vec<TcpListener>> {
        domains.iter().flatten().map(|domain| socket::listener(*domain, port)).collect()
    };
    let made = net.within(|| {
        Ok(PodListeners {
            outbound: bind(ports::OUTBOUND)?,
            plaintext: bind(ports::PLAINTEXT)?,
            tunnel: bind(ports::TUNNEL)?,
        })
    });
    made.and_then(|made| made).map_err(CaptureError::network("listen"))
}

impl Tables {
    /// Redirects a pod's connections to its listeners, inbound first.
    pub(super) fn add(
        &mut self,
        net: &PodNet,
        settings: &PodSettings,
        listeners: &PodListeners,
        pin: &Path,
    ) -> Result<(), CaptureError> {
        let netns = net.cookie();
        self.set_exclusions(netns, settings)?;
        self.add_inbound(netns, settings, listeners)?;
        loader::attach_inbound(&mut self.ebpf, net.file(), pin)?;
        // Not to be reset if it is there: the kernel counts in it.
        match self.pending.insert(netns, 0, 1) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(CaptureError::map(maps::PENDING))?,
        }
        self.pods.insert(netns, pod(settings), 0).map_err(CaptureError::map(maps::PODS))
    }

    /// Leaves a pod's new connections alone, outbound first. Absent entries are no error.
    pub(super) fn remove(
        &mut self,
        netns: u64,
        ips: &[IpAddr],
        pin: &Path,
    ) -> Result<(), CaptureError> {
        absent_is_fine(self.pods.remove(&netns), maps::PODS)?;
        loader::detach(pin)?;
        for ip in ips {
            let ip = Ip::from(*ip);
            // The address may be another pod's by now.
            if self.inbound.get(&ip, 0).is_ok_and(|inbound| inbound.netns == netns) {
                self.remove_address(&ip)?;
            }
        }
        self.keep_exclusions(netns, &[], &[]);
        absent_is_fine(self.pending.remove(&netns), maps::PENDING)
    }

    fn add_inbound(
        &mut self,
        netns: u64,
        settings: &PodSettings,
        listeners: &PodListeners,
    ) -> Result<(), CaptureError> {
        let flags = if settings.exclude_inbound_ports.is_empty() { 0 } else { maps::HAS_PORTS };
        let (v4, v6) = addresses(&settings.ips);
        for (index, ip) in v4.into_iter().chain(v6).map(Ip::from).enumerate() {
            for (port, sockets) in
                [(ports::PLAINTEXT, &listeners.plaintext), (ports::TUNNEL, &listeners.tunnel)]
            {
                let key = ListenerKey { ip, port: port.into() };
                if let Some(socket) = sockets.get(index) {
                    let done = self.listeners.insert(key, socket.as_raw_fd(), 0);
                    done.map_err(CaptureError::map(maps::LISTENERS))?;
                }
            }
            let value = Inbound { netns, flags, ..Inbound::default() };
            let done = self.inbound.insert(ip, value, 0);
            done.map_err(CaptureError::map(maps::INBOUND))?;
        }
        Ok(())
    }

    fn remove_address(&mut self, ip: &Ip) -> Result<(), CaptureError> {
        for port in [ports::PLAINTEXT, ports::TUNNEL] {
            let key = ListenerKey { ip: *ip, port: port.into() };
            absent_is_fine(self.listeners.remove(&key), maps::LISTENERS)?;
        }
        absent_is_fine(self.inbound.remove(ip), maps::INBOUND)
    }

    /// New ones first, then stale ones go: what stays is excluded all the time.
    fn set_exclusions(&mut self, netns: u64, settings: &PodSettings) -> Result<(), CaptureError> {
        let outbound = settings.exclude_outbound_ports.iter().map(|port| (*port, maps::OUTBOUND));
        let inbound = settings.exclude_inbound_ports.iter().map(|port| (*port, maps::INBOUND_PORT));
        let ports: Vec<PortKey> = outbound
            .chain(inbound)
            .map(|(port, direction)| PortKey { netns, port, direction, reserved: 0 })
            .collect();
        for key in &ports {
            let done = self.ports.insert(key, 1, 0);
            done.map_err(CaptureError::map(maps::EXCLUDED_PORTS))?;
        }
        let ranges: Vec<_> =
            settings.exclude_outbound_ranges.iter().map(|range| range_key(netns, range)).collect();
        for key in &ranges {
            let done = self.ranges.insert(key, 1, 0);
            done.map_err(CaptureError::map(maps::EXCLUDED_RANGES))?;
        }
        self.keep_exclusions(netns, &ports, &ranges);
        Ok(())
    }

    /// Removes a pod's exclusions but these.
    fn keep_exclusions(&mut self, netns: u64, ports: &[PortKey], ranges: &[Key<RangeData>]) {
        let mut stale: Vec<PortKey> = self.ports.keys().flatten().collect();
        stale.retain(|key| key.netns == netns && !ports.contains(key));
        for key in stale {
            // Absent is as good as removed, and nothing else can go wrong.
            let _ = self.ports.remove(&key);
        }
        let whose = RangeData::new(netns, Ip::default()).netns;
        let is_same = |a: &Key<RangeData>, b: &Key<RangeData>| {
            a.prefix_len() == b.prefix_len() && a.data() == b.data()
        };
        let mut stale: Vec<Key<RangeData>> = self.ranges.keys().flatten().collect();
        stale.retain(|key| key.data().netns == whose && !ranges.iter().any(|k| is_same(k, key)));
        for key in stale {
            let _ = self.ranges.remove(&key);
        }
    }

    /// Drops what belongs to network namespaces that are gone.
    pub(super) fn retain(&mut self, alive: &[u64], pin: impl Fn(u64) -> std::path::PathBuf) {
        let mut gone: Vec<u64> = self.pods.keys().flatten().collect();
        gone.extend(self.inbound.iter().flatten().map(|(_, inbound)| inbound.netns));
        gone.extend(self.pending.keys().flatten());
        gone.retain(|netns| !alive.contains(netns));
        gone.sort_unstable();
        gone.dedup();
        for netns in gone {
            let ips: Vec<IpAddr> = self
                .inbound
                .iter()
                .flatten()
                .filter(|(_, inbound)| inbound.netns == netns)
                .map(|(ip, _)| ip.into())
                .collect();
            tracing::info!(netns, "removing a pod that is gone");
            if let Err(error) = self.remove(netns, &ips, &pin(netns)) {
                tracing::warn!(netns, %error, "cannot remove a pod that is gone");
            }
        }
    }
}

fn pod(settings: &PodSettings) -> Pod {
    let (v4, v6) = addresses(&settings.ips);
    let mut flags = 0;
    if !settings.exclude_outbound_ranges.is_empty() {
        flags |= maps::HAS_RANGES;
    }
    if !settings.exclude_outbound_ports.is_empty() {
        flags |= maps::HAS_PORTS;
    }
    Pod {
        ipv4: v4.and_then(|ip| Ip::from(ip).v4()).unwrap_or(0),
        ipv6: v6.map(Ip::from).unwrap_or_default(),
        flags,
        pending_limit: PENDING_LIMIT,
        ..Pod::default()
    }
}

fn range_key(netns: u64, range: &IpNet) -> Key<RangeData> {
    let mapped = if range.addr().is_ipv4() { 96 } else { 0 };
    let length = maps::RANGE_PREFIX + mapped + u32::from(range.prefix_len());
    Key::new(length, RangeData::new(netns, range.network().into()))
}

fn absent_is_fine(done: Result<(), MapError>, map: &'static str) -> Result<(), CaptureError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        other => other.map_err(CaptureError::map(map)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_of_each_family_counts() {
        let ips = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let settings = PodSettings { ips: ips.to_vec(), ..PodSettings::default() };
        let pod = pod(&settings);
        assert_eq!(pod.ipv4, u32::from_ne_bytes([10, 0, 0, 1]));
        assert_eq!(IpAddr::from(pod.ipv6), ips[1]);
        assert_eq!(pod.flags, 0);
        let v4_only = super::pod(&PodSettings { ips: vec![ips[0]], ..settings });
        assert!(v4_only.ipv6.is_zero());
    }

    #[test]
    fn ranges_count_from_the_namespace() {
        let v4 = range_key(7, &"10.2.3.4/8".parse().unwrap());
        assert_eq!(v4.prefix_len(), 64 + 96 + 8);
        assert_eq!(IpAddr::from(v4.data().ip), "10.0.0.0".parse::<IpAddr>().unwrap());
        let v6 = range_key(7, &"fd00::/8".parse().unwrap());
        assert_eq!(v6.prefix_len(), 64 + 8);
    }
}
