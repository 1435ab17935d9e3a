//! `trafficPolicy`: its blocks, as written, each to be inherited or replaced as a whole
//! (istio-surface 1.2 and 1.2.1). Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::balancing::{Balancing, balancing};
use super::numbers::{count, duration, duration_or_zero, percent, whole_percent};
use super::port_number;
use super::upstream_tls::{UpstreamTls, upstream_tls};
use crate::config::api::{self, H2UpgradePolicy};
use crate::config::diagnostic::Report;
use crate::model::{ConnectionPool, Keepalive, OutlierDetection, RetryBudget};

/// `retryBudget.percent`, if unset.
const BUDGET_PERCENT: f64 = 20.0;
/// `retryBudget.minRetryConcurrency`, if unset.
const BUDGET_MINIMUM: u32 = 3;

/// A `trafficPolicy`, as written.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct PolicyFacts {
    /// Blocks that hold for every port.
    pub(in crate::config) blocks: Blocks,
    /// `portLevelSettings[]`; these have no `retryBudget`.
    pub(in crate::config) ports: BTreeMap<u16, Blocks>,
}

/// The blocks that can be overridden, each as a whole. `None`: not written.
#[derive(Clone, Debug, Default)]
pub(in crate::config) struct Blocks {
    /// `loadBalancer`.
    pub(in crate::config) load_balancer: Option<Balancing>,
    /// `connectionPool`, with defaults filled in.
    pub(in crate::config) connection_pool: Option<ConnectionPool>,
    /// `outlierDetection`, with defaults filled in.
    pub(in crate::config) outlier: Option<Arc<OutlierDetection>>,
    /// `retryBudget`.
    pub(in crate::config) retry_budget: Option<RetryBudget>,
    /// `tls`.
    pub(in crate::config) tls: Option<UpstreamTls>,
}

/// Translates one.
pub(super) fn policy(
    found: Option<api::TrafficPolicy>,
    field: &str,
    report: &mut Report,
) -> Option<PolicyFacts> {
    let found = found?;
    let blocks = Blocks {
        load_balancer: load_balancer(found.load_balancer, field, report),
        connection_pool: connection_pool(found.connection_pool, field, report),
        outlier: outlier(found.outlier_detection, field, report),
        retry_budget: retry_budget(found.retry_budget, field, report),
        tls: upstream_tls(found.tls, field, report),
    };
    let mut ports = BTreeMap::new();
    for (index, entry) in found.port_level_settings.into_iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        let blocks = Blocks {
            load_balancer: load_balancer(entry.load_balancer, &field, report),
            connection_pool: connection_pool(entry.connection_pool, &field, report),
            outlier: outlier(entry.outlier_detection, &field, report),
            retry_budget: None,
            tls: upstream_tls(entry.tls, &field, report),
        };
        let number = entry.port.number;
        let field = format!("{field}.port.number");
        match port_number(number) {
            Some(port) if ports.contains_key(&port) => {
                report.warning(field, format!("{number} is there twice: the first counts"));
            }
            Some(port) => {
                ports.insert(port, blocks);
            }
            None => report.error(field, "missing, or not a port"),
        }
    }
    Some(PolicyFacts { blocks, ports })
}

fn load_balancer(
    found: Option<api::LoadBalancer>,
    field: &str,
    report: &mut Report,
) -> Option<Balancing> {
    found.map(|found| balancing(found, &format!("{field}.loadBalancer"), report))
}

fn connection_pool(
    found: Option<api::ConnectionPool>,
    field: &str,
    report: &mut Report,
) -> Option<ConnectionPool> {
    let found = found?;
    let field = format!("{field}.connectionPool");
    if found.tcp.is_none() && found.http.is_none() {
        report.error(field.as_str(), "must have `tcp` or `http`");
    }
    let mut pool = ConnectionPool::default();
    if let Some(tcp) = found.tcp {
        tcp_pool(tcp, &mut pool, &format!("{field}.tcp"), report);
    }
    if let Some(http) = found.http {
        http_pool(&http, &mut pool, &format!("{field}.http"), report);
    }
    Some(pool)
}

fn tcp_pool(found: api::TcpPool, pool: &mut ConnectionPool, field: &str, report: &mut Report) {
    let connect = duration(found.connect_timeout, &format!("{field}.connectTimeout"), report);
    pool.connect_timeout = connect.unwrap_or(pool.connect_timeout);
    let most = count(found.max_connections, &format!("{field}.maxConnections"), report);
    pool.max_connections = most.unwrap_or(u32::MAX);
    pool.keepalive = found
        .tcp_keepalive
        .map(|keepalive| tcp_keepalive(&keepalive, &format!("{field}.tcpKeepalive"), report));
    let longest = format!("{field}.maxConnectionDuration");
    pool.max_connection_duration = duration(found.max_connection_duration, &longest, report);
    let idle = duration_or_zero(found.idle_timeout, &format!("{field}.idleTimeout"), report);
    pool.tcp_idle_timeout = idle.filter(|time| !time.is_zero());
    pool.http_idle_timeout = pool.tcp_idle_timeout;
}

