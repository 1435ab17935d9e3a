//! `DestinationRule` of networking.istio.io, whole (istio-surface 1.2). Fields typed
//! [`Unsupported`] are reported as not honoured yet.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::meta::{LabelSelector, Labels};
use super::scalar::{Span, Unsupported};
use super::virtual_service::PortSelector;

/// `DestinationRule.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct DestinationRule {
    pub(in crate::config) host: String,
    pub(in crate::config) export_to: Vec<String>,
    pub(in crate::config) workload_selector: Option<LabelSelector>,
    pub(in crate::config) subsets: Vec<Subset>,
    pub(in crate::config) traffic_policy: Option<TrafficPolicy>,
}

/// `subsets[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Subset {
    pub(in crate::config) name: Arc<str>,
    pub(in crate::config) labels: Labels,
    pub(in crate::config) traffic_policy: Option<TrafficPolicy>,
}

/// `trafficPolicy`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct TrafficPolicy {
    pub(in crate::config) load_balancer: Option<LoadBalancer>,
    pub(in crate::config) connection_pool: Option<ConnectionPool>,
    outlier_detection: Option<Unsupported<OutlierDetection>>,
    pub(in crate::config) tls: Option<Tls>,
    pub(in crate::config) port_level_settings: Vec<PortPolicy>,
    tunnel: Option<Unsupported>,
    proxy_protocol: Option<Unsupported>,
    retry_budget: Option<Unsupported>,
}

/// `trafficPolicy.portLevelSettings[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct PortPolicy {
    pub(in crate::config) port: PortSelector,
    pub(in crate::config) load_balancer: Option<LoadBalancer>,
    pub(in crate::config) connection_pool: Option<ConnectionPool>,
    outlier_detection: Option<Unsupported<OutlierDetection>>,
    pub(in crate::config) tls: Option<Tls>,
}

/// `trafficPolicy.loadBalancer`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct LoadBalancer {
    pub(in crate::config) simple: Option<SimpleLb>,
    consistent_hash: Option<Unsupported<ConsistentHash>>,
    locality_lb_setting: Option<Unsupported<LocalityLb>>,
    zone_aware_lb_setting: Option<Unsupported>,
    warmup: Option<Unsupported>,
    warmup_duration_secs: Option<Unsupported>,
}

/// `trafficPolicy.loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum SimpleLb {
    Unspecified,
    /// Deprecated name of `LEAST_REQUEST`.
    LeastConn,
    LeastRequest,
    Random,
    RoundRobin,
    Passthrough,
}

/// `trafficPolicy.connectionPool`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct ConnectionPool {
    pub(in crate::config) tcp: Option<TcpPool>,
    http: Option<Unsupported<HttpPool>>,
}

/// `trafficPolicy.connectionPool.tcp`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct TcpPool {
    pub(in crate::config) connect_timeout: Option<Span>,
    max_connections: Option<Unsupported>,
    tcp_keepalive: Option<Unsupported>,
    max_connection_duration: Option<Unsupported>,
    idle_timeout: Option<Unsupported>,
}

/// `trafficPolicy.tls`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Tls {
    pub(in crate::config) mode: Option<TlsMode>,
    client_certificate: Option<Unsupported>,
    private_key: Option<Unsupported>,
    ca_certificates: Option<Unsupported>,
    credential_name: Option<Unsupported>,
    subject_alt_names: Option<Unsupported>,
    sni: Option<Unsupported>,
    insecure_skip_verify: Option<Unsupported>,
    ca_crl: Option<Unsupported>,
}

/// `trafficPolicy.tls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum TlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConsistentHash {
    http_header_name: Option<IgnoredAny>,
    http_cookie: Option<IgnoredAny>,
    use_source_ip: Option<IgnoredAny>,
    http_query_parameter_name: Option<IgnoredAny>,
    ring_hash: Option<IgnoredAny>,
    maglev: Option<IgnoredAny>,
    minimum_ring_size: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LocalityLb {
    enabled: Option<IgnoredAny>,
    distribute: Option<IgnoredAny>,
    failover: Option<IgnoredAny>,
    failover_priority: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpPool {
    http1_max_pending_requests: Option<IgnoredAny>,
    http2_max_requests: Option<IgnoredAny>,
    max_requests_per_connection: Option<IgnoredAny>,
    max_retries: Option<IgnoredAny>,
    idle_timeout: Option<IgnoredAny>,
    h2_upgrade_policy: Option<IgnoredAny>,
    use_client_protocol: Option<IgnoredAny>,
    max_concurrent_streams: Option<IgnoredAny>,
    http2_keep_alive: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct OutlierDetection {
    #[serde(rename = "consecutive5xxErrors")]
    consecutive_5xx_errors: Option<IgnoredAny>,
    consecutive_gateway_errors: Option<IgnoredAny>,
    consecutive_local_origin_failures: Option<IgnoredAny>,
    split_external_local_origin_errors: Option<IgnoredAny>,
    interval: Option<IgnoredAny>,
    base_ejection_time: Option<IgnoredAny>,
    max_ejection_percent: Option<IgnoredAny>,
    min_health_percent: Option<IgnoredAny>,
    outlier_detection_http_error_codes: Option<IgnoredAny>,
    consecutive_errors: Option<IgnoredAny>,
}
