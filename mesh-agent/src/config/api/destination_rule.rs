//! `DestinationRule` of networking.istio.io, whole (istio-surface 1.2). Fields typed
//! [`Unsupported`] are reported as not honoured yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::meta::{LabelSelector, Labels};
use super::scalar::{Span, Unsupported};
use super::schema::{limit, one_of, required};
use super::virtual_service::PortSelector;

/// `DestinationRule.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["host"]))]
pub(in crate::config) struct DestinationRule {
    /// Service that the rule is for; `*.x` for all below `x`.
    pub(in crate::config) host: String,
    /// Namespaces whose clients it is for: `.` its own, `*` all.
    pub(in crate::config) export_to: Vec<String>,
    /// Clients that it is for; all, if unset.
    pub(in crate::config) workload_selector: Option<LabelSelector>,
    /// Named sets of the service's endpoints.
    pub(in crate::config) subsets: Vec<Subset>,
    /// For the whole service.
    pub(in crate::config) traffic_policy: Option<TrafficPolicy>,
}

/// `subsets[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Subset {
    pub(in crate::config) name: Arc<str>,
    /// Labels that the endpoints' pods must have.
    pub(in crate::config) labels: Labels,
    /// Where it says something, in place of the service's.
    pub(in crate::config) traffic_policy: Option<TrafficPolicy>,
}

/// `trafficPolicy`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub(in crate::config) load_balancer: Option<LoadBalancer>,
    /// Limits on connections and requests.
    pub(in crate::config) connection_pool: Option<ConnectionPool>,
    /// When an endpoint that fails is left out.
    pub(in crate::config) outlier_detection: Option<OutlierDetection>,
    /// TLS to the service.
    pub(in crate::config) tls: Option<Tls>,
    /// For single ports, in place of the rest.
    #[schemars(length(max = 4096))]
    pub(in crate::config) port_level_settings: Vec<PortPolicy>,
    /// Connections are sent through a proxy.
    tunnel: Option<Unsupported<Tunnel>>,
    /// The client's address is announced by the PROXY protocol.
    proxy_protocol: Option<Unsupported<ProxyProtocol>>,
    /// Limit on retries, by the number of requests.
    pub(in crate::config) retry_budget: Option<RetryBudget>,
}

/// `trafficPolicy.portLevelSettings[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct PortPolicy {
    /// Of the service.
    pub(in crate::config) port: PortSelector,
    pub(in crate::config) load_balancer: Option<LoadBalancer>,
    pub(in crate::config) connection_pool: Option<ConnectionPool>,
    pub(in crate::config) outlier_detection: Option<OutlierDetection>,
    pub(in crate::config) tls: Option<Tls>,
}

/// `trafficPolicy.loadBalancer`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["simple", "consistentHash"]))]
pub(in crate::config) struct LoadBalancer {
    /// `LEAST_REQUEST`, if unset.
    #[schemars(transform = limit(
        "PASSTHROUGH for a Service with virtual addresses chooses an endpoint at random"
    ))]
    pub(in crate::config) simple: Option<SimpleLb>,
    /// Requests with the same key go to the same endpoint.
    pub(in crate::config) consistent_hash: Option<ConsistentHash>,
    /// Preference for endpoints that are near.
    pub(in crate::config) locality_lb_setting: Option<LocalityLb>,
    zone_aware_lb_setting: Option<Unsupported<ZoneAwareLb>>,
    /// New endpoints get less at first.
    pub(in crate::config) warmup: Option<Warmup>,
    /// Deprecated: `warmup`.
    pub(in crate::config) warmup_duration_secs: Option<Span>,
}

/// `trafficPolicy.loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
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
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct ConnectionPool {
    pub(in crate::config) tcp: Option<TcpPool>,
    pub(in crate::config) http: Option<HttpPool>,
}

/// `trafficPolicy.connectionPool.tcp`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct TcpPool {
    pub(in crate::config) connect_timeout: Option<Span>,
    pub(in crate::config) max_connections: i32,
    #[schemars(transform = limit("of connections outside tunnels"))]
    pub(in crate::config) tcp_keepalive: Option<TcpKeepalive>,
    pub(in crate::config) max_connection_duration: Option<Span>,
    /// `0s` for no limit.
    #[schemars(with = "String")]
    pub(in crate::config) idle_timeout: Option<Span>,
}

