//! Services as the API server and the EndpointSlice controller fill them in. Pure.
//!
//! Invariant: a Service keeps the addresses and node ports that it once got.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::manifest::{list_at, selects, text_at};
use super::names::LabId;
use super::plan::port_number;

/// Label that ties a slice to its Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// First node port that is given out.
const FIRST_NODE_PORT: u16 = 30_000;
/// First virtual address that is given out; those before are for the cluster's own services.
const FIRST_ADDRESS: u16 = 20;

/// What a Service sees of a pod.
pub(super) struct PodFacts<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    pub(super) node: &'a str,
    pub(super) ips: &'a [IpAddr],
    pub(super) labels: &'a Value,
    /// The pod's `spec`.
    pub(super) spec: &'a Value,
    pub(super) ready: bool,
    pub(super) terminating: bool,
}

/// Numbers that Services have got.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    last_address: u16,
    last_node_port: u16,
}

impl Allocator {
    /// Fills in what the API server would: type, families, addresses, node ports, target ports.
    /// `before` is the Service as it was, if it was there.
    pub(super) fn complete(
        &mut self,
        id: LabId,
        service: &mut Value,
        before: Option<&Value>,
    ) -> anyhow::Result<()> {
        let spec =
            service.get_mut("spec").filter(|spec| spec.is_object()).context("spec: missing")?;
        let kind = text_at(spec, "/type").unwrap_or("ClusterIP").to_owned();
        spec["type"] = kind.clone().into();
        if kind == "ExternalName" {
            text_at(spec, "/externalName").context("spec.externalName: missing")?;
            return Ok(());
        }
        let exposed = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
        ensure!(exposed || kind == "ClusterIP", "spec.type: {kind} is no type of Service");
        let families = families(spec)?;
        if text_at(spec, "/clusterIP").is_none() {
            let old = before
                .and_then(|old| old.pointer("/spec/clusterIPs"))
                .map_or(&[][..], |ips| ips.as_array().map_or(&[], Vec::as_slice));
            let addresses = self.addresses(id, &families, old);
            spec["clusterIP"] = addresses[0].clone();
            spec["clusterIPs"] = addresses.into();
        } else if spec.get("clusterIPs").is_none() {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        spec["ipFamilies"] = families.into();
        self.ports(spec, before, exposed)
    }

    fn addresses(&mut self, id: LabId, families: &[&str], old: &[Value]) -> Vec<Value> {
        let is = |ip: &Value, family: &str| ip.as_str().is_some_and(|ip| family_of(ip) == family);
        if families.iter().all(|family| old.iter().any(|ip| is(ip, family))) {
            let kept = |family: &&str| old.iter().find(|ip| is(ip, family)).cloned();
            return families.iter().filter_map(kept).collect();
        }
        self.last_address = (self.last_address + 1).max(FIRST_ADDRESS);
        let (v4, v6) = id.service(self.last_address);
        let address = |family: &&str| match *family {
            "IPv6" => Value::from(v6.to_string()),
            _ => Value::from(v4.to_string()),
        };
        families.iter().map(address).collect()
    }

    fn ports(
        &mut self,
        spec: &mut Value,
        before: Option<&Value>,
        exposed: bool,
    ) -> anyhow::Result<()> {
        let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        let several = ports.len() > 1;
        for (number, port) in ports.iter_mut().enumerate() {
            let at = format!("spec.ports[{number}]");
            let own = port.get("port").and_then(port_number);
            let own = own.with_context(|| format!("{at}.port: not a port"))?;
            ensure!(!several || port.get("name").is_some(), "{at}.name: needed with several ports");
            if port.get("targetPort").is_none() {
                port["targetPort"] = own.into();
            }
            if port.get("protocol").is_none() {
                port["protocol"] = "TCP".into();
            }
            if exposed && port.get("nodePort").is_none() {
                let old = before.and_then(|old| {
                    old.pointer(&format!("/spec/ports/{number}/nodePort")).cloned()
                });
                port["nodePort"] = old.unwrap_or_else(|| {
                    self.last_node_port = (self.last_node_port + 1).max(FIRST_NODE_PORT);
                    self.last_node_port.into()
                });
            }
        }
        Ok(())
    }
}

/// `ipFamilies`, by `ipFamilyPolicy`; the cluster's first family is IPv4.
fn families(spec: &Value) -> anyhow::Result<Vec<&'static str>> {
    let mut families = Vec::new();
    for family in list_at(spec, "/ipFamilies") {
        families.push(match family.as_str() {
            Some("IPv4") => "IPv4",
            Some("IPv6") => "IPv6",
            _ => anyhow::bail!("spec.ipFamilies: {family} is neither IPv4 nor IPv6"),
        });
    }
    if families.is_empty() {
        families
            .push(text_at(spec, "/clusterIP").filter(|ip| *ip != "None").map_or("IPv4", family_of));
    }
    let dual = text_at(spec, "/ipFamilyPolicy").is_some_and(|policy| policy != "SingleStack");
    if dual && families.len() == 1 {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" });
    }
    Ok(families)
}

fn family_of(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}

