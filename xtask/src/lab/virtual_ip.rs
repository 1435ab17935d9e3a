//! Virtual addresses as nftables rules, as kube-proxy makes them: destination NAT to a ready
//! endpoint drawn at random, masquerade where the answer would not come back. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::manifest::{list_at, text_at};
use super::plan::port_number;
use super::service::SERVICE_NAME;

/// Packets that must come back through this node carry it (kube-proxy's bit).
const MASQUERADE: &str = "0x4000";

/// Rules of a node for these Services and slices.
pub(super) fn rules(services: &[&Value], slices: &[&Value]) -> String {
    let mut rules = Rules::default();
    for service in services {
        for port in list_at(service, "/spec/ports") {
            rules.service_port(service, port, slices);
        }
    }
    rules.finish()
}

#[derive(Default)]
struct Rules {
    chains: String,
    services: String,
    refused: String,
    /// Endpoint -> its chain.
    endpoints: BTreeMap<(SocketAddr, String), String>,
    count: usize,
}

impl Rules {
    fn service_port(&mut self, service: &Value, port: &Value, slices: &[&Value]) {
        let protocol = text_at(port, "/protocol").unwrap_or("TCP").to_lowercase();
        let Some(number) = port.get("port").and_then(port_number) else { return };
        let name = text_at(port, "/name").unwrap_or_default();
        let ready = ready_endpoints(service, name, slices);
        let ips = list_at(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
        let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        let exposed = port.get("nodePort").and_then(port_number);
        for ip in &ips {
            let same_family = |end: &&SocketAddr| end.is_ipv6() == ip.is_ipv6();
            let ends: Vec<&SocketAddr> = ready.iter().filter(same_family).collect();
            let family = family(*ip);
            let to = format!("{family} daddr {ip} {protocol} dport {number}");
            if ends.is_empty() {
                let _ = writeln!(self.refused, "        {to} {}", refusal(&protocol));
                continue;
            }
            let chain = self.draw(&ends, &protocol);
            let _ = writeln!(self.services, "        {to} goto {chain}");
            let version = if ip.is_ipv6() { "ipv6" } else { "ipv4" };
            let node_port = exposed.map(|exposed| {
                format!("meta nfproto {version} fib daddr type local {protocol} dport {exposed}")
            });
            let external = external_ips(service)
                .filter(|one| one.is_ipv6() == ip.is_ipv6())
                .map(|one| format!("{family} daddr {one} {protocol} dport {number}"));
            // Whoever answers must do so through this node (kube-proxy's default policy, Cluster).
            for to in node_port.into_iter().chain(external) {
                let _ = writeln!(
                    self.services,
                    "        {to} meta mark set meta mark or {MASQUERADE} goto {chain}"
                );
            }
        }
    }

    /// The chain that sends a connection to one of `ends`.
    fn draw(&mut self, ends: &[&SocketAddr], protocol: &str) -> String {
        let targets: Vec<String> = ends.iter().map(|end| self.endpoint(**end, protocol)).collect();
        let name = self.name("draw");
        let cases = targets.iter().enumerate().map(|(at, chain)| format!("{at} : goto {chain}"));
        let cases = cases.collect::<Vec<_>>().join(", ");
        let count = targets.len();
        let _ = write!(
            self.chains,
            "    chain {name} {{\n        numgen random mod {count} vmap {{ {cases} }}\n    }}\n"
        );
        name
    }

    fn endpoint(&mut self, end: SocketAddr, protocol: &str) -> String {
        if let Some(chain) = self.endpoints.get(&(end, protocol.to_owned())) {
            return chain.clone();
        }
        let name = self.name("endpoint");
        let family = family(end.ip());
        // A pod that is sent to itself would answer itself past the translation.
        let _ = write!(
            self.chains,
            "    chain {name} {{\n        {family} saddr {} meta mark set meta mark or {MASQUERADE}\n        \
             meta l4proto {protocol} dnat {family} to {end}\n    }}\n",
            end.ip()
        );
        self.endpoints.insert((end, protocol.to_owned()), name.clone());
        name
    }

    fn name(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}-{}", self.count)
    }

