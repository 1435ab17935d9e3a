//! What a pod's network namespace needs so that captured connections can flow.
//!
//! A few sysctls, one rule and one route per family, and for IPv6 the prefix that captured
//! connections are sent to. The agent speaks to the application with the client's address; the
//! mark keeps both directions of that connection on `lo`. It only routes: it grants nothing. The
//! invariant: nothing here touches packets without the mark, so it may stay while connections
//! of a withdrawn pod are still open.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_common::address::Ip;

use super::netlink::{Family, LocalRoute, MarkRule, Netlink};
use super::netns::PodNet;

/// Mark of the agent's sockets that borrow a client's address, and its mask. As ztunnel's.
pub(super) const MARK: u32 = 0x111;
const MASK: u32 = 0xfff;
/// Routing table in which every address is local. As ztunnel's.
const TABLE: u32 = 100;
/// Before any rule that a CNI plugin made by source or interface.
const PRIORITY: u32 = 273;
/// The kernel's table of local addresses.
const LOCAL_TABLE: u32 = 255;

/// Settings of the namespace, 0 by default:
/// - `tcp_fwmark_accept`: an accepted socket answers with the mark of the SYN (both families).
/// - `tcp_migrate_req`: connections that wait on a listener move to its successor at its close.
/// - `fwmark_reflect`: so does the reset of a port without a listener, or it would leave by the
///   pod's interface for the real client, and the agent would wait.
const SYSCTLS: [&str; 3] =
    ["ipv4/tcp_fwmark_accept", "ipv4/tcp_migrate_req", "ipv4/fwmark_reflect"];
const SYSCTL_V6: &str = "ipv6/fwmark_reflect";
/// Where the settings are. A container's own `/proc/sys` is read-only: an agent in a pod gets the
/// node's mounted at the first of these. Either shows the namespace that the thread is in
/// (`fs/proc/proc_sysctl.c`, `net_ctl_root`).
const FOLDERS: [&str; 2] = ["/host/proc/sys/net", "/proc/sys/net"];

/// Sets the namespace up; does nothing where it is already.
pub(super) fn prepare(net: &PodNet, with_v6: bool) -> io::Result<()> {
    net.within(|| {
        for name in SYSCTLS {
            std::fs::write(setting(name), "1")?;
        }
        if with_v6 {
            std::fs::write(setting(SYSCTL_V6), "1")?;
        }
        let netlink = Netlink::open()?;
        for family in families(with_v6) {
            netlink.add_route(&everything_local(family))?;
            netlink.add_rule(&rule(family))?;
        }
        if with_v6 { netlink.add_route(&capture_prefix()) } else { Ok(()) }
    })?
}

/// Undoes [`prepare`], to be called when no proxied connection is left.
pub(super) fn restore(net: &PodNet) -> io::Result<()> {
    net.within(|| {
        // Absent in a kernel without IPv6.
        let has_v6 = setting(SYSCTL_V6).exists();
        let netlink = Netlink::open()?;
        for family in families(has_v6) {
            netlink.remove_rule(&rule(family))?;
            netlink.remove_route(&everything_local(family))?;
        }
        if has_v6 {
            netlink.remove_route(&capture_prefix())?;
            std::fs::write(setting(SYSCTL_V6), "0")?;
        }
        for name in SYSCTLS {
            std::fs::write(setting(name), "0")?;
        }
        Ok(())
    })?
}

/// [`restore`] of a namespace that has our rule; others are left alone.
pub(super) fn restore_if_prepared(net: &PodNet) -> io::Result<()> {
    match net.within(|| Netlink::open()?.remove_rule(&rule(Family::V4)))?? {
        true => restore(net),
        false => Ok(()),
    }
}

fn setting(name: &str) -> PathBuf {
    let [of_node, own] = FOLDERS.map(Path::new);
    if of_node.exists() { of_node.join(name) } else { own.join(name) }
}

fn families(with_v6: bool) -> impl Iterator<Item = Family> {
    [Family::V4].into_iter().chain(with_v6.then_some(Family::V6))
}

const fn rule(family: Family) -> MarkRule {
    MarkRule { family, mark: MARK, mask: MASK, table: TABLE, priority: PRIORITY }
}

const fn everything_local(family: Family) -> LocalRoute {
    LocalRoute { family, prefix: None, table: TABLE }
}

const fn capture_prefix() -> LocalRoute {
    let (ip, length) = Ip::capture_prefix_v6();
    LocalRoute { family: Family::V6, prefix: Some((IpAddr::V6(ip), length)), table: LOCAL_TABLE }
}
