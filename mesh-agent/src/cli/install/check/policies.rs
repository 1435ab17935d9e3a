//! NetworkPolicies that do not let the mesh's tunnels through. Pure.
//!
//! Between nodes, what pods send each other arrives on TCP port 15008 of the destination, and leaves the
//! source for it. A policy that names the applications' ports alone therefore cuts pods off once they are
//! in the mesh. Only Kubernetes' own policies are read, not those of Cilium or Calico. Source: Kubernetes
//! API reference, NetworkPolicySpec.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_common::ports;

use super::facts::Facts;
use super::selection::{Labels, matches, wanted};
use super::{Finding, some};
use crate::cli::install::settings::Settings;

const CHECK: &str = "network policies";

/// A way through a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

/// Policies that together keep pods from the mesh's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Obstacle {
    namespace: String,
    direction: Direction,
    policies: BTreeSet<String>,
}

/// Judges the policies of pods that are in the mesh, or will be.
pub(super) fn judge(facts: &Facts, settings: &Settings) -> Vec<Finding> {
    let found = obstacles(wanted(facts, settings), &facts.policies);
    if found.is_empty() {
        return vec![Finding::ok(CHECK, "none keeps a pod of the mesh from port 15008")];
    }
    found.into_iter().map(finding).collect()
}

fn finding((obstacle, pods): (Obstacle, Vec<String>)) -> Finding {
    let Obstacle { namespace, direction, policies } = obstacle;
    let policies: Vec<String> = policies.into_iter().collect();
    let (verb, field) = match direction {
        Direction::Ingress => ("into", "ingress"),
        Direction::Egress => ("out of", "egress"),
    };
    let found = format!(
        "{namespace}: {} let TCP {} not {verb} {}",
        some(&policies),
        ports::TUNNEL,
        some(&pods)
    );
    let fix = format!(
        "add to spec.{field} of one of them a rule `{{ports: [{{protocol: TCP, port: {}}}]}}`, for the \
         same peers as the applications' ports",
        ports::TUNNEL
    );
    Finding::failed(CHECK, found, fix)
}

/// What stands in the way of which pods.
fn obstacles<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    policies: &[NetworkPolicy],
) -> BTreeMap<Obstacle, Vec<String>> {
    let mut found: BTreeMap<Obstacle, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for direction in [Direction::Ingress, Direction::Egress] {
            let about = policies.iter().filter(|policy| {
                policy.metadata.namespace == pod.metadata.namespace
                    && isolates(policy, direction)
                    && chooses(policy, pod)
            });
            let about: Vec<&NetworkPolicy> = about.collect();
            // Policies add up: one that lets the port through is enough.
            if about.is_empty() || about.iter().any(|policy| passes(policy, direction)) {
                continue;
            }
            let names = about.iter().filter_map(|policy| policy.metadata.name.clone());
            let obstacle =
                Obstacle { namespace: namespace.clone(), direction, policies: names.collect() };
            found.entry(obstacle).or_default().extend(pod.metadata.name.clone());
        }
    }
    found
}

fn chooses(policy: &NetworkPolicy, pod: &Pod) -> bool {
    let none = Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    selector.is_none_or(|selector| matches(selector, labels))
}

/// Whether a policy makes pods refuse what no policy lets through, this way. Without `policyTypes` every
/// policy does so for ingress, and one with rules for egress does for that too.
fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return direction == Direction::Ingress };
    let types = spec.policy_types.as_deref().unwrap_or_default();
    match direction {
        _ if !types.is_empty() => types.iter().any(|name| *name == format!("{direction:?}")),
        Direction::Ingress => true,
        Direction::Egress => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    }
}

/// Whether a rule of the policy's lets the mesh's port through, for whomever.
fn passes(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match direction {
        Direction::Ingress => {
            let mut rules = spec.ingress.iter().flatten();
            rules.any(|rule| is_open(rule.ports.as_deref()))
        }
        Direction::Egress => {
            let mut rules = spec.egress.iter().flatten();
            rules.any(|rule| is_open(rule.ports.as_deref()))
        }
    }
}

/// A rule without ports is for all of them.
fn is_open(list: Option<&[NetworkPolicyPort]>) -> bool {
    let list = list.unwrap_or_default();
    list.is_empty() || list.iter().any(|port| includes(port, i32::from(ports::TUNNEL)))
}

