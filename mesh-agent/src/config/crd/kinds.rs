//! The kinds: names, versions and columns as `kubectl get` shows them with Istio's CRDs.

use serde_json::Value;

use super::structural::schema;
use crate::config::api;

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const MALHA: &str = "malha.dev";
const TELEMETRY: &str = "telemetry.istio.io";

/// Of `networking.istio.io`: all of them are still written by users.
const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];

/// Upstream stores the older one still.
const TELEMETRY_VERSIONS: &[&str] = &["v1", "v1alpha1"];

const AGE: Column =
    Column { name: "Age", path: ".metadata.creationTimestamp", description: "Time since creation" };

/// One kind.
pub(super) struct Definition {
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
    pub(super) short: Option<&'static str>,
    pub(super) group: &'static str,
    /// Served, the one to recommend first.
    pub(super) versions: &'static [&'static str],
    pub(super) stored: &'static str,
    pub(super) columns: &'static [Column],
    pub(super) spec: fn() -> Value,
    /// Whether an object without `spec` makes no sense.
    pub(super) spec_required: bool,
    pub(super) status: fn() -> Value,
}

/// A column of `kubectl get`.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) description: &'static str,
}

/// What most kinds of `networking.istio.io` share.
const ROUTING: Definition = Definition {
    kind: "",
    plural: "",
    short: None,
    group: NETWORKING,
    versions: NETWORKING_VERSIONS,
    stored: "v1",
    columns: &[],
    spec: || Value::Null,
    spec_required: false,
    status: schema::<api::Status>,
};

/// What the kinds of `security.istio.io` share.
const POLICY: Definition = Definition { group: SECURITY, versions: SECURITY_VERSIONS, ..ROUTING };

/// All kinds, in the order of their CRDs' names within a group.
pub(super) const KINDS: &[Definition] = &[
    Definition {
        kind: "DestinationRule",
        plural: "destinationrules",
        short: Some("dr"),
        columns: &[
            Column { name: "Host", path: ".spec.host", description: "Service that it is for" },
            AGE,
        ],
        spec: schema::<api::DestinationRule>,
        ..ROUTING
    },
    Definition {
        kind: "Gateway",
        plural: "gateways",
        short: Some("gw"),
        spec: schema::<api::Gateway>,
        ..ROUTING
    },
    Definition {
        kind: "ServiceEntry",
        plural: "serviceentries",
        short: Some("se"),
        columns: &[
            Column { name: "Hosts", path: ".spec.hosts", description: "Hosts of the service" },
            Column {
                name: "Location",
                path: ".spec.location",
                description: "Whether it is part of the mesh",
            },
            Column {
                name: "Resolution",
                path: ".spec.resolution",
                description: "Where the addresses of endpoints come from",
            },
            AGE,
        ],
        spec: schema::<api::ServiceEntry>,
        spec_required: true,
        status: schema::<api::ServiceEntryStatus>,
        ..ROUTING
    },
    Definition { kind: "Sidecar", plural: "sidecars", spec: schema::<api::Sidecar>, ..ROUTING },
    Definition {
        kind: "VirtualService",
        plural: "virtualservices",
        short: Some("vs"),
        columns: &[
            Column {
                name: "Gateways",
                path: ".spec.gateways",
                description: "Gateways that the routes are for",
            },
            Column {
                name: "Hosts",
                path: ".spec.hosts",
                description: "Hosts that the routes are for",
            },
            AGE,
        ],
        spec: schema::<api::VirtualService>,
        ..ROUTING
    },
    Definition {
        kind: "WorkloadEntry",
        plural: "workloadentries",
        short: Some("we"),
        columns: &[
            AGE,
            Column {
                name: "Address",
                path: ".spec.address",
                description: "Address of the workload",
            },
        ],
        spec: schema::<api::WorkloadEntry>,
        spec_required: true,
        ..ROUTING
    },
    Definition {
        kind: "WorkloadGroup",
        plural: "workloadgroups",
        short: Some("wg"),
        columns: &[AGE],
        spec: schema::<api::WorkloadGroup>,
        spec_required: true,
        ..ROUTING
    },
    Definition {
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: Some("ap"),
        columns: &[
            Column {
                name: "Action",
                path: ".spec.action",
                description: "What becomes of the requests",
            },
            AGE,
        ],
        spec: schema::<api::AuthorizationPolicy>,
        ..POLICY
    },
    Definition {
        kind: "PeerAuthentication",
        plural: "peerauthentications",
        short: Some("pa"),
        columns: &[
            Column { name: "Mode", path: ".spec.mtls.mode", description: "Mode of mutual TLS" },
            AGE,
        ],
        spec: schema::<api::PeerAuthentication>,
        ..POLICY
    },
    Definition {
        kind: "RequestAuthentication",
        plural: "requestauthentications",
        short: Some("ra"),
        spec: schema::<api::RequestAuthentication>,
        ..POLICY
    },
    Definition {
        kind: "RateLimit",
        plural: "ratelimits",
        short: Some("rl"),
        group: MALHA,
        versions: &["v1alpha1"],
        stored: "v1alpha1",
        columns: &[
            Column { name: "Host", path: ".spec.host", description: "Service that it is for" },
            Column {
                name: "Accepted",
                path: ".status.conditions[?(@.type==\"Accepted\")].status",
                description: "Whether it is in force as it is now",
            },
            AGE,
        ],
        spec: schema::<api::RateLimit>,
        spec_required: true,
        ..ROUTING
    },
    Definition {
        kind: "Telemetry",
        plural: "telemetries",
        short: Some("telemetry"),
        group: TELEMETRY,
        versions: TELEMETRY_VERSIONS,
        stored: "v1alpha1",
        columns: &[AGE],
        spec: schema::<api::Telemetry>,
        ..ROUTING
    },
];
