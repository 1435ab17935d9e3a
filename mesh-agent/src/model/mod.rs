//! The compiled values that the data path reads. No I/O, no async, no lock, no clock, and no
//! Kubernetes type: `config` turns objects into these, everything else only reads them.
//!
//! Invariant: a [`Snapshot`] is a value. Once published, nothing in it changes.

mod authority;
mod destination;
mod external;
mod filter;
mod identity;
mod l4_route;
mod locality;
mod origination;
mod policy;
mod rate_limit;
mod retry;
mod route;
mod route_table;
mod selection;
mod service;
mod snapshot;
mod traffic;
mod workload;

pub use authority::is_authority;
pub use destination::{FoundDestination, NamedDestination, ServiceTarget};
pub use external::{External, ExternalServices, Resolution};
pub use filter::{Cors, Fault, FaultAbort, Mirror, Share};
pub use identity::{SpiffeError, SpiffeId};
pub use l4_route::{L4Facts, L4Match, L4Routes, L4Rule};
pub use locality::{
    Distribute, HOSTNAME, Locality, LocalityPattern, LocalitySetting, NETWORK, PriorityLabel,
    REGION, RegionFailover, SUBZONE, TrafficDistribution, ZONE,
};
pub use origination::{Alpn, ClientFiles, TlsOrigination, TlsTarget};
pub use policy::{MtlsMode, PeerPolicy};
pub use rate_limit::{Callers, Rate, RateLimit, RateMatch};
pub use retry::{RetryOn, RetryPolicy};
pub use route::{
    Action, DirectResponse, Forward, HeaderEdit, HeaderOps, HostPattern, HttpMatch, HttpRule,
    KeyMatch, PathRewrite, Redirect, RedirectPath, RedirectPort, Rewrite, StringMatch,
    VirtualService, Visibility, WeightedDestination, path_of,
};
pub use route_table::HttpRules;
pub use selection::Selection;
pub use service::{
    Endpoint, Protocol, Readiness, Service, ServiceKey, ServiceKind, ServicePort, in_use,
};
pub use snapshot::{MeshSettings, OutboundPolicy, Snapshot, Unenforced};
pub use traffic::{
    ConnectionPool, DestinationRule, HashCookie, HashKey, Keepalive, LoadBalancer,
    OutlierDetection, RetryBudget, Subset, TrafficPolicy, Warmup,
};
pub use workload::{CaptureRules, Client, Workload, WorkloadName};

/// Names the object that a value was compiled from, as users write it: `Kind namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Kubernetes kind, e.g. `VirtualService`.
    pub kind: std::sync::Arc<str>,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: std::sync::Arc<str>,
    /// `metadata.name`.
    pub name: std::sync::Arc<str>,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
