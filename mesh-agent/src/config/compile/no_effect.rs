//! What a destination rule asks for in vain, since its host gives no room for it: reported on the field
//! that asks. The rest of the rule holds. Not here: fields that are not honoured at all (`parse`).

use crate::config::diagnostic::Report;
use crate::config::translate::{Blocks, RuleFacts};
use crate::model::{HostPattern, LoadBalancer, Protocol, Service, ServiceKind, Snapshot};

/// Reports it. Services must be in the snapshot already.
pub(super) fn check(facts: &RuleFacts, snapshot: &Snapshot, report: &mut Report) {
    let HostPattern::Exact(host) = &facts.host else { return };
    let Some(service) = snapshot.services_by_host.get(host) else { return };
    if let ServiceKind::ExternalName(name) = &service.kind {
        let message = format!("no effect: an ExternalName, for which the rules of `{name}` hold");
        return report.warning("spec.host", message);
    }
    let own = facts.policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let subsets = facts.subsets.iter().enumerate();
    let of_subsets =
        subsets.map(|(at, subset)| (format!("spec.subsets[{at}].trafficPolicy"), &subset.policy));
    for (field, policy) in own.chain(of_subsets) {
        check_blocks(service, (&field, None), &policy.blocks, report);
        let field = format!("{field}.portLevelSettings");
        for (port, blocks) in &policy.ports {
            check_blocks(service, (&field, Some(*port)), blocks, report);
        }
    }
}

/// `port`: the one that the blocks are for; `None`: all.
fn check_blocks(
    service: &Service,
    (field, port): (&str, Option<u16>),
    blocks: &Blocks,
    report: &mut Report,
) {
    let balancing = blocks.load_balancer.as_ref();
    let passes = balancing.is_some_and(|found| found.load_balancer == LoadBalancer::Passthrough);
    if service.is_dialled() || passes && service.external().is_some() {
        let endpoint = "the endpoint is the address that a client dials";
        if blocks.outlier.is_some() {
            let message = format!("no effect: {endpoint}, and stays it");
            report.warning(format!("{field}.outlierDetection"), message);
        }
        // A key still chooses among weighted destinations.
        if balancing.is_some_and(|found| found.hash_key.is_none()) && !passes {
            report.warning(format!("{field}.loadBalancer"), format!("no effect: {endpoint}"));
        }
    } else if passes && service.kind == ServiceKind::ClusterIp {
        let message = "PASSTHROUGH has no effect: a virtual address is no endpoint, so one is chosen \
                       at random";
        report.warning(format!("{field}.loadBalancer.simple"), message);
    }
    if service.kind == ServiceKind::Headless && blocks.outlier.is_some() {
        let is_opaque = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Tls);
        let ports = service.ports.iter().filter(|found| is_opaque(found.protocol));
        for found in ports.filter(|found| port.is_none_or(|port| port == found.port)) {
            let message = format!(
                "no effect on port {}: clients choose the pod of a connection that is not HTTP",
                found.port
            );
            report.warning(format!("{field}.outlierDetection"), message);
        }
    }
}