fn includes(port: &NetworkPolicyPort, wanted: i32) -> bool {
    if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&wanted),
        (Some(IntOrString::Int(only)), None) => *only == wanted,
        // A container's port by name: none of an application's is the mesh's.
        (Some(IntOrString::String(_)), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::facts::read;
    use super::*;

    fn pod(name: &str, app: &str) -> Pod {
        read(json!({"metadata": {"namespace": "shop", "name": name, "labels": {"app": app}}}))
    }

    fn policy(name: &str, spec: Value) -> NetworkPolicy {
        read(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
    }

    /// What is said of the pod `cart-1` (`app=cart`).
    fn said(specs: &[Value]) -> Vec<String> {
        let policies: Vec<NetworkPolicy> = specs
            .iter()
            .zip(["a", "b", "c"])
            .map(|(spec, name)| policy(name, spec.clone()))
            .collect();
        let pods = [pod("cart-1", "cart")];
        obstacles(pods.iter(), &policies).into_iter().map(|found| finding(found).found).collect()
    }

    const IN: &str = "shop: a let TCP 15008 not into cart-1";
    const OUT: &str = "shop: a let TCP 15008 not out of cart-1";

    #[test]
    fn without_policies_everything_passes() {
        assert_eq!(said(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_policy_without_rules_lets_nothing_in() {
        assert_eq!(said(&[json!({"podSelector": {}})]), [IN]);
        assert_eq!(said(&[json!({"podSelector": {}, "policyTypes": ["Ingress"]})]), [IN]);
        assert_eq!(said(&[json!({"podSelector": {}, "policyTypes": ["Egress"]})]), [OUT]);
        let both = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        assert_eq!(said(&[both]), [IN, OUT]);
    }

    #[test]
    fn only_policies_that_choose_the_pod_count() {
        let other = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        assert_eq!(said(&[other]), Vec::<String>::new());
        let own = json!({"podSelector": {"matchLabels": {"app": "cart"}}});
        assert_eq!(said(&[own]), [IN]);
        let elsewhere: NetworkPolicy = read(json!({
            "metadata": {"namespace": "other", "name": "a"}, "spec": {"podSelector": {}},
        }));
        assert!(obstacles([pod("cart-1", "cart")].iter(), &[elsewhere]).is_empty());
    }

    #[test]
    fn a_rule_passes_the_port_by_number_range_or_silence() {
        let with =
            |ports: Value| said(&[json!({"podSelector": {}, "ingress": [{"ports": ports}]})]);
        assert_eq!(with(json!([{"port": 8080}])), [IN]);
        assert_eq!(with(json!([{"port": "http"}])), [IN]);
        assert_eq!(with(json!([{"port": 15008, "protocol": "UDP"}])), [IN]);
        assert_eq!(with(json!([{"port": 8080, "endPort": 15007}])), [IN]);
        let open = Vec::<String>::new();
        assert_eq!(with(json!([{"port": 8080}, {"port": 15008}])), open);
        assert_eq!(with(json!([{"port": 8080, "endPort": 20000}])), open);
        assert_eq!(with(json!([{"protocol": "TCP"}])), open);
        assert_eq!(with(json!([])), open);
        let from = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
        assert_eq!(said(&[from]), open);
    }

    #[test]
    fn policies_add_up() {
        let deny = json!({"podSelector": {}});
        let allow = json!({
            "podSelector": {"matchLabels": {"app": "cart"}},
            "ingress": [{"ports": [{"port": 15008}]}],
        });
        assert_eq!(said(&[deny.clone(), allow]), Vec::<String>::new());
        let web = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]});
        assert_eq!(said(&[deny, web]), ["shop: a, b let TCP 15008 not into cart-1"]);
    }

    #[test]
    fn egress_counts_where_it_is_named_or_has_rules() {
        let dns = json!([{"ports": [{"port": 53, "protocol": "UDP"}]}]);
        let ingress = json!([{}]);
        let implied = json!({"podSelector": {}, "ingress": ingress, "egress": dns});
        assert_eq!(said(&[implied]), [OUT]);
        let named = json!({
            "podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress, "egress": dns,
        });
        assert_eq!(said(&[named]), Vec::<String>::new());
    }

    #[test]
    fn only_pods_of_the_mesh_are_looked_at() {
        let mut facts = Facts {
            pods: vec![pod("cart-1", "cart")],
            policies: vec![policy("a", json!({"podSelector": {}}))],
            namespaces: read(json!([{"metadata": {"name": "shop"}}])),
            ..Facts::default()
        };
        facts.pods[0].status = read(json!({"phase": "Running"}));
        let states = |facts: &Facts| judge(facts, &Settings::default());
        assert_eq!(states(&facts)[0].found, "none keeps a pod of the mesh from port 15008");
        facts.namespaces =
            read(json!([{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}]));
        let found = states(&facts);
        assert_eq!(found[0].found, IN);
        assert!(found[0].fix.contains("add to spec.ingress"), "{}", found[0].fix);
    }
}
