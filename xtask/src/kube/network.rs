//! The lab's wires and addresses, dual stack: a network namespace for the control plane with a
//! bridge in it, and one for each node.
//!
//! Invariant: every link, address and route is in one of the lab's own namespaces, so labs may all
//! have the same ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::host;

/// The control plane's addresses, which are also the way out of a node.
pub(super) const CONTROL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 89, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, 1)),
];
/// First addresses of the ranges of Services: the API server's own.
pub(super) const FIRST_SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 91, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x91, 0, 0, 0, 0, 0, 1)),
];
/// Ranges of Services.
pub(super) const SERVICES: &str = "10.91.0.0/16,fd00:91::/108";
/// Ranges of all pods.
pub(super) const PODS: &str = "10.90.0.0/16,fd00:90::/32";
/// Nodes that the plan of addresses has room for.
pub(super) const MAX_NODES: usize = 200;

/// A node's addresses; nodes are numbered from 1.
pub(super) fn node(number: u8) -> [IpAddr; 2] {
    let host = 10 + number;
    let v6 = Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, u16::from(host));
    [Ipv4Addr::new(10, 89, 0, host).into(), v6.into()]
}

/// Ranges of a node's pods.
pub(super) fn pods(number: u8) -> [String; 2] {
    [format!("10.90.{number}.0/24"), format!("fd00:90:{number:x}::/64")]
}

/// Name of the control plane's namespace.
pub(super) fn control(prefix: &str) -> String {
    format!("{prefix}cp")
}

/// The end of a node's wire in the control plane's namespace.
pub(super) fn wire(number: u8) -> String {
    format!("v{number}")
}

/// Makes the namespaces and joins them.
///
/// # Errors
/// What `ip` said.
pub(super) fn make(prefix: &str, nodes: &[String]) -> anyhow::Result<()> {
    let control = control(prefix);
    let spaces = || nodes.iter().map(|node| format!("{prefix}{node}"));
    let all = std::iter::once(control.clone()).chain(spaces());
    host::ip(None, &all.map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
    let [v4, v6] = CONTROL;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("addr add {v4}/24 dev br0"),
        format!("addr add {v6}/64 dev br0 nodad"),
        "link set br0 up".to_owned(),
    ];
    let numbered: Vec<(u8, String)> = (1..).zip(spaces()).collect();
    for (number, space) in &numbered {
        let wire = wire(*number);
        lines.push(format!("link add {wire} type veth peer name eth0 netns {space}"));
        lines.push(format!("link set {wire} master br0 up"));
        lines.extend(routes(*number));
    }
    settings(&control)?;
    host::ip(Some(&control), &lines)?;
    for (number, space) in &numbered {
        let [v4, v6] = node(*number);
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {v6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
        ];
        lines.extend(CONTROL.map(|gateway| format!("route add default via {gateway}")));
        let others = numbered.iter().filter(|(other, _)| other != number);
        lines.extend(others.flat_map(|(other, _)| routes(*other)));
        settings(space)?;
        host::ip(Some(space), &lines)?;
    }
    Ok(())
}

/// The ways to a node's pods.
fn routes(number: u8) -> impl Iterator<Item = String> {
    let ways = pods(number).into_iter().zip(node(number));
    ways.map(|(range, node)| format!("route add {range} via {node}"))
}

/// Forwards; takes an address as its own at once.
fn settings(space: &str) -> anyhow::Result<()> {
    host::sysctl(
        space,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_nodes_and_pods_do_not_meet() {
        let last = u8::try_from(MAX_NODES).unwrap();
        assert_eq!(node(last).map(|ip| ip.to_string()), ["10.89.0.210", "fd00:89::d2"]);
        assert_eq!(pods(last), ["10.90.200.0/24", "fd00:90:c8::/64"]);
    }
}
