//! The record of one request.
//!
//! Invariant: it is counted exactly once, when it is dropped. A record that is dropped before
//! [`RequestRecord::finish`] means that the client went away (`DC`).

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::Level;

use super::flags::{ResponseFlag, ResponseFlags};
use super::labels::{CommonLabels, LimitLabels, Parties, Reporter, RequestLabels};
use super::metrics::Telemetry;
use crate::model::{Endpoint, RateLimit, Service, Workload};

/// What is known when a request's head has arrived.
#[derive(Clone, Copy, Debug)]
pub struct RequestStart<'a> {
    /// Which side this is.
    pub reporter: Reporter,
    /// The client's pod.
    pub source: &'a Arc<Workload>,
    /// Method.
    pub method: &'a http::Method,
    /// Path with query, as the client sent it.
    pub path: &'a str,
    /// Host or `:authority`, as the client sent it.
    pub authority: &'a str,
    /// Content type `application/grpc`.
    pub grpc: bool,
}

/// One request, from its head to the end of its response.
#[derive(Debug)]
pub struct RequestRecord {
    telemetry: Telemetry,
    started: Instant,
    key: SeriesKey,
    finished: bool,
    received: u64,
    sent: u64,
    /// Only while the access log is on.
    log: Option<Box<LogFields>>,
}

/// What only the access log shows.
#[derive(Debug)]
struct LogFields {
    method: http::Method,
    path: String,
    authority: String,
    route: String,
    details: String,
    upstream: Option<SocketAddr>,
    request_id: String,
    rate_limit: Option<String>,
}

/// Identifies a series by pointers, so that the hot path hashes no strings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SeriesKey {
    reporter: Reporter,
    source: ByPointer<Workload>,
    destination: Option<ByPointer<Workload>>,
    service: Option<ByPointer<Service>>,
    code: u16,
    flags: ResponseFlags,
    grpc: bool,
    grpc_status: Option<u16>,
    mutual_tls: bool,
}

#[derive(Debug)]
struct ByPointer<T>(Arc<T>);

// === impl RequestRecord ===

impl RequestRecord {
    pub(super) fn new(telemetry: Telemetry, start: RequestStart<'_>) -> Self {
        let log = tracing::enabled!(target: "access", Level::DEBUG).then(|| {
            Box::new(LogFields {
                method: start.method.clone(),
                path: start.path.to_owned(),
                authority: start.authority.to_owned(),
                route: "default".to_owned(),
                details: "via_upstream".to_owned(),
                upstream: None,
                request_id: String::new(),
                rate_limit: None,
            })
        });
        Self {
            telemetry,
            started: Instant::now(),
            key: SeriesKey {
                reporter: start.reporter,
                source: ByPointer(Arc::clone(start.source)),
                destination: None,
                service: None,
                code: 0,
                flags: ResponseFlags::default(),
                grpc: start.grpc,
                grpc_status: None,
                mutual_tls: false,
            },
            finished: false,
            received: 0,
            sent: 0,
            log,
        }
    }

    /// The service that the request is for.
    pub fn service(&mut self, service: &Arc<Service>) {
        self.key.service = Some(ByPointer(Arc::clone(service)));
    }

    /// The rule that matched, and the name of the match entry that held: `rule` or `rule.entry`.
    pub fn route(&mut self, rule: &str, entry: Option<&str>) {
        if let Some(log) = &mut self.log {
            log.route = match entry.filter(|entry| !entry.is_empty()) {
                Some(entry) => format!("{rule}.{entry}"),
                None => rule.to_owned(),
            };
        }
    }

    /// The request's id, for the access log.
    pub fn request_id(&mut self, id: &http::HeaderValue) {
        if let Some(log) = &mut self.log {
            log.request_id = String::from_utf8_lossy(id.as_bytes()).into_owned();
        }
    }

    /// Envoy's `response_code_details` of a response that was made here.
    pub fn details(&mut self, details: &str) {
        if let Some(log) = &mut self.log {
            details.clone_into(&mut log.details);
        }
    }

    /// The endpoint of the latest attempt, and whether the way to it is mutually authenticated.
    pub fn upstream(&mut self, endpoint: &Endpoint, mutual_tls: bool) {
        self.key.destination = endpoint.workload.clone().map(ByPointer);
        self.key.mutual_tls = mutual_tls;
        if let Some(log) = &mut self.log {
            log.upstream = Some(endpoint.address);
        }
    }

    /// The status that the client is sent.
    pub fn status(&mut self, status: http::StatusCode) {
        self.key.code = status.as_u16();
    }

    /// The rate limit that refuses the request, which is counted at once.
    pub fn rate_limited(&mut self, limit: &RateLimit) {
        let labels = LimitLabels::new(limit, &self.key.source.0);
        self.telemetry.0.metrics.rate_limited.get_or_create(&labels).inc();
        if let Some(log) = &mut self.log {
            let object = &limit.object;
            log.rate_limit = Some(format!("{}/{} {}", object.namespace, object.name, limit.name));
        }
    }

    /// Adds a flag.
    pub fn flag(&mut self, flag: ResponseFlag) {
        self.key.flags.insert(flag);
    }

    /// The flags so far.
    pub fn flags(&self) -> ResponseFlags {
        self.key.flags
    }

    /// `grpc-status`, from the response's head or its trailers. What is no number of gRPC's is
    /// counted as 2 (unknown), or an endpoint could make series without end.
    pub fn grpc_status(&mut self, value: &http::HeaderValue) {
        if self.key.grpc {
            let status = value.to_str().ok().and_then(|text| text.parse().ok());
            self.key.grpc_status = Some(status.filter(|code| *code <= 16).unwrap_or(2));
        }
    }

