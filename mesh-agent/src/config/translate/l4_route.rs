//! `VirtualService`, `tls[]` and `tcp[]` (istio-surface 1.1 and 1.1.1). Pure.

use ipnet::IpNet;

use super::http_action::{destinations, total_weight};
use super::http_match::MESH;
use super::names::is_host;
use super::virtual_service::Reference;
use super::{Scope, network, port_number};
use crate::config::api::{self, Labels, RouteDestination};
use crate::config::diagnostic::Report;
use crate::model::{HostPattern, L4Match, L4Routes, L4Rule, WeightedDestination};

/// The rules for clients in the mesh. `hosts`: those of the object, as written and expanded.
pub(super) fn routes(
    (tls, tcp): (Vec<api::TlsRoute>, Vec<api::TcpRoute>),
    hosts: (&[String], &[HostPattern]),
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> L4Routes {
    let mut found = L4Routes::default();
    for (index, route) in tls.into_iter().enumerate() {
        let field = format!("spec.tls[{index}]");
        if route.r#match.is_empty() {
            report.error(format!("{field}.match"), "missing: a TLS route is chosen by `sniHosts`");
        }
        let entries = route.r#match.into_iter().map(Entry::from);
        let kept = matches(entries.collect(), &format!("{field}.match"), report, |sni, at, to| {
            server_name(sni, hosts, at, to)
        });
        found.tls.extend(rule(kept, (route.route, &field), scope, references, report));
    }
    for (index, route) in tcp.into_iter().enumerate() {
        let field = format!("spec.tcp[{index}]");
        let entries = route.r#match.into_iter().map(Entry::from);
        let kept = matches(entries.collect(), &format!("{field}.match"), report, |_, _, _| None);
        found.tcp.extend(rule(kept, (route.route, &field), scope, references, report));
    }
    found
}

/// An entry of `match[]`, of either list.
struct Entry {
    /// `None`: of `tcp[]`, which has none.
    sni_hosts: Option<Vec<String>>,
    destination_subnets: Vec<String>,
    port: u32,
    source_subnet: String,
    source_labels: Labels,
    source_namespace: String,
    gateways: Vec<String>,
}

impl From<api::TlsMatch> for Entry {
    fn from(found: api::TlsMatch) -> Self {
        Self {
            sni_hosts: Some(found.sni_hosts),
            destination_subnets: found.destination_subnets,
            port: found.port,
            source_subnet: String::new(),
            source_labels: found.source_labels,
            source_namespace: found.source_namespace,
            gateways: found.gateways,
        }
    }
}

impl From<api::TcpMatch> for Entry {
    fn from(found: api::TcpMatch) -> Self {
        Self {
            sni_hosts: None,
            destination_subnets: found.destination_subnets,
            port: found.port,
            source_subnet: found.source_subnet,
            source_labels: found.source_labels,
            source_namespace: found.source_namespace,
            gateways: found.gateways,
        }
    }
}

/// The entries that can apply to clients in the mesh. `None`: there were some, and none can, so the
/// rule is not for them. `name` checks a server name.
fn matches(
    entries: Vec<Entry>,
    field: &str,
    report: &mut Report,
    name: impl Fn(&str, String, &mut Report) -> Option<HostPattern>,
) -> Option<Vec<L4Match>> {
    let all = entries.is_empty();
    let mut kept = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let in_mesh = entry.gateways.is_empty() || entry.gateways.iter().any(|name| name == MESH);
        let mut sni_hosts = Vec::new();
        if let Some(names) = &entry.sni_hosts {
            if names.is_empty() {
                report.error(format!("{field}.sniHosts"), "missing: name at least one");
            }
            for (index, host) in names.iter().enumerate() {
                sni_hosts.extend(name(host, format!("{field}.sniHosts[{index}]"), report));
            }
        }
        let compiled = L4Match { sni_hosts, ..l4_match(entry, &field, report) };
        if in_mesh {
            kept.push(compiled);
        }
    }
    (all || !kept.is_empty()).then_some(kept)
}

fn l4_match(entry: Entry, field: &str, report: &mut Report) -> L4Match {
    let port = match entry.port {
        0 => None,
        number => {
            let port = port_number(number);
            if port.is_none() {
                report.error(format!("{field}.port"), format!("{number} is not a port"));
            }
            port
        }
    };
    let mut net = |text: &str, field: String| -> Option<IpNet> {
        let found = network(text);
        if found.is_none() {
            report.error(field, format!("`{text}` is neither an address nor a range of addresses"));
        }
        found
    };
    let destination_subnets = entry.destination_subnets.iter().enumerate();
    let destination_subnets = destination_subnets
        .filter_map(|(index, text)| net(text, format!("{field}.destinationSubnets[{index}]")))
        .collect();
    let source_subnet = match &*entry.source_subnet {
        "" => None,
        text => net(text, format!("{field}.sourceSubnet")),
    };
    let namespace = Some(entry.source_namespace).filter(|name| !name.is_empty());
    L4Match {
        sni_hosts: Vec::new(),
        port,
        destination_subnets,
        source_subnet,
        source_labels: entry.source_labels,
        source_namespace: namespace.map(|name| name.as_str().into()),
    }
}

/// One of `sniHosts`: a name, perhaps with a leading `*.`, that one of the object's hosts covers.
fn server_name(
    text: &str,
    (written, expanded): (&[String], &[HostPattern]),
    field: String,
    report: &mut Report,
) -> Option<HostPattern> {
    if !is_host(text) {
        report.error(field, format!("`{text}` is not a host name, or `*.` with a name"));
        return None;
    }
    let name = HostPattern::parse(text);
    let mut hosts = written.iter().map(|host| HostPattern::parse(host)).collect::<Vec<_>>();
    hosts.extend_from_slice(expanded);
    if !hosts.iter().any(|host| covers(host, &name)) {
        report.error(field, format!("`{text}` is not among the object's `hosts`"));
        return None;
    }
    Some(name)
}

/// Whether every name of `inner` is one of `outer`.
fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    match (outer, inner) {
        (HostPattern::Any, _) => true,
        (outer, HostPattern::Exact(name)) => outer.matches(name),
        (HostPattern::Suffix(outer), HostPattern::Suffix(inner)) => inner.ends_with(&**outer),
        (_, _) => false,
    }
}

/// A rule; `None` if it is not for clients in the mesh, or in error.
fn rule(
    matches: Option<Vec<L4Match>>,
    (route, field): (Vec<api::WeightedDestination>, &str),
    scope: &Scope<'_>,
    references: &mut Vec<Reference>,
    report: &mut Report,
) -> Option<L4Rule> {
    if route.is_empty() {
        report.error(format!("{field}.route"), "missing: name at least one destination");
        return None;
    }
    let entries = route.into_iter().map(|entry| RouteDestination {
        destination: entry.destination,
        weight: entry.weight,
        headers: None,
    });
    let mut named = Vec::new();
    let destinations: Vec<WeightedDestination> =
        destinations(entries.collect(), field, scope, &mut named, report);
    let total_weight = total_weight(&destinations, field, report);
    let matches = matches?;
    references.append(&mut named);
    Some(L4Rule { matches, destinations, total_weight: total_weight? })
}
