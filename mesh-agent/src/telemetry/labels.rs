//! Labels of Istio's standard metrics (istio-surface 3.2).
//!
//! Invariant: labels come from configuration, never from a request's bytes, except the response
//! code: so the number of series is bounded by the mesh, not by what clients send.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::flags::ResponseFlags;
use crate::model::{RateLimit, Service, Workload};

const UNKNOWN: &str = "unknown";
/// `destination_service_name` of traffic to no service of the mesh.
pub(super) const PASSTHROUGH: &str = "PassthroughCluster";

/// Which side reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
        .encode(encoder)
    }
}

impl EncodeLabelValue for ResponseFlags {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.to_string().encode(encoder)
    }
}

/// What requests and connections have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CommonLabels {
    pub(super) reporter: Reporter,
    source_workload: Arc<str>,
    source_workload_namespace: Arc<str>,
    source_principal: Arc<str>,
    source_app: Arc<str>,
    source_version: Arc<str>,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
    destination_workload: Arc<str>,
    destination_workload_namespace: Arc<str>,
    destination_principal: Arc<str>,
    destination_app: Arc<str>,
    destination_version: Arc<str>,
    destination_canonical_service: Arc<str>,
    destination_canonical_revision: Arc<str>,
    destination_service: Arc<str>,
    destination_service_name: Arc<str>,
    destination_service_namespace: Arc<str>,
    request_protocol: Arc<str>,
    connection_security_policy: Arc<str>,
}

/// Labels of `istio_requests_total` and its histogram.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    #[prometheus(flatten)]
    pub(super) common: CommonLabels,
    pub(super) response_code: u16,
    /// Empty for what is not gRPC.
    pub(super) grpc_response_status: Arc<str>,
    pub(super) response_flags: ResponseFlags,
}

/// Labels of `malha_rate_limited_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    /// `namespace/name` of the `RateLimit`.
    rate_limit: String,
    /// Which one of its limits.
    limit: Arc<str>,
    source_workload: Arc<str>,
    source_workload_namespace: Arc<str>,
}

/// Labels of `istio_tcp_*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TcpLabels {
    #[prometheus(flatten)]
    pub(super) common: CommonLabels,
    pub(super) response_flags: ResponseFlags,
}

/// Who talks to whom.
pub(super) struct Parties<'a> {
    pub(super) reporter: Reporter,
    pub(super) source: Option<&'a Workload>,
    pub(super) destination: Option<&'a Workload>,
    pub(super) service: Option<&'a Service>,
    pub(super) protocol: &'static str,
    pub(super) mutual_tls: bool,
}

impl LimitLabels {
    pub(super) fn new(limit: &RateLimit, source: &Workload) -> Self {
        Self {
            rate_limit: format!("{}/{}", limit.object.namespace, limit.object.name),
            limit: Arc::clone(&limit.name),
            source_workload: workload_name(source).into(),
            source_workload_namespace: Arc::clone(&source.name.namespace),
        }
    }
}

impl CommonLabels {
    pub(super) fn new(parties: &Parties<'_>) -> Self {
        let source = Side::of(parties.source);
        let destination = Side::of(parties.destination);
        let service = parties.service;
        Self {
            reporter: parties.reporter,
            source_workload: source.workload,
            source_workload_namespace: source.namespace,
            source_principal: source.principal,
            source_app: source.app,
            source_version: source.version,
            source_canonical_service: source.canonical_service,
            source_canonical_revision: source.canonical_revision,
            destination_workload: destination.workload,
            destination_workload_namespace: destination.namespace,
            destination_principal: match parties.mutual_tls {
                true => destination.principal,
                false => UNKNOWN.into(),
            },
            destination_app: destination.app,
            destination_version: destination.version,
            destination_canonical_service: destination.canonical_service,
            destination_canonical_revision: destination.canonical_revision,
            destination_service: service.map_or_else(|| UNKNOWN.into(), |s| s.hostname.clone()),
            destination_service_name: service
                .map_or_else(|| PASSTHROUGH.into(), |s| s.key.name.clone()),
            destination_service_namespace: service
                .map_or_else(|| UNKNOWN.into(), |s| s.key.namespace.clone()),
            request_protocol: parties.protocol.into(),
            connection_security_policy: match parties.mutual_tls {
                true => "mutual_tls".into(),
                false => UNKNOWN.into(),
            },
        }
    }
}

struct Side {
    workload: Arc<str>,
    namespace: Arc<str>,
    principal: Arc<str>,
    app: Arc<str>,
    version: Arc<str>,
    canonical_service: Arc<str>,
    canonical_revision: Arc<str>,
}

impl Side {
    fn of(workload: Option<&Workload>) -> Self {
        let unknown = || Arc::from(UNKNOWN);
        let Some(pod) = workload else {
            return Self {
                workload: unknown(),
                namespace: unknown(),
                principal: unknown(),
                app: unknown(),
                version: unknown(),
                canonical_service: unknown(),
                canonical_revision: "latest".into(),
            };
        };
        let label = |keys: &[&str]| keys.iter().find_map(|key| pod.labels.get(*key)).cloned();
        Self {
            workload: workload_name(pod).into(),
            namespace: Arc::clone(&pod.name.namespace),
            principal: pod.identity.to_string().into(),
            app: label(&["app"]).unwrap_or_else(unknown),
            version: label(&["version"]).unwrap_or_else(unknown),
            canonical_service: pod.canonical_name().into(),
            canonical_revision: label(&[
                "service.istio.io/canonical-revision",
                "app.kubernetes.io/version",
                "version",
            ])
            .unwrap_or_else(|| "latest".into()),
        }
    }
}

/// The controller that made the pod, read off the labels that controllers put on their pods:
/// `web-5d9c-x2x7k` with `pod-template-hash: 5d9c` is `web`. A pod without them is its own workload.
pub(super) fn workload_name(pod: &Workload) -> &str {
    let name = &*pod.name.name;
    let before = |cut: &str| name.rfind(cut).map(|at| &name[..at]);
    if let Some(hash) = pod.labels.get("pod-template-hash") {
        return before(&format!("-{hash}-")).unwrap_or(name);
    }
    let by_controller = ["statefulset.kubernetes.io/pod-name", "controller-revision-hash"].iter();
    match by_controller.filter(|key| pod.labels.contains_key(**key)).count() {
        0 => name,
        _ => before("-").unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_named_by_their_controller() {
        let cases = [
            ("web-5d9c-x2x7k", vec![("pod-template-hash", "5d9c")], "web"),
            ("web", vec![("pod-template-hash", "5d9c")], "web"),
            ("db-0", vec![("statefulset.kubernetes.io/pod-name", "db-0")], "db"),
            ("agent-x2x7k", vec![("controller-revision-hash", "abc")], "agent"),
            ("plain-pod", vec![], "plain-pod"),
        ];
        for (name, labels, expected) in cases {
            let mut pod = (*crate::telemetry::request::tests::pod(name)).clone();
            pod.labels = labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
            assert_eq!(workload_name(&pod), expected);
        }
    }
}
