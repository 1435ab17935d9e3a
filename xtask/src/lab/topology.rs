//! Nodes and the wire between them.
//!
//! Every node is a network namespace with one uplink to a bridge in the lab's fabric namespace; the
//! machine's own namespace gets no link, address or rule. Pods are routed (no bridge on the node),
//! so that translated virtual addresses come back the way they went.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::host;
use super::names::LabId;

/// Next hop of every pod: link-local, the same on each pod's link.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// A node's interface to the others.
pub(super) const UPLINK: &str = "eth0";

/// For every namespace of a lab. Reno because the machine's default may need a qdisc to be fair.
const SYSCTLS: [(&str, &str); 5] = [
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];
const ROUTER_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// `node1`, ...
    pub(super) name: String,
    /// From 1.
    pub(super) number: u8,
    /// Name of its network namespace.
    pub(super) netns: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    /// Its cgroup: `agent` and `kubepods` are below it.
    pub(super) cgroup: PathBuf,
}

impl Node {
    pub(super) fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// The node's own processes that are not the agent: kubelet's part.
    pub(super) fn kubelet_cgroup(&self) -> PathBuf {
        self.cgroup.join("kubelet")
    }
}

/// Makes the fabric and `count` nodes with routes to each other's pods.
pub(super) fn build(id: LabId, cgroup: &Path, count: u8) -> anyhow::Result<Vec<Node>> {
    let fabric = id.fabric_netns();
    add_netns(&fabric, &ROUTER_SYSCTLS)?;
    let (v4, v6) = id.fabric();
    host::ip(
        Some(&fabric),
        &[
            "link set lo up".into(),
            "link add lab type bridge".into(),
            format!("addr add {v4}/24 dev lab"),
            format!("addr add {v6}/64 dev lab nodad"),
            "link set lab up".into(),
        ],
    )?;
    let nodes = (1..=count)
        .map(|number| add_node(id, cgroup, number))
        .collect::<anyhow::Result<Vec<Node>>>()?;
    route(id, &nodes)?;
    Ok(nodes)
}

fn add_node(id: LabId, cgroup: &Path, number: u8) -> anyhow::Result<Node> {
    let name = format!("node{number}");
    let netns = id.node_netns(&name);
    let (v4, v6) = id.node(number);
    add_netns(&netns, &ROUTER_SYSCTLS)?;
    let (dns4, dns6) = id.dns();
    host::ip(
        Some(&netns),
        &[
            "link set lo up".into(),
            format!("addr add {dns4}/32 dev lo"),
            format!("addr add {dns6}/128 dev lo nodad"),
            format!("link add {UPLINK} type veth peer name {name} netns {}", id.fabric_netns()),
            format!("addr add {v4}/24 dev {UPLINK}"),
            format!("addr add {v6}/64 dev {UPLINK} nodad"),
            format!("link set {UPLINK} up"),
            format!("route add default via {}", id.fabric().0),
            format!("route add ::/0 via {}", id.fabric().1),
        ],
    )?;
    host::ip(
        Some(&id.fabric_netns()),
        &[format!("link set {name} master lab"), format!("link set {name} up")],
    )?;
    let node = Node { cgroup: cgroup.join(&name), name, number, netns, v4, v6 };
    for part in ["agent", "kubelet", "kubepods"] {
        let path = node.cgroup.join(part);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
    }
    Ok(node)
}

/// Tells the fabric and every node where the pods of the other nodes are.
fn route(id: LabId, nodes: &[Node]) -> anyhow::Result<()> {
    let routes = |except: Option<u8>| -> Vec<String> {
        let others = nodes.iter().filter(|node| Some(node.number) != except);
        others
            .flat_map(|node| {
                let (v4, v6) = id.pod_ranges(node.number);
                [
                    format!("route add {v4} via {}", node.v4),
                    format!("route add {v6} via {}", node.v6),
                ]
            })
            .collect()
    };
    host::ip(Some(&id.fabric_netns()), &routes(None))?;
    for node in nodes.iter().filter(|_| nodes.len() > 1) {
        host::ip(Some(&node.netns), &routes(Some(node.number)))?;
    }
    Ok(())
}

/// Makes a pod's namespace with a link to its node. `link` is its name on the node.
pub(super) fn add_pod(
    node: &Node,
    netns: &str,
    link: &str,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
) -> anyhow::Result<()> {
    add_netns(netns, &[])?;
    host::ip(
        Some(&node.netns),
        &[
            format!("link add {link} type veth peer name eth0 netns {netns}"),
            format!("addr add {GATEWAY_V4}/32 dev {link}"),
            format!("addr add {GATEWAY_V6}/64 dev {link} nodad"),
            format!("link set {link} up"),
            format!("route add {v4}/32 dev {link} src {}", node.v4),
            format!("route add {v6}/128 dev {link} src {}", node.v6),
        ],
    )?;
    host::ip(
        Some(netns),
        &[
            "link set lo up".into(),
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".into(),
            format!("route add {GATEWAY_V4} dev eth0 scope link"),
            format!("route add default via {GATEWAY_V4} dev eth0"),
            format!("route add ::/0 via {GATEWAY_V6} dev eth0"),
        ],
    )
}

/// Removes a pod's namespace; its link goes with it.
pub(super) fn remove_netns(netns: &str) -> anyhow::Result<()> {
    host::ip(None, &[format!("netns del {netns}")])
}

fn add_netns(netns: &str, more: &[(&str, &str)]) -> anyhow::Result<()> {
    host::ip(None, &[format!("netns add {netns}")])?;
    host::sysctl(netns, &[SYSCTLS.as_slice(), more].concat())
}
