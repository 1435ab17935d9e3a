//! Routes of connections that are passed on unread (Istio `VirtualService`, `tls` and `tcp`),
//! compiled. Field semantics: istio-surface 1.1 and 1.1.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{HostPattern, WeightedDestination, Workload};

/// `tls[]` and `tcp[]`, each in order. A connection whose server name is known is held against
/// `tls` first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct L4Routes {
    /// `tls[]`.
    pub tls: Vec<L4Rule>,
    /// `tcp[]`.
    pub tcp: Vec<L4Rule>,
}

/// One entry of `tls[]` or `tcp[]`.
#[derive(Clone, Debug, PartialEq)]
pub struct L4Rule {
    /// Any of these; empty matches all. Entries that cannot apply in the mesh are gone.
    pub matches: Vec<L4Match>,
    /// At least one; without changes of headers.
    pub destinations: Vec<WeightedDestination>,
    /// Sum of the weights; at least 1.
    pub total_weight: u32,
}

/// One entry of `match[]`: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct L4Match {
    /// `sniHosts`, of which one must match; empty in `tcp[]`.
    pub sni_hosts: Vec<HostPattern>,
    /// Service port that the client addressed.
    pub port: Option<u16>,
    /// `destinationSubnets`, one of which has the address that the client dialled; empty: any.
    pub destination_subnets: Vec<IpNet>,
    /// `sourceSubnet`.
    pub source_subnet: Option<IpNet>,
    /// Labels of the client's pod.
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the client's pod.
    pub source_namespace: Option<Arc<str>>,
}

/// What of a connection decides where it goes.
#[derive(Clone, Copy, Debug)]
pub struct L4Facts<'a> {
    /// The client's pod.
    pub source: &'a Workload,
    /// The client's address.
    pub peer: IpAddr,
    /// The address that it dialled.
    pub dialled: SocketAddr,
    /// The service port that this stands for.
    pub port: u16,
    /// The server name of its TLS, in lower case.
    pub sni: Option<&'a str>,
}

impl L4Routes {
    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.tls.is_empty() && self.tcp.is_empty()
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &L4Rule> {
        self.tls.iter().chain(&self.tcp)
    }

    /// Every rule, to be changed.
    pub fn rules_mut(&mut self) -> impl Iterator<Item = &mut L4Rule> {
        self.tls.iter_mut().chain(&mut self.tcp)
    }

    /// The rule for a connection. `None`: it goes to the service that it addressed.
    pub fn route(&self, facts: &L4Facts<'_>) -> Option<&L4Rule> {
        let tls = facts.sni.map_or(&[][..], |_| &self.tls);
        tls.iter().chain(&self.tcp).find(|rule| rule.holds(facts))
    }
}

impl L4Rule {
    fn holds(&self, facts: &L4Facts<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|entry| entry.holds(facts))
    }
}

impl L4Match {
    fn holds(&self, facts: &L4Facts<'_>) -> bool {
        let names = |host: &HostPattern| facts.sni.is_some_and(|sni| host.matches(sni));
        let source = facts.source;
        (self.sni_hosts.is_empty() || self.sni_hosts.iter().any(names))
            && self.port.is_none_or(|port| port == facts.port)
            && (self.destination_subnets.is_empty()
                || self.destination_subnets.iter().any(|net| net.contains(&facts.dialled.ip())))
            && self.source_subnet.is_none_or(|net| net.contains(&facts.peer))
            && self.source_namespace.as_ref().is_none_or(|name| *name == source.name.namespace)
            && source.has_labels(&self.source_labels)
    }
}
