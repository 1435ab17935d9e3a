//! Services and the endpoints that the controller would find for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::cluster::selected;
use super::manifest::Document;
use super::pod::Pod;

/// A pod as the controllers see it.
pub(super) struct PodView<'a> {
    pub(super) pod: &'a Pod,
    pub(super) object: &'a Value,
    pub(super) ready: bool,
}

/// One port of a service.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    name: String,
    app_protocol: Value,
    target: Value,
}

/// One pod behind a service.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) ready: bool,
    uid: String,
    node: String,
    pub(super) ips: Vec<IpAddr>,
    /// Target port of each service port; `None` where a named port is missing.
    pub(super) ports: Vec<Option<u16>>,
}

/// A Service with what is behind it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) number: u16,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<Port>,
    pub(super) backends: Vec<Backend>,
    pub(super) external_name: Option<String>,
    publish_not_ready: bool,
    document: Document,
}

impl Service {
    pub(super) fn read(document: &Document, number: u16) -> anyhow::Result<Self> {
        let spec = document.at("/spec");
        let external_name = (spec["type"] == "ExternalName")
            .then(|| spec["externalName"].as_str().map(str::to_owned))
            .flatten();
        let headless = spec["clusterIP"] == "None";
        let families: Vec<&str> = match spec["ipFamilies"].as_array() {
            Some(families) => families.iter().filter_map(Value::as_str).collect(),
            None if spec["ipFamilyPolicy"].as_str().is_some_and(|p| p != "SingleStack") => {
                vec!["IPv4", "IPv6"]
            }
            None => vec!["IPv4"],
        };
        let [high, low] = number.to_be_bytes();
        let address = |family: &&str| match *family {
            "IPv6" => IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number)),
            _ => IpAddr::V4(Ipv4Addr::new(10, 96, high, low)),
        };
        let addresses = match headless || external_name.is_some() {
            true => Vec::new(),
            false => families.iter().map(address).collect(),
        };
        let mut ports = Vec::new();
        for (index, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
            let number = port["port"].as_u64().and_then(|port| u16::try_from(port).ok());
            let number = number.with_context(|| format!("spec.ports[{index}].port"))?;
            let wants_node_port = spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
            let given = port["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
            let node_port =
                wants_node_port.then(|| given.unwrap_or_else(|| 30_000 + (number % 2_767)));
            ports.push(Port {
                port: number,
                node_port,
                name: port["name"].as_str().unwrap_or_default().to_owned(),
                app_protocol: port["appProtocol"].clone(),
                target: match port["targetPort"].clone() {
                    Value::Null => json!(number),
                    target => target,
                },
            });
        }
        if ports.is_empty() && external_name.is_none() && !headless {
            bail!("spec.ports: a Service needs at least one port");
        }
        Ok(Self {
            number,
            addresses,
            ports,
            backends: Vec::new(),
            external_name,
            publish_not_ready: spec["publishNotReadyAddresses"] == true,
            document: document.clone(),
        })
    }

    /// Finds the pods that the selector names.
    pub(super) fn resolve(&mut self, pods: &[PodView<'_>]) {
        let selector = self.document.at("/spec/selector").clone();
        self.backends = pods
            .iter()
            .filter(|view| {
                view.pod.name.starts_with(&format!("{}/", self.document.namespace))
                    && selected(&selector, view.object)
            })
            .map(|view| Backend {
                name: view.pod.name.clone(),
                ready: view.ready || self.publish_not_ready,
                uid: view.pod.uid.to_string(),
                node: view.pod.node.clone(),
                ips: view.pod.ips.clone(),
                ports: self.ports.iter().map(|port| target(&port.target, view.object)).collect(),
            })
            .collect();
    }

    /// Ready endpoints of a port in one family.
    pub(super) fn ready(&self, port: usize, v4: bool) -> Vec<SocketAddr> {
        self.backends
            .iter()
            .filter(|backend| backend.ready)
            .filter_map(|backend| {
                let ip = backend.ips.iter().find(|ip| ip.is_ipv4() == v4)?;
                Some(SocketAddr::new(*ip, (*backend.ports.get(port)?)?))
            })
            .collect()
    }

    /// The Service and its EndpointSlices as the API server would hold them.
    pub(super) fn objects(&self) -> Vec<Value> {
        let mut service = self.document.value.clone();
        service["metadata"]["namespace"] = json!(self.document.namespace);
        if let Some(first) = self.addresses.first() {
            service["spec"]["clusterIP"] = json!(first);
            service["spec"]["clusterIPs"] = json!(self.addresses);
        }
        let mut objects = vec![service];
        for (family, v4) in [("IPv4", true), ("IPv6", false)] {
            if !self.backends.is_empty() {
                objects.push(self.slice(family, v4));
            }
        }
        objects
    }

    fn slice(&self, family: &str, v4: bool) -> Value {
        let endpoints: Vec<Value> = self
            .backends
            .iter()
            .filter_map(|backend| {
                let ip = backend.ips.iter().find(|ip| ip.is_ipv4() == v4)?;
                let (namespace, name) = backend.name.split_once('/')?;
                Some(json!({
                    "addresses": [ip],
                    "conditions": {
                        "ready": backend.ready, "serving": backend.ready, "terminating": false
                    },
                    "nodeName": backend.node,
                    "targetRef": {
                        "kind": "Pod", "namespace": namespace, "name": name, "uid": backend.uid
                    },
                }))
            })
            .collect();
        // The lab's pods of one service agree on named ports; the first speaks for all.
        let ports: Vec<Value> = self
            .ports
            .iter()
            .enumerate()
            .filter_map(|(index, port)| {
                let target = (*self.backends.first()?.ports.get(index)?)?;
                let mut value = json!({ "name": port.name, "port": target, "protocol": "TCP" });
                if !port.app_protocol.is_null() {
                    value["appProtocol"] = port.app_protocol.clone();
                }
                Some(value)
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.document.name, family.to_lowercase()),
                "namespace": self.document.namespace,
                "labels": { "kubernetes.io/service-name": self.document.name },
            },
            "addressType": family,
            "endpoints": endpoints,
            "ports": ports,
        })
    }
}

/// A target port by number, or by the name of a container's port.
fn target(target: &Value, pod: &Value) -> Option<u16> {
    if let Some(number) = target.as_u64() {
        return u16::try_from(number).ok();
    }
    let name = target.as_str()?;
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    containers
        .iter()
        .filter_map(|container| container["ports"].as_array())
        .flatten()
        .find(|port| port["name"] == name)
        .and_then(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
}
