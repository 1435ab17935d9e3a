//! From a typed object to facts in the model's terms, one object at a time: names expanded,
//! expressions built, values checked. What needs other objects is left to `compile`.
//!
//! Pure. Each function reports what it cannot honour; an object with an error is refused whole.

mod destination_rule;
mod headers;
mod http_action;
mod http_match;
mod names;
mod peer_authentication;
mod pod;
mod service;
mod virtual_service;

pub(super) use destination_rule::{Blocks, PolicyFacts, RuleFacts, SubsetFacts, destination_rule};
pub(super) use names::service_host;
pub(super) use peer_authentication::{PeerFacts, peer_authentication};
pub(super) use pod::{PodFacts, pod};
pub(super) use service::{PortFacts, ServiceFacts, SliceFacts, service, slice};
pub(super) use virtual_service::{Reference, VirtualServiceFacts, virtual_service};

use std::sync::Arc;

use crate::model::MeshSettings;

/// What surrounds an object.
pub(super) struct Scope<'a> {
    /// Its namespace.
    pub(super) namespace: &'a Arc<str>,
    /// Names of the mesh.
    pub(super) mesh: &'a MeshSettings,
}

/// A port number that users may write.
fn port_number(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}
