//! Names and addresses of a lab, all derived from its number. Pure.
//!
//! Invariant: nothing of one lab has a name or an address that another lab could have. Link names
//! need no number: every link of a lab lives in one of the lab's own namespaces.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Labs that one machine can run at once; the second byte of their addresses is 100 + number.
pub(super) const MAX_LABS: u8 = 99;
/// Nodes of one lab: a node's number is the third byte of its pods' addresses.
pub(super) const MAX_NODES: u8 = 60;
/// Last host part that a node's pod may have: the one before the range's broadcast address.
pub(super) const MAX_POD_HOST: u8 = 254;
/// First two groups and a half of every IPv6 address: unique local (RFC 4193), "malha" in ASCII.
const V6_PREFIX: [u16; 3] = [0xfd6d, 0x616c, 0x6861];
/// The third byte from which on IPv4 addresses are virtual ones.
const SERVICES_V4: u8 = 128;
/// The node number that stands for virtual addresses in IPv6.
const SERVICES_V6: u16 = 0x80;
/// Host part of the cluster's name server among the virtual addresses, as on most clusters.
const DNS_HOST: u16 = 10;

/// Number of a lab, 1 to [`MAX_LABS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabId(pub(super) u8);

impl LabId {
    /// Network namespace that joins the nodes and holds clients outside the mesh.
    #[must_use]
    pub fn fabric_netns(self) -> String {
        format!("malha-{}-fabric", self.0)
    }

    /// Network namespace of a node.
    #[must_use]
    pub fn node_netns(self, node: &str) -> String {
        format!("malha-{}-{node}", self.0)
    }

    /// Network namespace of a pod.
    #[must_use]
    pub fn pod_netns(self, namespace: &str, pod: &str) -> String {
        format!("malha-{}-{namespace}-{pod}", self.0)
    }

    /// Both addresses of the bridge between the nodes.
    #[must_use]
    pub fn fabric(self) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4(0, 1), self.v6(0, 1))
    }

    /// Both addresses of a node (numbered from 1).
    #[must_use]
    pub fn node(self, node: u8) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4(0, 10 + node), self.v6(0, 10 + u16::from(node)))
    }

    /// Both addresses of a node's pod (hosts numbered from 2).
    #[must_use]
    pub fn pod(self, node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        (self.v4(node, host), self.v6(u16::from(node), u16::from(host)))
    }

    /// Both ranges of a node's pods.
    #[must_use]
    pub fn pod_ranges(self, node: u8) -> (String, String) {
        (format!("{}/24", self.v4(node, 0)), format!("{}/64", self.v6(u16::from(node), 0)))
    }

    /// The virtual addresses with this number.
    #[must_use]
    pub fn service(self, number: u16) -> (Ipv4Addr, Ipv6Addr) {
        let [high, low] = number.to_be_bytes();
        (self.v4(SERVICES_V4 | (high & 0x7f), low), self.v6(SERVICES_V6, number))
    }

    /// Where the cluster's name server answers.
    #[must_use]
    pub fn dns(self) -> (Ipv4Addr, Ipv6Addr) {
        self.service(DNS_HOST)
    }

    fn v4(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 100 + self.0, third, fourth)
    }

    fn v6(self, node: u16, host: u16) -> Ipv6Addr {
        let [a, b, c] = V6_PREFIX;
        Ipv6Addr::new(a, b, c, (u16::from(self.0) << 8) | node, 0, 0, 0, host)
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_things_share_an_address() {
        let mut seen = HashSet::new();
        for lab in [1, MAX_LABS].map(LabId) {
            assert!(seen.insert(lab.fabric()));
            for node in 1..=60 {
                assert!(seen.insert(lab.node(node)));
                assert!((2..=MAX_POD_HOST).all(|host| seen.insert(lab.pod(node, host))));
            }
            assert!((1..2000).all(|number| seen.insert(lab.service(number))));
        }
        let v4: HashSet<_> = seen.iter().map(|(v4, _)| v4).collect();
        let v6: HashSet<_> = seen.iter().map(|(_, v6)| v6).collect();
        assert_eq!((v4.len(), v6.len()), (seen.len(), seen.len()));
    }

    #[test]
    fn addresses_say_where_they_belong() {
        let lab = LabId(7);
        assert_eq!(lab.pod(2, 5).0.to_string(), "10.107.2.5");
        assert_eq!(lab.pod(2, 5).1.to_string(), "fd6d:616c:6861:702::5");
        assert_eq!(lab.dns().0.to_string(), "10.107.128.10");
        assert_eq!(lab.pod_ranges(2), ("10.107.2.0/24".into(), "fd6d:616c:6861:702::/64".into()));
    }
}