    fn finish(self) -> String {
        let Self { chains, services, refused, .. } = self;
        // `table` before `delete table` so that the first time is no error.
        format!(
            "table inet malha-lab\ndelete table inet malha-lab\ntable inet malha-lab {{\n{chains}    \
             chain services {{\n{services}    }}\n    \
             chain prerouting-nat {{\n        type nat hook prerouting priority dstnat; policy accept;\n        \
             jump services\n    }}\n    \
             chain output-nat {{\n        type nat hook output priority -100; policy accept;\n        \
             jump services\n    }}\n    \
             chain postrouting-nat {{\n        type nat hook postrouting priority srcnat; policy accept;\n        \
             meta mark & {MASQUERADE} != 0 masquerade\n    }}\n    \
             chain refused {{\n{refused}    }}\n    \
             chain forward-filter {{\n        type filter hook forward priority filter; policy accept;\n        \
             jump refused\n    }}\n    \
             chain output-filter {{\n        type filter hook output priority filter; policy accept;\n        \
             jump refused\n    }}\n}}\n"
        )
    }
}

/// `spec.externalIPs`, and the addresses that a load balancer has got.
fn external_ips(service: &Value) -> impl Iterator<Item = IpAddr> {
    let balanced = list_at(service, "/status/loadBalancer/ingress");
    let balanced = balanced.iter().filter_map(|one| text_at(one, "/ip"));
    let external = list_at(service, "/spec/externalIPs").iter().filter_map(Value::as_str);
    external.chain(balanced).filter_map(|ip| ip.parse().ok())
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { "ip6" } else { "ip" }
}

fn refusal(protocol: &str) -> &'static str {
    if protocol == "tcp" { "reject with tcp reset" } else { "reject" }
}

/// Ready endpoints of a Service's port.
fn ready_endpoints(service: &Value, port: &str, slices: &[&Value]) -> Vec<SocketAddr> {
    let of_service = |slice: &&&Value| {
        slice.pointer("/metadata/namespace") == service.pointer("/metadata/namespace")
            && slice.pointer("/metadata/labels").and_then(|labels| labels.get(SERVICE_NAME))
                == service.pointer("/metadata/name")
    };
    let mut ends = Vec::new();
    for slice in slices.iter().filter(of_service) {
        let number = list_at(slice, "/ports")
            .iter()
            .find(|own| text_at(own, "/name").unwrap_or_default() == port)
            .and_then(|own| own.get("port").and_then(port_number));
        let Some(number) = number else { continue };
        let ready = |end: &&Value| end.pointer("/conditions/ready") != Some(&Value::Bool(false));
        for end in list_at(slice, "/endpoints").iter().filter(ready) {
            let ips = list_at(end, "/addresses").iter().filter_map(Value::as_str);
            ends.extend(ips.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, number))));
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints_are_drawn_and_none_is_refused() {
        let service = |name: &str, ip: &str| {
            json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {
                "clusterIPs": [ip],
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_000}]}})
        };
        let mut web = service("web", "10.101.128.20");
        web["spec"]["externalIPs"] = json!(["203.0.113.7", "2001:db8::7"]);
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}]}});
        let gone = service("gone", "fd00::14");
        let slice = json!({"metadata": {"namespace": "shop", "labels": {SERVICE_NAME: "web"}},
            "endpoints": [
                {"addresses": ["10.101.1.2"], "conditions": {"ready": true}},
                {"addresses": ["10.101.1.3"], "conditions": {"ready": false}},
                {"addresses": ["10.101.2.2"]}],
            "ports": [{"name": "", "port": 8080}]});
        let rules = rules(&[&web, &gone], &[&slice]);
        for line in [
            "ip daddr 10.101.128.20 tcp dport 80 goto draw-3",
            "numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }",
            "meta l4proto tcp dnat ip to 10.101.2.2:8080",
            "fib daddr type local tcp dport 30000 meta mark set meta mark or 0x4000 goto draw-3",
            "ip daddr 203.0.113.7 tcp dport 80 meta mark set meta mark or 0x4000 goto draw-3",
            "ip daddr 203.0.113.8 tcp dport 80 meta mark set meta mark or 0x4000 goto draw-3",
            "ip6 daddr fd00::14 tcp dport 80 reject with tcp reset",
        ] {
            assert!(rules.contains(line), "{line} is not in\n{rules}");
        }
        assert!(!rules.contains("10.101.1.3"), "{rules}");
        assert!(!rules.contains("2001:db8::7"), "no endpoint of that family: {rules}");
    }
}