/// `trafficPolicy.tls`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Tls {
    #[schemars(transform = limit(
        "within the mesh mutual TLS is used with `DISABLE` too, and carries that of `SIMPLE` and `MUTUAL`"
    ))]
    pub(in crate::config) mode: Option<TlsMode>,
    /// Path in the client's pod, for `MUTUAL`.
    pub(in crate::config) client_certificate: String,
    /// Path in the client's pod, for `MUTUAL`.
    pub(in crate::config) private_key: String,
    /// Path in the client's pod of what the server's certificate is checked against.
    pub(in crate::config) ca_certificates: String,
    /// Secret, in place of the paths.
    #[schemars(transform = limit(
        "only `system`, the agent's roots, with `SIMPLE`; with a Secret connections fail"
    ))]
    pub(in crate::config) credential_name: String,
    /// Names of which the server's certificate must have one.
    pub(in crate::config) subject_alt_names: Vec<String>,
    pub(in crate::config) sni: String,
    /// The server's certificate is not checked.
    pub(in crate::config) insecure_skip_verify: Option<bool>,
    /// Path in the client's pod of revoked certificates.
    pub(in crate::config) ca_crl: String,
}

/// `trafficPolicy.tls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum TlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// `trafficPolicy.connectionPool.tcp.tcpKeepalive`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct TcpKeepalive {
    pub(in crate::config) probes: u32,
    pub(in crate::config) time: Option<Span>,
    pub(in crate::config) interval: Option<Span>,
}

/// `trafficPolicy.loadBalancer.consistentHash`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(
    transform = one_of(["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"]),
    transform = one_of(["ringHash", "maglev"]),
)]
pub(in crate::config) struct ConsistentHash {
    pub(in crate::config) http_header_name: String,
    pub(in crate::config) http_cookie: Option<HttpCookie>,
    pub(in crate::config) use_source_ip: bool,
    pub(in crate::config) http_query_parameter_name: String,
    pub(in crate::config) ring_hash: Option<RingHash>,
    pub(in crate::config) maglev: Option<Maglev>,
    /// Deprecated: `ringHash`.
    #[schemars(transform = limit(RING_LIMIT))]
    pub(in crate::config) minimum_ring_size: u64,
}

/// `trafficPolicy.loadBalancer.consistentHash.httpCookie`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["name"]))]
pub(in crate::config) struct HttpCookie {
    pub(in crate::config) name: String,
    pub(in crate::config) path: String,
    /// `0s` for a cookie of the session; unset, none is made.
    #[schemars(with = "String")]
    pub(in crate::config) ttl: Option<Span>,
    /// Such as `SameSite`.
    pub(in crate::config) attributes: Vec<CookieAttribute>,
}

/// `trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["name"]))]
pub(in crate::config) struct CookieAttribute {
    pub(in crate::config) name: String,
    pub(in crate::config) value: String,
}

/// [`crate::model::LoadBalancer::MAX_RING`].
const RING_LIMIT: &str = "65,536 is used for a larger one";

/// `trafficPolicy.loadBalancer.consistentHash.ringHash`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct RingHash {
    #[schemars(transform = limit(RING_LIMIT))]
    pub(in crate::config) minimum_ring_size: u64,
}

/// `trafficPolicy.loadBalancer.consistentHash.maglev`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Maglev {
    /// A prime.
    #[schemars(transform = limit("262,139 is used for a larger one"))]
    pub(in crate::config) table_size: u64,
}

/// `trafficPolicy.loadBalancer.localityLbSetting`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct LocalityLb {
    pub(in crate::config) enabled: Option<bool>,
    /// Fixed shares.
    pub(in crate::config) distribute: Vec<Distribute>,
    /// Where to go when a region has too few healthy endpoints.
    pub(in crate::config) failover: Vec<Failover>,
    /// Labels that make an endpoint near, the most important first.
    pub(in crate::config) failover_priority: Vec<String>,
}

