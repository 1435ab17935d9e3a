//! From a typed object to facts in the model's terms, one object at a time: names expanded,
//! expressions built, values checked. What needs other objects is left to `compile`.
//!
//! Pure. Each function reports what it cannot honour; an object with an error is refused whole.

mod balancing;
mod destination_rule;
mod headers;
mod http_action;
mod http_filter;
mod http_match;
mod http_route;
mod l4_route;
mod locality;
mod mesh_config;
mod names;
mod node;
mod numbers;
mod peer_authentication;
mod pod;
mod rate_limit;
mod re2;
mod retries;
mod service;
mod service_entry;
mod traffic_policy;
mod unenforced;
mod upstream_tls;
mod virtual_service;

pub(super) use balancing::Balancing;
pub(super) use destination_rule::{RuleFacts, SubsetFacts, destination_rule};
pub(super) use http_match::{MatchFacts, is_catch_all};
pub(super) use http_route::{RouteFacts, Target};
pub(super) use mesh_config::{MeshFacts, known_keys, mesh_config};
pub(super) use names::{exported, service_host};
pub(super) use node::{LABELS as NODE_LABELS, node};
pub(super) use peer_authentication::{PeerFacts, peer_authentication};
pub use pod::{ENROLLED, StartingPod, starting};
pub(super) use pod::{PodFacts, pod};
pub(super) use rate_limit::{RateLimitFacts, rate_limit};
pub(super) use service::{PortFacts, ServiceFacts, SliceFacts, service, slice};
pub(super) use service_entry::{
    Address, EntryEndpoint, EntryFacts, EntryPort, EntryResolution, service_entry,
};
pub(super) use traffic_policy::{Blocks, PolicyFacts};
pub(super) use unenforced::{UnenforcedFacts, authorization_policy, request_authentication};
pub(super) use upstream_tls::UpstreamTls;
pub(super) use virtual_service::{Reference, VirtualServiceFacts, virtual_service};

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

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

/// An address, or a range of addresses such as `10.0.0.0/8`.
fn network(text: &str) -> Option<IpNet> {
    let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(host)
}
