//! How requests are spread over a service's endpoints (Istio `DestinationRule`).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::HeaderName;

use super::{Endpoint, HostPattern, LocalitySetting, ObjectRef, TlsOrigination, Visibility};

/// `trafficPolicy.loadBalancer`: how an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancer {
    /// Power of two choices over active requests: Istio's default.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Uniformly at random.
    Random,
    /// The address that the client dialled.
    Passthrough,
    /// `consistentHash.ringHash`: the key's place on a ring.
    RingHash {
        /// `minimumRingSize`: places on the ring, at least.
        minimum: u32,
    },
    /// `consistentHash.maglev`: the key's place in a table.
    Maglev {
        /// `tableSize`, a prime.
        size: u32,
    },
}

impl LoadBalancer {
    /// Places on a ring, at most, unless it has more endpoints: 16 octets each, so 1 MiB for a client's
    /// pod and a subset. Envoy, which has one ring for all of a pod, takes up to 8,388,608.
    pub const MAX_RING: u32 = 65_536;
    /// Places in a Maglev table, at most: the largest prime with 1 MiB at 4 octets each.
    pub const MAX_MAGLEV: u32 = 262_139;

    /// Whether the request's key decides.
    pub fn is_hash(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// `loadBalancer.consistentHash`: what of a request is its key. A request without one goes to any
/// endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// `httpHeaderName`.
    Header(HeaderName),
    /// `httpCookie`.
    Cookie(HashCookie),
    /// `useSourceIp`.
    SourceIp,
    /// `httpQueryParameterName`: its first value.
    Query(Arc<str>),
}

/// `consistentHash.httpCookie`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Name.
    pub name: Arc<str>,
    /// What follows the value in `set-cookie` (`; Max-Age=..; Path=..` and attributes); `None`: no
    /// cookie is made for clients that send none.
    pub made: Option<Arc<str>>,
}

/// `loadBalancer.warmup`: a new endpoint's weight grows to its full one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// `duration`.
    pub duration: Duration,
    /// `minimumPercent`, 0 to 100.
    pub minimum_percent: f64,
    /// `aggression`, at least 1: weight = max(minimum, (age / duration)^(1 / aggression)).
    pub aggression: f64,
}

/// `connectionPool`, with defaults filled in. Limits hold for one client workload and one
/// (service, port, subset); `u32::MAX`: none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// `tcp.connectTimeout`; Istio's mesh default is 10 s.
    pub connect_timeout: Duration,
    /// `tcp.maxConnections`.
    pub max_connections: u32,
    /// `tcp.tcpKeepalive`: of sockets that leave the node outside tunnels.
    pub keepalive: Option<Keepalive>,
    /// `tcp.maxConnectionDuration`: of a TCP connection; a pooled HTTP connection that is older serves
    /// no further request.
    pub max_connection_duration: Option<Duration>,
    /// `tcp.idleTimeout`, for TCP; `None`: none.
    pub tcp_idle_timeout: Option<Duration>,
    /// `http.http1MaxPendingRequests`: requests that wait for a connection.
    pub max_pending: u32,
    /// `http.http2MaxRequests`: requests at one moment.
    pub max_requests: u32,
    /// `http.maxRequestsPerConnection`; 0: no limit.
    pub max_requests_per_connection: u32,
    /// `http.maxRetries`: retries at one moment.
    pub max_retries: u32,
    /// `http.idleTimeout`, else what `tcp.idleTimeout` says, where written: of pooled connections.
    pub http_idle_timeout: Option<Duration>,
    /// `http.h2UpgradePolicy: UPGRADE`: HTTP/1.1 ports are spoken to in HTTP/2.
    pub upgrade_to_http2: bool,
    /// `http.useClientProtocol`: the client's version is kept.
    pub use_client_protocol: bool,
    /// `http.maxConcurrentStreams` of one HTTP/2 connection.
    pub max_concurrent_streams: u32,
}

/// `tcpKeepalive` (tcp(7)); what is `None` is the system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// `probes`.
    pub probes: Option<u32>,
    /// `time`.
    pub time: Option<Duration>,
    /// `interval`.
    pub interval: Option<Duration>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            max_connections: u32::MAX,
            keepalive: None,
            max_connection_duration: None,
            tcp_idle_timeout: None,
            max_pending: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: 0,
            max_retries: u32::MAX,
            http_idle_timeout: None,
            upgrade_to_http2: false,
            use_client_protocol: false,
            max_concurrent_streams: u32::MAX,
        }
    }
}