/// The kernel counts in seconds, and refuses 0 (tcp(7)).
fn tcp_keepalive(found: &api::TcpKeepalive, field: &str, report: &mut Report) -> Keepalive {
    let mut seconds = |found, name| {
        let time = duration(found, &format!("{field}.{name}"), report);
        time.map(|time| time.max(Duration::from_secs(1)))
    };
    Keepalive {
        time: seconds(found.time, "time"),
        interval: seconds(found.interval, "interval"),
        probes: (found.probes > 0).then_some(found.probes),
    }
}

fn http_pool(found: &api::HttpPool, pool: &mut ConnectionPool, field: &str, report: &mut Report) {
    let mut limit = |found, name| count(found, &format!("{field}.{name}"), report);
    let pending = limit(found.http1_max_pending_requests, "http1MaxPendingRequests");
    let requests = limit(found.http2_max_requests, "http2MaxRequests");
    let each = limit(found.max_requests_per_connection, "maxRequestsPerConnection");
    let retries = limit(found.max_retries, "maxRetries");
    let streams = limit(found.max_concurrent_streams, "maxConcurrentStreams");
    pool.max_pending = pending.unwrap_or(u32::MAX);
    pool.max_requests = requests.unwrap_or(u32::MAX);
    pool.max_requests_per_connection = each.unwrap_or(0);
    pool.max_retries = retries.unwrap_or(u32::MAX);
    pool.max_concurrent_streams = streams.unwrap_or(u32::MAX);
    let idle = duration(found.idle_timeout, &format!("{field}.idleTimeout"), report);
    pool.http_idle_timeout = idle.or(pool.http_idle_timeout);
    let upgrade = found.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade);
    if upgrade && found.use_client_protocol {
        let message = "no effect: `useClientProtocol` counts";
        report.warning(format!("{field}.h2UpgradePolicy"), message);
    }
    pool.use_client_protocol = found.use_client_protocol;
    pool.upgrade_to_http2 = upgrade && !found.use_client_protocol;
}

fn outlier(
    found: Option<api::OutlierDetection>,
    field: &str,
    report: &mut Report,
) -> Option<Arc<OutlierDetection>> {
    let found = found?;
    let field = format!("{field}.outlierDetection");
    let mut outlier = OutlierDetection::default();
    outlier.consecutive_5xx = found.consecutive_5xx_errors.unwrap_or(outlier.consecutive_5xx);
    outlier.consecutive_gateway = found.consecutive_gateway_errors.unwrap_or(0);
    outlier.split = found.split_external_local_origin_errors;
    let local = found.consecutive_local_origin_failures;
    if !outlier.split && local.is_some_and(|count| count > 0) {
        let message = "has no meaning without `splitExternalLocalOriginErrors: true`";
        report.error(format!("{field}.consecutiveLocalOriginFailures"), message);
    }
    outlier.consecutive_local = local.unwrap_or(outlier.consecutive_local);
    let interval = duration(found.interval, &format!("{field}.interval"), report);
    outlier.interval = interval.unwrap_or(outlier.interval);
    let base = duration(found.base_ejection_time, &format!("{field}.baseEjectionTime"), report);
    outlier.base_ejection = base.unwrap_or(outlier.base_ejection);
    let most = format!("{field}.maxEjectionPercent");
    outlier.max_ejection_percent = whole_percent(found.max_ejection_percent, &most, report)
        .unwrap_or(outlier.max_ejection_percent);
    let least = format!("{field}.minHealthPercent");
    outlier.min_health_percent =
        whole_percent(found.min_health_percent, &least, report).unwrap_or(0);
    let codes = format!("{field}.outlierDetectionHttpErrorCodes");
    outlier.error_codes = error_codes(&found.outlier_detection_http_error_codes, &codes, report);
    if found.consecutive_errors != 0 {
        let message = "deprecated, no effect: write `consecutive5xxErrors` or \
                       `consecutiveGatewayErrors`";
        report.warning(format!("{field}.consecutiveErrors"), message);
    }
    Some(Arc::new(outlier))
}

/// Statuses, as numbers or as text.
fn error_codes(found: &[Value], field: &str, report: &mut Report) -> Arc<[u16]> {
    let mut codes = Vec::with_capacity(found.len());
    for (index, value) in found.iter().enumerate() {
        let number = match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64().and_then(|number| u16::try_from(number).ok()),
        };
        match number.filter(|code| (100..=599).contains(code)) {
            Some(code) => codes.push(code),
            None => {
                let message = format!("{value} is not a status from 100 to 599");
                report.error(format!("{field}[{index}]"), message);
            }
        }
    }
    codes.sort_unstable();
    codes.dedup();
    codes.into()
}

fn retry_budget(
    found: Option<api::RetryBudget>,
    field: &str,
    report: &mut Report,
) -> Option<RetryBudget> {
    let found = found?;
    let share = found.percent.unwrap_or(BUDGET_PERCENT);
    let percent = percent(share, &format!("{field}.retryBudget.percent"), report)?;
    let written = Some(found.min_retry_concurrency).filter(|number| *number > 0);
    Some(RetryBudget { percent, min_concurrency: written.unwrap_or(BUDGET_MINIMUM) })
}
