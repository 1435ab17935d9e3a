//! `DestinationRule`: host, subsets and policies, as written; inheritance is resolved in `compile`
//! (istio-surface 1.2 and 1.2.1). Pure.

use std::sync::Arc;

use super::Scope;
use super::names::{expand, is_host, visibility};
use super::traffic_policy::{Blocks, PolicyFacts, policy};
use crate::config::api::{self, Labels};
use crate::config::diagnostic::Report;
use crate::model::{HostPattern, Visibility};

/// One `DestinationRule`.
#[derive(Debug)]
pub(in crate::config) struct RuleFacts {
    /// Expanded.
    pub(in crate::config) host: HostPattern,
    /// `exportTo`, if it has one.
    pub(in crate::config) visibility: Option<Visibility>,
    /// `trafficPolicy`.
    pub(in crate::config) policy: Option<PolicyFacts>,
    /// `subsets[]`.
    pub(in crate::config) subsets: Vec<SubsetFacts>,
    /// `workloadSelector`: clients of the rule's namespace that it is for; empty: all.
    pub(in crate::config) workload_selector: Labels,
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
    let workload_selector = spec.workload_selector.unwrap_or_default().match_labels;
    if !workload_selector.is_empty() {
        for (index, entry) in spec.export_to.iter().enumerate() {
            if entry != "." && **entry != **scope.namespace {
                let message = "no effect: a rule with `workloadSelector` is for its own namespace";
                report.warning(format!("spec.exportTo[{index}]"), message);
            }
        }
    }
    let of_host = policy(spec.traffic_policy, "spec.trafficPolicy", report);
    if let Some(of_host) = &of_host {
        check_failover(of_host, None, "spec.trafficPolicy", report);
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
        let field = format!("{field}.trafficPolicy");
        let policy = policy(subset.traffic_policy, &field, report).unwrap_or_default();
        check_failover(&policy, of_host.as_ref(), &field, report);
        subsets.push(SubsetFacts { name: subset.name, labels: subset.labels, policy });
    }
    RuleFacts {
        host: HostPattern::parse(&expand(&spec.host, scope)),
        visibility: visibility(&spec.export_to, scope, report),
        policy: of_host,
        subsets,
        workload_selector,
    }
}

/// Endpoints come in order of localities only where ejections can empty the first ones, as in Istio.
fn check_failover(
    policy: &PolicyFacts,
    inherited: Option<&PolicyFacts>,
    field: &str,
    report: &mut Report,
) {
    let is_lame = |blocks: &Blocks| {
        let setting = blocks.load_balancer.as_ref().and_then(|found| found.locality.as_ref());
        setting.is_some_and(|found| {
            let orders = !found.failover.is_empty() || !found.failover_priority.is_empty();
            orders && found.enabled && found.distribute.is_empty() && blocks.outlier.is_none()
        })
    };
    let message = "no effect without `outlierDetection`";
    let has_inherited = inherited.is_some_and(|above| above.blocks.outlier.is_some());
    if is_lame(&policy.blocks) && !has_inherited {
        report.warning(format!("{field}.loadBalancer.localityLbSetting"), message);
    }
    for (port, blocks) in &policy.ports {
        if is_lame(blocks) {
            let field = format!("{field}.portLevelSettings");
            report.warning(field, format!("port {port}: `localityLbSetting` has {message}"));
        }
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
