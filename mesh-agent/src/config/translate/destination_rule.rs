//! `DestinationRule`: policies block by block, as written; inheritance is resolved in `compile`
//! (istio-surface 1.2 and 1.2.1). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::names::{expand, is_host, visibility};
use super::{Scope, port_number};
use crate::config::api::{self, Labels, SimpleLb, TlsMode};
use crate::config::diagnostic::Report;
use crate::model::{HostPattern, LoadBalancer, Visibility};

/// One `DestinationRule`.
#[derive(Debug)]
pub(in crate::config) struct RuleFacts {
    /// Expanded.
    pub(in crate::config) host: HostPattern,
    /// `exportTo`.
    pub(in crate::config) visibility: Visibility,
    /// `trafficPolicy`.
    pub(in crate::config) policy: Option<PolicyFacts>,
    /// `subsets[]`.
    pub(in crate::config) subsets: Vec<SubsetFacts>,
    /// For some clients only, which is not supported yet: the rule must not touch the others.
    pub(in crate::config) ignored: bool,
}

/// One `subsets[]` entry.
#[derive(Clone, Debug)]
pub(in crate::config) struct SubsetFacts {
    /// Name.
    pub(in crate::config) name: Arc<str>,
    /// Labels.
    pub(in crate::config) labels: Labels,
    /// `trafficPolicy`.
    pub(in crate::config) policy: PolicyFacts,
}

/// A `trafficPolicy`, as written.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct PolicyFacts {
    /// Blocks that hold for every port.
    pub(in crate::config) blocks: Blocks,
    /// `portLevelSettings[]`.
    pub(in crate::config) ports: BTreeMap<u16, Blocks>,
}

/// The blocks that can be overridden, each as a whole. `None`: not written.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct Blocks {
    /// `loadBalancer`.
    pub(in crate::config) load_balancer: Option<LoadBalancer>,
    /// `connectionPool`: its `tcp.connectTimeout`.
    pub(in crate::config) connection_pool: Option<Option<Duration>>,
}

/// Translates one.
pub(in crate::config) fn destination_rule(
    spec: api::DestinationRule,
    scope: &Scope<'_>,
    report: &mut Report,
) -> RuleFacts {
    if spec.host.is_empty() {
        report.error("spec.host", "missing");
    } else if !is_host(&spec.host) {
        report.error("spec.host", format!("`{}` is not a host name", spec.host));
    }
    let ignored = spec.workload_selector.is_some_and(|found| !found.match_labels.is_empty());
    if ignored {
        let message = "not supported yet: the whole rule is ignored";
        report.warning("spec.workloadSelector", message);
    }
    let mut subsets: Vec<SubsetFacts> = Vec::with_capacity(spec.subsets.len());
    for (index, subset) in spec.subsets.into_iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        if !is_label(&subset.name) {
            let message = format!("`{}` is not a name of letters, digits and `-`", subset.name);
            report.error(format!("{field}.name"), message);
            continue;
        }
        if subsets.iter().any(|other| other.name == subset.name) {
            let message = format!("`{}` is there twice: the first counts", subset.name);
            report.warning(format!("{field}.name"), message);
            continue;
        }
        let policy = policy(subset.traffic_policy, &format!("{field}.trafficPolicy"), report);
        let policy = policy.unwrap_or_default();
        subsets.push(SubsetFacts { name: subset.name, labels: subset.labels, policy });
    }
    RuleFacts {
        host: HostPattern::parse(&expand(&spec.host, scope)),
        visibility: visibility(&spec.export_to, scope, report),
        policy: policy(spec.traffic_policy, "spec.trafficPolicy", report),
        subsets,
        ignored,
    }
}

/// RFC 1123 label, of any case, as Istio takes subset names.
fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn policy(
    found: Option<api::TrafficPolicy>,
    field: &str,
    report: &mut Report,
) -> Option<PolicyFacts> {
    let found = found?;
    tls(found.tls.as_ref(), field, report);
    let blocks = blocks(found.load_balancer, found.connection_pool, field, report);
    let mut ports = BTreeMap::new();
    for (index, entry) in found.port_level_settings.into_iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        tls(entry.tls.as_ref(), &field, report);
        let blocks = self::blocks(entry.load_balancer, entry.connection_pool, &field, report);
        match port_number(entry.port.number) {
            Some(port) => {
                ports.entry(port).or_insert(blocks);
            }
            None => report.error(format!("{field}.port.number"), "missing, or not a port"),
        }
    }
    Some(PolicyFacts { blocks, ports })
}

fn blocks(
    load_balancer: Option<api::LoadBalancer>,
    pool: Option<api::ConnectionPool>,
    field: &str,
    report: &mut Report,
) -> Blocks {
    let load_balancer = load_balancer.map(|found| match found.simple {
        None | Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest) => {
            LoadBalancer::LeastRequest
        }
        Some(SimpleLb::RoundRobin) => LoadBalancer::RoundRobin,
        Some(SimpleLb::Random) => LoadBalancer::Random,
        Some(SimpleLb::Passthrough) => LoadBalancer::Passthrough,
    });
    let connection_pool = pool.map(|found| {
        let timeout = found.tcp.and_then(|tcp| tcp.connect_timeout).map(|span| span.0);
        if timeout.is_some_and(|time| time.as_millis() == 0) {
            let field = format!("{field}.connectionPool.tcp.connectTimeout");
            report.error(field, "shorter than 1ms");
        }
        timeout
    });
    Blocks { load_balancer, connection_pool }
}

/// Pods of the mesh speak mutual TLS whatever the rule says; other modes are said to be ignored.
fn tls(found: Option<&api::Tls>, field: &str, report: &mut Report) {
    match found.map(|tls| tls.mode) {
        None | Some(Some(TlsMode::IstioMutual)) => {}
        Some(None | Some(TlsMode::Disable)) => report.warning(
            format!("{field}.tls.mode"),
            "DISABLE is ignored: mutual TLS is used wherever both sides are in the mesh",
        ),
        Some(Some(TlsMode::Simple | TlsMode::Mutual)) => report.warning(
            format!("{field}.tls.mode"),
            "not supported yet, ignored: TLS is not originated towards the destination",
        ),
    }
}
