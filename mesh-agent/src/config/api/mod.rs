//! The Kubernetes objects that the mesh reads, as users write them.
//!
//! Of the core kinds only the fields that the mesh reads are here (a pod costs little memory);
//! Istio's kinds and the mesh's own are whole, for the CRDs are made of them (see `crd`): a field that is not honoured
//! yet is typed [`Unsupported`], so that it is reported rather than taken for a misspelling or
//! swallowed. A kind that is not in [`Kind`] is here for its CRD only. No meaning here: see
//! `translate`.

mod authorization_policy;
mod core;
mod destination_rule;
mod gateway;
mod l4_route;
mod mesh_config;
mod meta;
mod peer_authentication;
mod rate_limit;
mod request_authentication;
mod scalar;
mod schema;
mod service_entry;
mod sidecar;
mod status;
mod telemetry;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub(super) use authorization_policy::AuthorizationPolicy;
pub(super) use core::{
    Conditions, Container, EndpointSlice, Pod, PodSpec, PodStatus, Probe, SERVICE_NAME, Service,
    SlicePort,
};
pub(super) use destination_rule::{
    ConnectionPool, ConsistentHash, DestinationRule, Distribute, Failover, H2UpgradePolicy,
    HttpCookie, HttpPool, LoadBalancer, LocalityLb, OutlierDetection, RetryBudget, SimpleLb,
    TcpKeepalive, TcpPool, Tls, TlsMode, TrafficPolicy, Warmup,
};
pub(super) use gateway::Gateway;
pub(super) use l4_route::{TcpMatch, TcpRoute, TlsMatch, TlsRoute, WeightedDestination};
pub(super) use mesh_config::{KEYS as MESH_CONFIG_KEYS, MeshConfig, OutboundMode};
pub use meta::Labels;
pub(super) use meta::{LabelSelector, Metadata, TargetRef};
pub(super) use peer_authentication::{Mode, PeerAuthentication};
pub(super) use rate_limit::{From, Limit, LimitMatch, RateLimit};
pub(super) use request_authentication::RequestAuthentication;
pub(super) use scalar::{MARK_UNSUPPORTED, Span, UNSUPPORTED};
pub(super) use schema::MARK_LIMIT;
pub(super) use service_entry::{Location, Resolution, ServiceEntry, ServicePort as EntryPort};
pub(super) use sidecar::Sidecar;
pub(super) use status::{ServiceEntryStatus, Status};
pub(super) use telemetry::Telemetry;
pub(super) use virtual_service::{
    Abort, CorsPolicy, Delay, DerivePort, Destination, DirectResponse, Fault, HeaderOperations,
    Headers, HttpMatch, HttpRoute, Mirror, Percent, Redirect, RegexRewrite, Retries, Rewrite,
    RouteDestination, StringMatch, UnmatchedPreflights, VirtualService,
};
pub(super) use workload_entry::WorkloadEntry;
pub(super) use workload_group::WorkloadGroup;

/// Kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1
    Namespace,
    /// core/v1, and of these only labels.
    Node,
    /// core/v1
    Pod,
    /// core/v1
    Service,
    /// discovery.k8s.io/v1
    EndpointSlice,
    /// core/v1
    ServiceAccount,
    /// networking.istio.io
    VirtualService,
    /// networking.istio.io
    DestinationRule,
    /// networking.istio.io
    ServiceEntry,
    /// security.istio.io
    PeerAuthentication,
    /// core/v1, and of these only the one that holds Istio's `MeshConfig`.
    ConfigMap,
    /// security.istio.io; read to say that it is not enforced.
    AuthorizationPolicy,
    /// security.istio.io; read to say that it is not enforced.
    RequestAuthentication,
    /// malha.dev
    RateLimit,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceAccount,
        Self::VirtualService,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::PeerAuthentication,
        Self::ConfigMap,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
        Self::RateLimit,
    ];

    /// As written in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceAccount => "ServiceAccount",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ConfigMap => "ConfigMap",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::RateLimit => "RateLimit",
        }
    }

    /// As written in a path of the API server's.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::ServiceAccount => "serviceaccounts",
            Self::VirtualService => "virtualservices",
            Self::DestinationRule => "destinationrules",
            Self::ServiceEntry => "serviceentries",
            Self::PeerAuthentication => "peerauthentications",
            Self::ConfigMap => "configmaps",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::RequestAuthentication => "requestauthentications",
            Self::RateLimit => "ratelimits",
        }
    }

    /// As written in `apiVersion:`; the first is the one to recommend.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::ServiceAccount
            | Self::ConfigMap => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::VirtualService | Self::DestinationRule | Self::ServiceEntry => &[
                "networking.istio.io/v1",
                "networking.istio.io/v1beta1",
                "networking.istio.io/v1alpha3",
            ],
            Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            Self::RateLimit => &["malha.dev/v1alpha1"],
        }
    }

    /// The only name that the mesh reads objects of the kind by, if there is one.
    pub(super) fn only_name(self) -> Option<&'static str> {
        (self == Self::ConfigMap).then_some("istio")
    }

    /// Whether objects of the kind are in no namespace.
    pub(super) fn is_cluster_scoped(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// The kind of that name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Whether the mesh has a CRD for it (Istio's kinds and its own): such an object is checked for
    /// unknown fields, and its status is written.
    pub(super) fn is_custom(self) -> bool {
        let routes = matches!(self, Self::VirtualService | Self::DestinationRule);
        routes || matches!(self, Self::ServiceEntry | Self::RateLimit) || self.protects()
    }

    /// Whether people rely on the kind to keep others out.
    pub(super) fn protects(self) -> bool {
        matches!(self, Self::PeerAuthentication) || !self.is_enforced()
    }

    /// Whether what an object of the kind says is put in force.
    pub fn is_enforced(self) -> bool {
        !matches!(self, Self::AuthorizationPolicy | Self::RequestAuthentication)
    }
}
