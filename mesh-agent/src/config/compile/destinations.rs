//! Destination rules: objects of one host and namespace merged, inheritance of policy blocks
//! resolved (istio-surface 1.2.1).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::routes::no_service;
use super::view::{Entry, View};
use super::{no_effect, share};
use crate::config::api::Labels;
use crate::config::diagnostic::{Diagnostic, Report};
use crate::config::translate::{
    Balancing, Blocks, PolicyFacts, RuleFacts, SubsetFacts, UpstreamTls, exported,
};
use crate::model::{
    DestinationRule, HostPattern, ObjectRef, Service, ServiceKind, Snapshot, Subset, TrafficPolicy,
    Visibility,
};

/// Objects that count as one: same namespace, host, `exportTo` and `workloadSelector`.
struct Group<'a> {
    object: ObjectRef,
    host: &'a HostPattern,
    visibility: Visibility,
    workload_selector: &'a Labels,
    /// Of the oldest object that has one.
    policy: Option<(&'a PolicyFacts, ObjectRef)>,
    subsets: Vec<&'a SubsetFacts>,
}

/// Compiles every rule into `snapshot`.
pub(super) fn compile(
    view: &View<'_>,
    previous: &Snapshot,
    snapshot: &mut Snapshot,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut groups: HashMap<&str, Vec<Group<'_>>> = HashMap::new();
    for entry in &view.rules {
        let mut report = entry.report();
        if let HostPattern::Exact(host) = &entry.facts.host {
            match snapshot.services_by_host.get(host) {
                None => report.warning("spec.host", no_service(host, snapshot)),
                Some(service) => check_tls(entry.facts, service, &mut report),
            }
        }
        no_effect::check(entry.facts, snapshot, &mut report);
        diagnostics.extend(report.into_diagnostics());
        let namespace = &entry.object.key.namespace;
        let default = || exported(&view.mesh.destination_rules, namespace);
        let visibility = entry.facts.visibility.clone().unwrap_or_else(default);
        merge(groups.entry(namespace).or_default(), (entry, visibility), diagnostics);
    }
    for (namespace, groups) in groups {
        let before = previous.destination_rules.get(namespace);
        let mut rules: Vec<Arc<DestinationRule>> = groups
            .into_iter()
            .map(|group| {
                let rule = resolve(group);
                let same = |other: &&Arc<DestinationRule>| other.object == rule.object;
                let before = before.and_then(|rules| rules.iter().find(same));
                share(rule, before)
            })
            .collect();
        // Those for some clients before those for all; then the oldest.
        rules.sort_by_key(|rule| {
            (std::cmp::Reverse(rule.host.specificity()), rule.workload_selector.is_empty())
        });
        snapshot.destination_rules.insert(namespace.into(), rules);
    }
}

/// Says where TLS is asked for and not to be had.
fn check_tls(facts: &RuleFacts, service: &Service, report: &mut Report) {
    let of_rule = facts.policy.iter().chain(facts.subsets.iter().map(|subset| &subset.policy));
    let mut blocks =
        of_rule.flat_map(|policy| [&policy.blocks].into_iter().chain(policy.ports.values()));
    let is_originated = |blocks: &Blocks| matches!(blocks.tls, Some(UpstreamTls::Originated(_)));
    if matches!(service.kind, ServiceKind::ExternalName(_)) && blocks.any(is_originated) {
        let message = "`tls` has no effect: the host is a Service of type ExternalName, whose \
                       connections go on as they are; describe it by a ServiceEntry";
        report.warning("spec.host", message);
    }
}