/// `outlierDetection`, with defaults filled in (istio-surface 2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// `consecutive5xxErrors`; 0: never.
    pub consecutive_5xx: u32,
    /// `consecutiveGatewayErrors`; 0: never.
    pub consecutive_gateway: u32,
    /// `consecutiveLocalOriginFailures`; 0: never. Only with `split`.
    pub consecutive_local: u32,
    /// `splitExternalLocalOriginErrors`: failures without an answer count for `consecutive_local`
    /// only.
    pub split: bool,
    /// `interval` between looks at ejected endpoints.
    pub interval: Duration,
    /// `baseEjectionTime`, times the number of ejections in a row.
    pub base_ejection: Duration,
    /// `maxEjectionPercent`; one endpoint may always be ejected.
    pub max_ejection_percent: u32,
    /// `minHealthPercent`: with fewer healthy endpoints, all are used again; 0: never.
    pub min_health_percent: u32,
    /// `outlierDetectionHttpErrorCodes`: statuses that count in place of all 5xx; empty: all 5xx.
    pub error_codes: Arc<[u16]>,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
            error_codes: Arc::default(),
        }
    }
}

/// `retryBudget`: retries at one moment as a share of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// `percent` of active and pending requests.
    pub percent: f64,
    /// `minRetryConcurrency`: always allowed.
    pub min_concurrency: u32,
}

/// Effective policy for one (subset, port): everything inherited is filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// Balancing.
    pub load_balancer: LoadBalancer,
    /// The key, where `load_balancer` hashes.
    pub hash_key: Option<HashKey>,
    /// `loadBalancer.localityLbSetting`; `None`: what the Service says, else the mesh.
    pub locality: Option<Arc<LocalitySetting>>,
    /// `loadBalancer.warmup`; for round robin and least request.
    pub warmup: Option<Warmup>,
    /// `connectionPool`.
    pub pool: ConnectionPool,
    /// `outlierDetection`.
    pub outlier: Option<Arc<OutlierDetection>>,
    /// `retryBudget`; takes the place of `pool.max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// `tls` of mode SIMPLE or MUTUAL.
    pub tls: Option<Arc<TlsOrigination>>,
}

impl TrafficPolicy {
    /// Where no `DestinationRule` says otherwise.
    pub fn of_mesh() -> &'static Self {
        static DEFAULT: LazyLock<TrafficPolicy> = LazyLock::new(TrafficPolicy::default);
        &DEFAULT
    }
}

/// `subsets[]`: endpoints by label.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Name that routes refer to.
    pub name: Arc<str>,
    /// All of these must be on the pod; empty selects every endpoint.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Policy of this subset on any port without an entry of its own.
    pub policy: TrafficPolicy,
    /// Policy by service port, where it differs.
    pub port_policies: BTreeMap<u16, TrafficPolicy>,
}

impl Subset {
    /// Whether an endpoint is in it.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        endpoint.has_labels(&self.labels)
    }
}

/// A compiled `DestinationRule` (those of one host and namespace merged, istio-surface 1.2.1).
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// The oldest object it comes from.
    pub object: ObjectRef,
    /// Host or wildcard, expanded.
    pub host: HostPattern,
    /// `exportTo`.
    pub visibility: Visibility,
    /// `workloadSelector`: clients of its own namespace that it is for; empty: all that see it.
    pub workload_selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Policy without subset on any port without an entry of its own.
    pub policy: TrafficPolicy,
    /// Policy by service port, where it differs.
    pub port_policies: BTreeMap<u16, TrafficPolicy>,
    /// Subsets by order of appearance.
    pub subsets: Vec<Subset>,
}

impl DestinationRule {
    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| &*subset.name == name)
    }

    /// Effective policy for a subset (or none) and service port.
    pub fn policy<'a>(&'a self, subset: Option<&'a Subset>, port: u16) -> &'a TrafficPolicy {
        match subset {
            Some(subset) => subset.port_policies.get(&port).unwrap_or(&subset.policy),
            None => self.port_policies.get(&port).unwrap_or(&self.policy),
        }
    }
}