/// `trafficPolicy.loadBalancer.localityLbSetting.distribute[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Distribute {
    /// `region/zone/subzone` of the client.
    pub(in crate::config) from: String,
    /// Shares by locality; their sum is 100.
    pub(in crate::config) to: BTreeMap<String, u32>,
}

/// A region, and the one in its place.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Failover {
    /// A region.
    pub(in crate::config) from: String,
    /// A region.
    pub(in crate::config) to: String,
}

/// `trafficPolicy.loadBalancer.zoneAwareLbSetting`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct ZoneAwareLb {
    enabled: Option<bool>,
    failover: Vec<Failover>,
    failover_priority: Vec<String>,
    min_cluster_size: Option<u32>,
}

/// `trafficPolicy.loadBalancer.warmup`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["duration"]))]
pub(in crate::config) struct Warmup {
    #[schemars(required)]
    pub(in crate::config) duration: Option<Span>,
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) minimum_percent: Option<f64>,
    #[schemars(range(min = 0))]
    pub(in crate::config) aggression: Option<f64>,
}

/// `trafficPolicy.connectionPool.http`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct HttpPool {
    /// Requests that wait for a connection, HTTP/2 included.
    pub(in crate::config) http1_max_pending_requests: i32,
    /// Requests at one moment, HTTP/1.1 included.
    pub(in crate::config) http2_max_requests: i32,
    pub(in crate::config) max_requests_per_connection: i32,
    /// Retries at one moment.
    pub(in crate::config) max_retries: i32,
    pub(in crate::config) idle_timeout: Option<Span>,
    pub(in crate::config) h2_upgrade_policy: Option<H2UpgradePolicy>,
    pub(in crate::config) use_client_protocol: bool,
    pub(in crate::config) max_concurrent_streams: i32,
    http2_keep_alive: Option<Unsupported<Http2KeepAlive>>,
}

/// `trafficPolicy.connectionPool.http.h2UpgradePolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum H2UpgradePolicy {
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// `trafficPolicy.connectionPool.http.http2KeepAlive`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Http2KeepAlive {
    #[schemars(with = "String")]
    interval: Option<Span>,
    #[schemars(with = "String")]
    timeout: Option<Span>,
}

/// `trafficPolicy.outlierDetection`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct OutlierDetection {
    /// 5, if unset; 0 for never.
    #[serde(rename = "consecutive5xxErrors")]
    pub(in crate::config) consecutive_5xx_errors: Option<u32>,
    /// 502, 503 and 504 in a row; 0 for never.
    pub(in crate::config) consecutive_gateway_errors: Option<u32>,
    pub(in crate::config) consecutive_local_origin_failures: Option<u32>,
    pub(in crate::config) split_external_local_origin_errors: bool,
    /// Time between checks; 10s, if unset.
    pub(in crate::config) interval: Option<Span>,
    /// Times the number of ejections; 30s, if unset.
    pub(in crate::config) base_ejection_time: Option<Span>,
    /// 10, if unset.
    pub(in crate::config) max_ejection_percent: i32,
    pub(in crate::config) min_health_percent: i32,
    /// Statuses that count in place of all 5xx.
    pub(in crate::config) outlier_detection_http_error_codes: Vec<Value>,
    /// Deprecated, ignored.
    #[schemars(transform = limit("deprecated: no effect, as in Istio"))]
    pub(in crate::config) consecutive_errors: i32,
}

/// `trafficPolicy.tunnel`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = required(["targetHost", "targetPort"]))]
struct Tunnel {
    /// `CONNECT` or `POST`.
    protocol: String,
    target_host: String,
    target_port: u32,
}

/// `trafficPolicy.proxyProtocol`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct ProxyProtocol {
    version: Option<ProxyProtocolVersion>,
}

/// `trafficPolicy.proxyProtocol.version`.
#[derive(Debug, Deserialize, JsonSchema)]
enum ProxyProtocolVersion {
    V1,
    V2,
}

/// `trafficPolicy.retryBudget`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct RetryBudget {
    /// Of active and waiting requests; 20, if unset.
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) percent: Option<f64>,
    pub(in crate::config) min_retry_concurrency: u32,
    #[schemars(with = "Unsupported<String>")]
    budget_interval: Option<Unsupported<Span>>,
}
