//! `ServiceEntry` (istio-surface 1.4). What names resolve to and which pods a selector means is left
//! to `compile`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::names::{entry_visibility, is_host};
use super::service::protocol;
use super::{Scope, network, port_number};
use crate::config::api::{self, Labels, Location, Resolution};
use crate::config::diagnostic::Report;
use crate::config::parse::UNSUPPORTED_FIELD;
use crate::model::{Locality, Protocol, Visibility};

/// One `ServiceEntry`.
#[derive(Debug)]
pub(in crate::config) struct EntryFacts {
    /// Names, or `*.` with a name, in lower case.
    pub(in crate::config) hosts: Vec<Arc<str>>,
    /// Those of `addresses` that are one address.
    pub(in crate::config) addresses: Vec<IpAddr>,
    /// The others.
    pub(in crate::config) ranges: Vec<IpNet>,
    /// TCP ports.
    pub(in crate::config) ports: Vec<EntryPort>,
    /// `location: MESH_INTERNAL`.
    pub(in crate::config) is_internal: bool,
    /// `resolution`.
    pub(in crate::config) resolution: EntryResolution,
    /// `endpoints[]`.
    pub(in crate::config) endpoints: Vec<EntryEndpoint>,
    /// `workloadSelector`.
    pub(in crate::config) selector: Option<Labels>,
    /// `exportTo`, if it has one.
    pub(in crate::config) visibility: Option<Visibility>,
    /// `subjectAltNames`.
    pub(in crate::config) subject_alt_names: Arc<[Arc<str>]>,
}

/// `resolution`, of those that are honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum EntryResolution {
    /// `NONE`.
    Dialled,
    /// `STATIC`.
    Static,
    /// `DNS`: all addresses.
    Dns,
    /// `DNS_ROUND_ROBIN`: one address at a time.
    OneOfDns,
}

/// `ports[]`.
#[derive(Debug)]
pub(in crate::config) struct EntryPort {
    /// Number.
    pub(in crate::config) port: u16,
    /// Name.
    pub(in crate::config) name: Arc<str>,
    /// What it speaks.
    pub(in crate::config) protocol: Protocol,
    /// Where endpoints listen that do not say otherwise.
    pub(in crate::config) target: u16,
}

/// `endpoints[]`.
#[derive(Debug)]
pub(in crate::config) struct EntryEndpoint {
    /// Where it is.
    pub(in crate::config) address: Address,
    /// Where it listens, by the ports' names.
    pub(in crate::config) ports: BTreeMap<Arc<str>, u16>,
    /// Labels.
    pub(in crate::config) labels: Arc<Labels>,
    /// `locality`, if it has one.
    pub(in crate::config) locality: Option<Arc<Locality>>,
}

/// `endpoints[].address`.
#[derive(Debug)]
pub(in crate::config) enum Address {
    /// An address.
    Ip(IpAddr),
    /// A name to resolve, in lower case.
    Name(Arc<str>),
}

impl EntryResolution {
    /// Whether names are resolved.
    pub(in crate::config) fn is_dns(self) -> bool {
        matches!(self, Self::Dns | Self::OneOfDns)
    }
}

/// Translates one.
pub(in crate::config) fn service_entry(
    spec: api::ServiceEntry,
    scope: &Scope<'_>,
    report: &mut Report,
) -> EntryFacts {
    let resolution = resolution(spec.resolution, report);
    let has_endpoints = !spec.endpoints.is_empty();
    let hosts = hosts(&spec.hosts, (resolution, has_endpoints), report);
    let (addresses, ranges) = addresses(&spec.addresses, resolution, report);
    let ports = ports(spec.ports, report);
    let selector = spec.workload_selector.map(|selector| selector.labels);
    let given = (has_endpoints, selector.is_some());
    check_endpoints(given, spec.endpoints.len(), resolution, report);
    let endpoints = spec.endpoints.into_iter().enumerate().filter_map(|(index, found)| {
        endpoint(found, &format!("spec.endpoints[{index}]"), (resolution, &ports), report)
    });
    let endpoints = endpoints.collect();
    EntryFacts {
        hosts,
        addresses,
        ranges,
        ports,
        is_internal: spec.location == Some(Location::MeshInternal),
        resolution,
        endpoints,
        selector,
        visibility: entry_visibility(&spec.export_to, scope, report),
        subject_alt_names: spec.subject_alt_names.into_iter().map(Arc::from).collect(),
    }
}

fn resolution(found: Option<Resolution>, report: &mut Report) -> EntryResolution {
    match found {
        None | Some(Resolution::None) => EntryResolution::Dialled,
        Some(Resolution::Static) => EntryResolution::Static,
        Some(Resolution::Dns) => EntryResolution::Dns,
        Some(Resolution::DnsRoundRobin) => EntryResolution::OneOfDns,
        Some(Resolution::DynamicDns) => {
            report.error("spec.resolution", "DYNAMIC_DNS is not supported yet");
            EntryResolution::Dialled
        }
    }
}

fn hosts(
    hosts: &[String],
    (resolution, has_endpoints): (EntryResolution, bool),
    report: &mut Report,
) -> Vec<Arc<str>> {
    if hosts.is_empty() {
        report.error("spec.hosts", "missing: name at least one");
    }
    let (mut found, mut seen) = (Vec::with_capacity(hosts.len()), BTreeSet::new());
    for (index, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if host == "*" || !is_host(host) {
            report.error(field, format!("`{host}` is not a host name, or `*.` with a name"));
            continue;
        }
        if host.starts_with('*') && resolution.is_dns() && !has_endpoints {
            report
                .error(field, format!("`{host}` cannot be resolved: name `endpoints`, or a host"));
            continue;
        }
        let host: Arc<str> = host.to_ascii_lowercase().into();
        if !seen.insert(Arc::clone(&host)) {
            report.error(field, format!("`{host}` is there twice"));
            continue;
        }
        found.push(host);
    }
    found
}

