//! Security objects that are not enforced yet: for which pods they are meant. Pure.

use crate::config::api::{self, LabelSelector, Labels, TargetRef};

/// One `AuthorizationPolicy` or `RequestAuthentication`.
#[derive(Debug)]
pub(in crate::config) struct UnenforcedFacts {
    /// Pods that it is for; empty: the whole namespace, or mesh.
    pub(in crate::config) selector: Labels,
    /// It is for gateways alone, and so for no pod.
    pub(in crate::config) gateways_only: bool,
}

/// Translates an `AuthorizationPolicy`.
pub(in crate::config) fn authorization_policy(spec: api::AuthorizationPolicy) -> UnenforcedFacts {
    facts(spec.selector, spec.target_ref, spec.target_refs)
}

/// Translates a `RequestAuthentication`.
pub(in crate::config) fn request_authentication(
    spec: api::RequestAuthentication,
) -> UnenforcedFacts {
    facts(spec.selector, spec.target_ref, spec.target_refs)
}

/// A target that is a Service is taken for the whole namespace: rather too many pods than too few.
fn facts(
    selector: Option<LabelSelector>,
    target: Option<TargetRef>,
    targets: Vec<TargetRef>,
) -> UnenforcedFacts {
    let mut targets = target.iter().chain(&targets).peekable();
    let is_attached = targets.peek().is_some();
    let is_gateway = |target: &TargetRef| matches!(&*target.kind, "Gateway" | "GatewayClass");
    UnenforcedFacts {
        selector: selector.unwrap_or_default().match_labels,
        gateways_only: is_attached && targets.all(is_gateway),
    }
}
