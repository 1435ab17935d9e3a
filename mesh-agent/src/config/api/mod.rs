//! The Kubernetes objects that the mesh reads, as users write them.
//!
//! Of the core kinds only the fields that the mesh reads are here (a pod costs little memory);
//! Istio's kinds are whole: a field that is not honoured yet is typed [`Unsupported`], so that it
//! is reported rather than taken for a misspelling or swallowed. No meaning here: see `translate`.

mod core;
mod destination_rule;
mod meta;
mod peer_authentication;
mod scalar;
mod virtual_service;

pub(super) use core::{
    Conditions, EndpointSlice, Pod, PodSpec, PodStatus, SERVICE_NAME, Service, SlicePort,
};
pub(super) use destination_rule::{
    ConnectionPool, DestinationRule, LoadBalancer, SimpleLb, Tls, TlsMode, TrafficPolicy,
};
pub(super) use meta::{Labels, Metadata};
pub(super) use peer_authentication::{Mode, PeerAuthentication};
pub(super) use scalar::UNSUPPORTED;
pub(super) use virtual_service::{
    DerivePort, Destination, DirectResponse, HeaderOperations, Headers, HttpMatch, HttpRoute,
    Redirect, RegexRewrite, Rewrite, RouteDestination, StringMatch, VirtualService,
};

/// Kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1
    Namespace,
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
    /// security.istio.io
    PeerAuthentication,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceAccount,
        Self::VirtualService,
        Self::DestinationRule,
        Self::PeerAuthentication,
    ];

    /// As written in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceAccount => "ServiceAccount",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// As written in `apiVersion:`; the first is the one to recommend.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Pod | Self::Service | Self::ServiceAccount => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::VirtualService | Self::DestinationRule => &[
                "networking.istio.io/v1",
                "networking.istio.io/v1beta1",
                "networking.istio.io/v1alpha3",
            ],
            Self::PeerAuthentication => &["security.istio.io/v1", "security.istio.io/v1beta1"],
        }
    }

    /// Istio's kinds are checked for unknown fields, core kinds are not.
    pub(super) fn is_istio(self) -> bool {
        matches!(self, Self::VirtualService | Self::DestinationRule | Self::PeerAuthentication)
    }
}
