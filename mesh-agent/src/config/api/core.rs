//! Core kinds: Pod, Service, EndpointSlice. Of Namespace, Node and ServiceAccount only the metadata is
//! read. Fields that the mesh does not read are not here: a deliberate choice, for memory per pod.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use super::meta::Labels;

/// `Pod`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Pod {
    pub(in crate::config) spec: PodSpec,
    pub(in crate::config) status: PodStatus,
}

/// `Pod.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct PodSpec {
    pub(in crate::config) node_name: Arc<str>,
    pub(in crate::config) service_account_name: String,
    /// Deprecated name of `serviceAccountName`.
    pub(in crate::config) service_account: String,
    pub(in crate::config) host_network: bool,
    pub(in crate::config) runtime_class_name: String,
    pub(in crate::config) containers: Vec<Container>,
    pub(in crate::config) init_containers: Vec<Container>,
}

/// `Pod.spec.containers[]`: what the kubelet connects to.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Container {
    pub(in crate::config) ports: Vec<ContainerPort>,
    pub(in crate::config) liveness_probe: Option<Probe>,
    pub(in crate::config) readiness_probe: Option<Probe>,
    pub(in crate::config) startup_probe: Option<Probe>,
    pub(in crate::config) lifecycle: Option<Lifecycle>,
}

/// `Pod.spec.containers[].ports[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct ContainerPort {
    pub(in crate::config) name: String,
    pub(in crate::config) container_port: u16,
}

/// `Pod.spec.containers[].lifecycle`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Lifecycle {
    pub(in crate::config) post_start: Option<Probe>,
    pub(in crate::config) pre_stop: Option<Probe>,
}

/// A probe, or a hook, which has the same actions.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Probe {
    pub(in crate::config) http_get: Option<ProbeTarget>,
    pub(in crate::config) tcp_socket: Option<ProbeTarget>,
    pub(in crate::config) grpc: Option<ProbeTarget>,
}

/// Where a probe connects to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct ProbeTarget {
    /// Another host than the pod, which is none of the mesh's business.
    pub(in crate::config) host: String,
    /// A number, or the name of one of the container's ports.
    pub(in crate::config) port: Option<serde_json::Value>,
}

/// `Pod.status`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct PodStatus {
    pub(in crate::config) phase: String,
    #[serde(rename = "podIP")]
    pub(in crate::config) pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pub(in crate::config) pod_ips: Vec<PodIp>,
    pub(in crate::config) conditions: Vec<PodCondition>,
}

/// `Pod.status.conditions[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct PodCondition {
    pub(in crate::config) r#type: String,
    /// `True`, `False` or `Unknown`.
    pub(in crate::config) status: String,
}

/// `Pod.status.podIPs[]`.
#[derive(Debug, Deserialize)]
pub(in crate::config) struct PodIp {
    pub(in crate::config) ip: IpAddr,
}

/// `Service`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Service {
    pub(in crate::config) spec: ServiceSpec,
    pub(in crate::config) status: ServiceStatus,
}

/// `Service.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct ServiceSpec {
    pub(in crate::config) r#type: String,
    #[serde(rename = "clusterIP")]
    pub(in crate::config) cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub(in crate::config) cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    pub(in crate::config) external_ips: Vec<IpAddr>,
    pub(in crate::config) external_name: String,
    pub(in crate::config) ports: Vec<ServicePort>,
    pub(in crate::config) publish_not_ready_addresses: bool,
    pub(in crate::config) session_affinity: String,
    pub(in crate::config) traffic_distribution: Option<String>,
}

/// `Service.spec.ports[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct ServicePort {
    pub(in crate::config) name: Arc<str>,
    pub(in crate::config) port: u16,
    pub(in crate::config) protocol: String,
    pub(in crate::config) app_protocol: Option<String>,
}

/// `Service.status`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct ServiceStatus {
    pub(in crate::config) load_balancer: LoadBalancerStatus,
}

/// `Service.status.loadBalancer`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct LoadBalancerStatus {
    pub(in crate::config) ingress: Vec<Ingress>,
}

/// `Service.status.loadBalancer.ingress[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Ingress {
    pub(in crate::config) ip: Option<IpAddr>,
}

/// `EndpointSlice` of discovery.k8s.io/v1.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct EndpointSlice {
    pub(in crate::config) address_type: String,
    pub(in crate::config) endpoints: Vec<SliceEndpoint>,
    pub(in crate::config) ports: Vec<SlicePort>,
}

/// `EndpointSlice.endpoints[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct SliceEndpoint {
    pub(in crate::config) addresses: Vec<IpAddr>,
    pub(in crate::config) conditions: Conditions,
    pub(in crate::config) target_ref: Option<TargetRef>,
    pub(in crate::config) zone: Option<Arc<str>>,
}

/// `EndpointSlice.endpoints[].conditions`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Conditions {
    /// Unset counts as ready.
    pub(in crate::config) ready: Option<bool>,
    /// Unset counts as `ready` says.
    pub(in crate::config) serving: Option<bool>,
    pub(in crate::config) terminating: Option<bool>,
}

/// `EndpointSlice.endpoints[].targetRef`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct TargetRef {
    pub(in crate::config) kind: String,
    pub(in crate::config) name: Arc<str>,
    pub(in crate::config) namespace: Option<Arc<str>>,
}

/// `EndpointSlice.ports[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct SlicePort {
    pub(in crate::config) name: Arc<str>,
    pub(in crate::config) port: Option<u16>,
    pub(in crate::config) protocol: String,
}

/// Label that ties a slice to its service.
pub(in crate::config) const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl EndpointSlice {
    /// The service that the slice belongs to.
    pub(in crate::config) fn service(labels: &Labels) -> Option<Arc<str>> {
        labels.get(SERVICE_NAME).cloned()
    }
}