/// Adds an object to its group; objects come oldest first.
fn merge<'a>(
    groups: &mut Vec<Group<'a>>,
    (entry, visibility): (&Entry<'a, RuleFacts>, Visibility),
    diagnostics: &mut Vec<Diagnostic>,
) {
    let (facts, object) = (entry.facts, entry.object.key.to_ref());
    let policy = || facts.policy.as_ref().map(|policy| (policy, object.clone()));
    let same = |group: &&mut Group<'_>| {
        *group.host == facts.host
            && group.visibility == visibility
            && *group.workload_selector == facts.workload_selector
    };
    let Some(group) = groups.iter_mut().find(same) else {
        return groups.push(Group {
            host: &facts.host,
            visibility,
            workload_selector: &facts.workload_selector,
            policy: policy(),
            subsets: facts.subsets.iter().collect(),
            object,
        });
    };
    let mut report = entry.report();
    for (index, subset) in facts.subsets.iter().enumerate() {
        if group.subsets.iter().any(|other| other.name == subset.name) {
            let message = format!(
                "`{}` is defined by an older rule of this host already, which counts",
                subset.name
            );
            report.warning(format!("spec.subsets[{index}].name"), message);
        } else {
            group.subsets.push(subset);
        }
    }
    match (&group.policy, policy()) {
        (Some((_, holder)), Some(_)) => report.warning(
            "spec.trafficPolicy",
            format!("no effect: {holder}, which is older, has one for this host"),
        ),
        (None, found) => group.policy = found,
        (Some(_), None) => {}
    }
    diagnostics.extend(report.into_diagnostics());
}

fn resolve(group: Group<'_>) -> DestinationRule {
    let nothing = PolicyFacts::default();
    let top = group.policy.as_ref().map_or(&nothing, |(policy, _)| policy);
    let subsets = group.subsets.iter().map(|subset| Subset {
        name: Arc::clone(&subset.name),
        labels: subset.labels.clone(),
        policy: effective(top, Some(&subset.policy), None),
        port_policies: by_port(top, Some(&subset.policy)),
    });
    DestinationRule {
        subsets: subsets.collect(),
        host: group.host.clone(),
        visibility: group.visibility,
        workload_selector: group.workload_selector.clone(),
        policy: effective(top, None, None),
        port_policies: by_port(top, None),
        object: group.object,
    }
}

/// Policies of the ports where they differ.
fn by_port(top: &PolicyFacts, subset: Option<&PolicyFacts>) -> BTreeMap<u16, TrafficPolicy> {
    let general = effective(top, subset, None);
    let of_subset = subset.into_iter().flat_map(|policy| policy.ports.keys());
    let ports: BTreeSet<u16> = top.ports.keys().chain(of_subset).copied().collect();
    ports
        .into_iter()
        .map(|port| (port, effective(top, subset, Some(port))))
        .filter(|(_, policy)| *policy != general)
        .collect()
}

/// A port's entry replaces its level's blocks altogether, also those it does not write. A subset
/// without an entry for the port overrides only the blocks that it writes, each as a whole. No entry
/// has a `retryBudget`: a level's is lost with its blocks, and a subset's entry leaves the base's.
fn effective(top: &PolicyFacts, subset: Option<&PolicyFacts>, port: Option<u16>) -> TrafficPolicy {
    let entry = |policy: &PolicyFacts| port.and_then(|port| policy.ports.get(&port).cloned());
    let base = entry(top).unwrap_or_else(|| top.blocks.clone());
    let blocks = match subset.map(|subset| (entry(subset), &subset.blocks)) {
        None => base,
        Some((Some(entry), _)) => Blocks { retry_budget: base.retry_budget, ..entry },
        Some((None, own)) => Blocks {
            load_balancer: own.load_balancer.clone().or(base.load_balancer),
            connection_pool: own.connection_pool.clone().or(base.connection_pool),
            outlier: own.outlier.clone().or(base.outlier),
            retry_budget: own.retry_budget.or(base.retry_budget),
            tls: own.tls.clone().or(base.tls),
        },
    };
    let Balancing { load_balancer, hash_key, locality, warmup } =
        blocks.load_balancer.unwrap_or_default();
    TrafficPolicy {
        load_balancer,
        hash_key,
        locality,
        warmup,
        pool: blocks.connection_pool.unwrap_or_default(),
        outlier: blocks.outlier,
        retry_budget: blocks.retry_budget,
        tls: blocks.tls.and_then(UpstreamTls::originated),
    }
}