    /// Counts bytes of the request's body.
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// Counts bytes of the response's body.
    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Time since the request's head arrived.
    pub fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// The response is complete (or failed for a reason that a flag names): a drop from here on
    /// does not mean that the client went away.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    fn log(&self, log: &LogFields, milliseconds: f64) {
        tracing::event!(
            target: "access",
            Level::DEBUG,
            method = %log.method,
            path = log.path,
            authority = log.authority,
            response_code = self.key.code,
            response_flags = %self.key.flags,
            response_code_details = log.details,
            route_name = log.route,
            bytes_received = self.received,
            bytes_sent = self.sent,
            duration = milliseconds,
            upstream_host = log.upstream.map(tracing::field::display),
            request_id = log.request_id,
            rate_limit = log.rate_limit,
            source = %self.key.source.0.name,
            destination = self.key.destination.as_ref().map(|pod| tracing::field::display(&pod.0.name)),
            "request complete"
        );
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.finished {
            self.key.flags.insert(ResponseFlag::DownstreamClosed);
        }
        let milliseconds = self.started.elapsed().as_secs_f64() * 1e3;
        let series = self.telemetry.series(self.key.clone());
        series.requests.inc();
        series.durations.observe(milliseconds);
        if let Some(log) = &self.log {
            self.log(log, milliseconds);
        }
    }
}

// === impl SeriesKey ===

impl SeriesKey {
    pub(super) fn labels(&self) -> RequestLabels {
        RequestLabels {
            common: CommonLabels::new(&Parties {
                reporter: self.reporter,
                source: Some(&self.source.0),
                destination: self.destination.as_ref().map(|pod| &*pod.0),
                service: self.service.as_ref().map(|service| &*service.0),
                protocol: if self.grpc { "grpc" } else { "http" },
                mutual_tls: self.mutual_tls,
            }),
            response_code: self.code,
            grpc_response_status: self
                .grpc_status
                .map_or_else(|| "".into(), |status| status.to_string().into()),
            response_flags: self.flags,
        }
    }
}

// === impl ByPointer ===

impl<T> Clone for ByPointer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> PartialEq for ByPointer<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for ByPointer<T> {}

impl<T> Hash for ByPointer<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::model::{CaptureRules, PeerPolicy, Readiness, WorkloadName};
    use crate::telemetry::Metrics;

    pub(crate) fn pod(name: &str) -> Arc<Workload> {
        Arc::new(Workload {
            uid: name.into(),
            name: WorkloadName { namespace: "shop".into(), name: name.into() },
            node: "n1".into(),
            locality: None,
            identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            ips: vec![],
            labels: [("version".into(), "v7".into())].into(),
            host_network: false,
            selected: true,
            unfit: None,
            enrolled: true,
            finished: false,
            terminating: false,
            capture: CaptureRules::default(),
            peer_policy: PeerPolicy::default(),
        })
    }

    fn start(source: &Arc<Workload>) -> RequestStart<'_> {
        RequestStart {
            reporter: Reporter::Source,
            source,
            method: &http::Method::GET,
            path: "/",
            authority: "web",
            grpc: true,
        }
    }

    fn lines(registry: &Registry, name: &str) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn a_request_counts_once_with_its_labels() {
        let mut registry = Registry::default();
        let telemetry = Metrics::register(&mut registry).worker();
        let (source, destination) = (pod("client"), pod("server"));
        for _ in 0..2 {
            let mut record = telemetry.request(start(&source));
            let endpoint = Endpoint {
                address: ([10, 0, 0, 1], 80).into(),
                workload: Some(destination.clone()),
                labels: None,
                locality: None,
                readiness: Readiness::Ready,
            };
            record.upstream(&endpoint, true);
            record.status(http::StatusCode::OK);
            record.grpc_status(&http::HeaderValue::from_static("14"));
            record.finish();
        }
        let lines = lines(&registry, "istio_requests_total");
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in [
            r#"reporter="source""#,
            r#"source_workload="client""#,
            r#"destination_workload="server""#,
            r#"destination_principal="spiffe://cluster.local/ns/shop/sa/web""#,
            r#"destination_version="v7""#,
            r#"destination_service_name="PassthroughCluster""#,
            r#"request_protocol="grpc""#,
            r#"response_code="200""#,
            r#"grpc_response_status="14""#,
            r#"response_flags="-""#,
            r#"connection_security_policy="mutual_tls""#,
        ] {
            assert!(lines[0].contains(part), "{part} in {}", lines[0]);
        }
        assert!(lines[0].ends_with(" 2"), "{}", lines[0]);
    }

    #[test]
    fn a_record_that_nobody_finished_is_a_client_that_went_away() {
        let mut registry = Registry::default();
        let telemetry = Metrics::register(&mut registry).worker();
        drop(telemetry.request(start(&pod("client"))));
        let lines = lines(&registry, "istio_requests_total");
        assert!(lines[0].contains(r#"response_code="0""#) && lines[0].contains(r#"="DC""#));
    }

    #[test]
    fn durations_have_envoys_twenty_buckets() {
        let mut registry = Registry::default();
        let telemetry = Metrics::register(&mut registry).worker();
        drop(telemetry.request(start(&pod("client"))));
        assert_eq!(lines(&registry, "istio_request_duration_milliseconds_bucket").len(), 20);
    }

    #[test]
    fn an_invented_grpc_status_makes_no_series_of_its_own() {
        let mut registry = Registry::default();
        let telemetry = Metrics::register(&mut registry).worker();
        for text in ["17", "abc", "65536", "2"] {
            let mut record = telemetry.request(start(&pod("client")));
            record.grpc_status(&http::HeaderValue::from_static(text));
            record.finish();
        }
        assert_eq!(lines(&registry, "istio_requests_total").len(), 1);
    }
}