fn addresses(
    addresses: &[String],
    resolution: EntryResolution,
    report: &mut Report,
) -> (Vec<IpAddr>, Vec<IpNet>) {
    let (mut single, mut ranges): (Vec<IpAddr>, Vec<IpNet>) = (Vec::new(), Vec::new());
    for (index, text) in addresses.iter().enumerate() {
        let field = format!("spec.addresses[{index}]");
        let Some(net) = network(text) else {
            report.error(field, format!("`{text}` is neither an address nor a range of addresses"));
            continue;
        };
        if net.prefix_len() == net.max_prefix_len() {
            if !single.contains(&net.addr()) {
                single.push(net.addr());
            }
        } else if resolution.is_dns() {
            report.error(field, "a range can be given with `resolution` NONE or STATIC only");
        } else if !ranges.contains(&net) {
            ranges.push(net);
        }
    }
    (single, ranges)
}

fn ports(ports: Vec<api::EntryPort>, report: &mut Report) -> Vec<EntryPort> {
    let mut found: Vec<EntryPort> = Vec::with_capacity(ports.len());
    if ports.is_empty() {
        report.warning("spec.ports", "none: no effect");
    }
    for (index, entry) in ports.into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(port) = port_number(entry.number) else {
            report.error(format!("{field}.number"), "missing, or not a port");
            continue;
        };
        if entry.name.is_empty() {
            report.error(format!("{field}.name"), "missing");
        }
        if found.iter().any(|other| other.port == port) {
            report.error(format!("{field}.number"), format!("{port} is there twice"));
            continue;
        }
        if found.iter().any(|other| *other.name == *entry.name) {
            report.error(format!("{field}.name"), format!("`{}` is there twice", entry.name));
            continue;
        }
        let target = match entry.target_port {
            0 => Some(port),
            number => port_number(number),
        };
        let Some(target) = target else {
            let message = format!("{} is not a port", entry.target_port);
            report.error(format!("{field}.targetPort"), message);
            continue;
        };
        // Other transports are not captured.
        if entry.protocol.eq_ignore_ascii_case("UDP") {
            continue;
        }
        let declared = Some(&*entry.protocol).filter(|text| !text.is_empty());
        let protocol = protocol(declared, "", port);
        found.push(EntryPort { port, name: entry.name.as_str().into(), protocol, target });
    }
    found
}

/// What cannot stand together.
fn check_endpoints(
    (has_endpoints, has_selector): (bool, bool),
    count: usize,
    resolution: EntryResolution,
    report: &mut Report,
) {
    match (resolution, has_endpoints, has_selector) {
        (_, true, true) => {
            report.error("spec", "only one of `endpoints` and `workloadSelector` can be given");
        }
        (EntryResolution::Dialled, true, _) => {
            report.error("spec.endpoints", "have no meaning with `resolution: NONE`");
        }
        (EntryResolution::Dialled, _, true) => {
            report.error("spec.workloadSelector", "has no meaning with `resolution: NONE`");
        }
        (EntryResolution::Static, false, false) => {
            report.warning("spec.endpoints", "none: the service has nowhere to go");
        }
        (EntryResolution::OneOfDns, true, _) if count > 1 => {
            report.error("spec.endpoints", "DNS_ROUND_ROBIN takes one");
        }
        _ => {}
    }
}

/// One endpoint; `None` if it cannot be reached, or is in error.
fn endpoint(
    found: api::WorkloadEntry,
    field: &str,
    (resolution, known): (EntryResolution, &[EntryPort]),
    report: &mut Report,
) -> Option<EntryEndpoint> {
    let mut ports = BTreeMap::new();
    for (name, number) in found.ports {
        let field = format!("{field}.ports[{name}]");
        match port_number(number) {
            _ if !known.iter().any(|port| *port.name == *name) => {
                report.error(field, format!("the service has no port `{name}`"));
            }
            Some(port) => {
                ports.insert(name.into(), port);
            }
            None => report.error(field, format!("{number} is not a port")),
        }
    }
    let (text, field) = (found.address, format!("{field}.address"));
    if text.starts_with("unix://") {
        report.warning(field, UNSUPPORTED_FIELD);
        return None;
    }
    let address = match text.parse() {
        Ok(ip) => Address::Ip(ip),
        Err(_) if text.is_empty() => {
            report.error(field, "missing");
            return None;
        }
        Err(_) if !resolution.is_dns() => {
            report
                .error(field, format!("`{text}` is not an address: names need `resolution: DNS`"));
            return None;
        }
        Err(_) => {
            let name = text.strip_suffix('.').unwrap_or(&text).to_ascii_lowercase();
            if name.contains('*') || !is_host(&name) {
                report.error(field, format!("`{text}` is neither an address nor a host name"));
                return None;
            }
            Address::Name(name.into())
        }
    };
    let locality = found.locality.as_deref().map(Locality::parse);
    Some(EntryEndpoint {
        address,
        ports,
        labels: Arc::new(found.labels),
        locality: locality.filter(|found| !found.is_empty()).map(Arc::new),
    })
}