/// The slices of a completed Service: one for each family and each set of target ports.
pub(super) fn slices(service: &Value, pods: &[PodFacts<'_>]) -> Vec<Value> {
    let Some(selector) = service.pointer("/spec/selector") else { return Vec::new() };
    let namespace = text_at(service, "/metadata/namespace").unwrap_or_default();
    let name = text_at(service, "/metadata/name").unwrap_or_default();
    let unready = service.pointer("/spec/publishNotReadyAddresses") == Some(&Value::Bool(true));
    let mut slices = Vec::new();
    for family in list_at(service, "/spec/ipFamilies").iter().filter_map(Value::as_str) {
        // Pods that name their ports differently need slices of their own.
        let mut groups: BTreeMap<String, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| pod.namespace == namespace) {
            if !selects(selector, pod.labels) {
                continue;
            }
            let ips: Vec<&IpAddr> =
                pod.ips.iter().filter(|ip| ip.is_ipv6() == (family == "IPv6")).collect();
            if ips.is_empty() {
                continue;
            }
            let ports = resolved_ports(service, pod.spec);
            let group = groups.entry(Value::from(ports.clone()).to_string());
            group.or_insert((ports, Vec::new())).1.push(endpoint(pod, &ips, unready));
        }
        for (number, (ports, endpoints)) in groups.into_values().enumerate() {
            let slice = format!("{name}-{}-{number}", family.to_lowercase());
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": slice, "namespace": namespace,
                    "labels": {
                        SERVICE_NAME: name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    },
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": ports,
            }));
        }
    }
    slices
}

fn endpoint(pod: &PodFacts<'_>, ips: &[&IpAddr], unready: bool) -> Value {
    json!({
        "addresses": ips,
        "conditions": {
            "ready": unready || (pod.ready && !pod.terminating),
            "serving": pod.ready,
            "terminating": pod.terminating,
        },
        "nodeName": pod.node,
        "targetRef": {
            "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid,
        },
    })
}

/// The Service's ports on this pod; a named target port is looked up in the pod's containers.
fn resolved_ports(service: &Value, pod: &Value) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for port in list_at(service, "/spec/ports") {
        let target = match &port["targetPort"] {
            Value::String(name) => list_at(pod, "/containers")
                .iter()
                .flat_map(|container| list_at(container, "/ports"))
                .find(|declared| text_at(declared, "/name") == Some(name))
                .and_then(|declared| port_number(&declared["containerPort"])),
            number => port_number(number),
        };
        let name = text_at(port, "/name").unwrap_or_default();
        let Some(target) = target else { continue };
        if seen.insert((name, text_at(port, "/protocol"))) {
            let mut resolved = json!({"name": name, "port": target, "protocol": port["protocol"]});
            if let Some(protocol) = port.get("appProtocol") {
                resolved["appProtocol"] = protocol.clone();
            }
            ports.push(resolved);
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        Allocator::default().complete(LabId(1), &mut service, None).unwrap();
        service
    }

    #[test]
    fn addresses_follow_the_family_policy_and_stay() {
        let single = completed(json!({"ports": [{"port": 80}]}));
        assert_eq!(single["spec"]["clusterIPs"], json!(["10.101.128.20"]));
        let mut allocator = Allocator::default();
        let mut dual = json!({"spec": {"ipFamilyPolicy": "PreferDualStack", "ports": []}});
        allocator.complete(LabId(1), &mut dual, Some(&single)).unwrap();
        assert_eq!(dual["spec"]["clusterIPs"][1], "fd6d:616c:6861:180::14");
        let mut again = json!({"spec": {"ports": [{"port": 81}]}});
        allocator.complete(LabId(1), &mut again, Some(&dual)).unwrap();
        assert_eq!(again["spec"]["clusterIP"], dual["spec"]["clusterIP"]);
        let headless = completed(json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn a_node_port_is_kept() {
        let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
        let first = completed(spec.clone());
        assert_eq!(first["spec"]["ports"][0]["nodePort"], 30_000);
        let mut allocator = Allocator { last_address: 50, last_node_port: 30_050 };
        let mut again = json!({"spec": spec});
        allocator.complete(LabId(1), &mut again, Some(&first)).unwrap();
        assert_eq!(again["spec"]["ports"][0]["nodePort"], 30_000);
    }

    #[test]
    fn slices_follow_family_readiness_and_named_ports() {
        let service = completed(json!({
            "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80, "targetPort": "http"}],
        }));
        let labels = json!({"app": "web"});
        let ips: Vec<IpAddr> = vec!["10.1.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let spec = |port: u16| json!({"containers": [{"ports": [{"name": "http", "containerPort": port}]}]});
        let specs = [spec(8080), spec(9090)];
        let pod = |spec, ready, terminating| PodFacts {
            namespace: "shop",
            name: "p",
            uid: "u",
            node: "n",
            ips: &ips,
            labels: &labels,
            spec,
            ready,
            terminating,
        };
        let pods =
            [pod(&specs[0], true, false), pod(&specs[0], true, true), pod(&specs[1], false, false)];
        let slices = slices(&service, &pods);
        assert_eq!(slices.len(), 4, "two families, two sets of ports");
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
        let ready: Vec<_> =
            list_at(&slices[0], "/endpoints").iter().map(|e| &e["conditions"]["ready"]).collect();
        assert_eq!(ready, [true, false]);
        assert_eq!(slices[1]["endpoints"][0]["conditions"]["ready"], false);
        assert_eq!(slices[2]["endpoints"][0]["addresses"], json!(["fd00::2"]));
    }
}
