//! What kube-proxy does on each node: virtual addresses and node ports become endpoints, by nftables.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::endpoints::Service;

/// The ruleset of a node, replacing the one before as a whole.
pub(super) fn rules<'a>(services: impl Iterator<Item = &'a Service>) -> String {
    let mut dnat = String::new();
    let mut hairpin = String::new();
    for service in services {
        for backend in &service.backends {
            for ip in &backend.ips {
                let family = if ip.is_ipv4() { "ip" } else { "ip6" };
                let _ = writeln!(
                    hairpin,
                    "ct status dnat {family} saddr {ip} {family} daddr {ip} masquerade"
                );
            }
        }
        for (index, port) in service.ports.iter().enumerate() {
            for address in &service.addresses {
                let v4 = address.is_ipv4();
                let family = if v4 { "ip" } else { "ip6" };
                let matched = format!("{family} daddr {address} tcp dport {}", port.port);
                forward(&mut dnat, &matched, &service.ready(index, v4));
            }
            if let Some(node_port) = port.node_port {
                for v4 in [true, false] {
                    let proto = if v4 { "ipv4" } else { "ipv6" };
                    let matched =
                        format!("fib daddr type local meta nfproto {proto} tcp dport {node_port}");
                    // The answer must come back through this node, wherever the endpoint is.
                    let _ = writeln!(dnat, "{matched} meta mark set 0x4000");
                    forward(&mut dnat, &matched, &service.ready(index, v4));
                }
            }
        }
    }
    format!(
        "table inet lab\ndelete table inet lab\ntable inet lab {{\n\
         chain services {{\n{dnat}}}\n\
         chain prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain output {{ type nat hook output priority -100; jump services; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
         meta mark 0x4000 masquerade\n\
         ct status dnat fib saddr type local masquerade\n\
         {hairpin}}}\n}}\n"
    )
}

/// One rule: a random ready endpoint, or a refusal.
fn forward(rules: &mut String, matched: &str, ready: &[SocketAddr]) {
    if ready.is_empty() {
        let _ = writeln!(rules, "{matched} counter drop");
        return;
    }
    let family = if ready[0].is_ipv4() { "ip" } else { "ip6" };
    let choices: Vec<String> = ready
        .iter()
        .enumerate()
        .map(|(index, address)| format!("{index} : {} . {}", address.ip(), address.port()))
        .collect();
    let _ = writeln!(
        rules,
        "{matched} dnat {family} to numgen random mod {} map {{ {} }}",
        ready.len(),
        choices.join(", ")
    );
}
