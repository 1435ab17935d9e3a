//! `VirtualService` of networking.istio.io, whole (istio-surface 1.1). Fields typed
//! [`Unsupported`] are reported as not honoured yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::l4_route::{TcpRoute, TlsRoute};
use super::meta::Labels;
use super::scalar::{Span, Unsupported};
use super::schema::{alias, limit, one_of, required};

/// Limit of header values.
const NO_COMMANDS: &str = "Envoy's `%..%` is sent as it is written";

/// `VirtualService.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct VirtualService {
    /// Hosts that the routes are for.
    pub(in crate::config) hosts: Vec<String>,
    /// Gateways that the routes are for; `mesh` means clients in the mesh, and is the default.
    #[schemars(transform = limit("of `mesh` only"))]
    pub(in crate::config) gateways: Vec<String>,
    /// Namespaces that may use it: `.` its own, `*` all.
    pub(in crate::config) export_to: Vec<String>,
    /// Routes of HTTP requests; the first that matches is taken.
    pub(in crate::config) http: Vec<HttpRoute>,
    /// Routes of TLS connections that are not terminated, by SNI.
    pub(in crate::config) tls: Vec<TlsRoute>,
    /// Routes of other connections.
    pub(in crate::config) tcp: Vec<TcpRoute>,
}

/// `http[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = alias("mirrorPercent", "mirror_percent"))]
pub(in crate::config) struct HttpRoute {
    /// For logs and metrics.
    pub(in crate::config) name: String,
    /// One of these must match; none matches everything.
    pub(in crate::config) r#match: Vec<HttpMatch>,
    /// Destinations, by weight.
    pub(in crate::config) route: Vec<RouteDestination>,
    /// Answers with another place.
    pub(in crate::config) redirect: Option<Redirect>,
    /// Answers at once.
    pub(in crate::config) direct_response: Option<DirectResponse>,
    /// Another VirtualService that goes on.
    pub(in crate::config) delegate: Option<Delegate>,
    /// Changes path and authority before the request is sent on.
    pub(in crate::config) rewrite: Option<Rewrite>,
    /// Of the request with its retries; none, if unset.
    pub(in crate::config) timeout: Option<Span>,
    /// What is tried again, how often.
    pub(in crate::config) retries: Option<Retries>,
    /// Faults to inject.
    pub(in crate::config) fault: Option<Fault>,
    /// Gets a copy of the requests.
    pub(in crate::config) mirror: Option<Destination>,
    /// Get copies of the requests.
    pub(in crate::config) mirrors: Vec<Mirror>,
    /// Deprecated: whole number.
    pub(in crate::config) mirror_percent: Option<u32>,
    /// Share of requests for `mirror`; all, if unset.
    pub(in crate::config) mirror_percentage: Option<Percent>,
    /// Cross-origin resource sharing.
    pub(in crate::config) cors_policy: Option<CorsPolicy>,
    /// Changes headers of requests and answers.
    pub(in crate::config) headers: Option<Headers>,
}

/// `http[].match[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct HttpMatch {
    pub(in crate::config) name: String,
    /// Path, without the query.
    pub(in crate::config) uri: Option<StringMatch>,
    /// For `exact` and `prefix` of `uri`.
    pub(in crate::config) ignore_uri_case: bool,
    pub(in crate::config) scheme: Option<StringMatch>,
    pub(in crate::config) method: Option<StringMatch>,
    pub(in crate::config) authority: Option<StringMatch>,
    /// Names in lower case; `{}` matches any value.
    #[schemars(transform = limit("claims of a token (`@request.auth..`) are refused, as in a sidecar"))]
    pub(in crate::config) headers: BTreeMap<String, StringMatch>,
    /// As `headers`, but none may match.
    pub(in crate::config) without_headers: BTreeMap<String, StringMatch>,
    pub(in crate::config) query_params: BTreeMap<String, StringMatch>,
    /// Port that the client addressed.
    #[schemars(with = "u32")]
    pub(in crate::config) port: Option<u32>,
    /// Labels that the client's pod must have.
    pub(in crate::config) source_labels: Labels,
    pub(in crate::config) source_namespace: String,
    /// In place of the object's `gateways`.
    #[schemars(transform = limit("of `mesh` only"))]
    pub(in crate::config) gateways: Vec<String>,
    stat_prefix: Option<Unsupported<String>>,
}

/// One of `exact`, `prefix` and `regex`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = one_of(["exact", "prefix", "regex"]))]
pub(in crate::config) struct StringMatch {
    pub(in crate::config) exact: Option<String>,
    pub(in crate::config) prefix: Option<String>,
    /// RE2, of the whole value.
    pub(in crate::config) regex: Option<String>,
}

/// `http[].route[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["destination"]))]
pub(in crate::config) struct RouteDestination {
    pub(in crate::config) destination: Option<Destination>,
    /// Share of requests, of the sum of all weights.
    #[schemars(range(min = 0))]
    pub(in crate::config) weight: i32,
    pub(in crate::config) headers: Option<Headers>,
}

/// A destination.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["host"]))]
pub(in crate::config) struct Destination {
    /// Name of a service.
    pub(in crate::config) host: String,
    /// Of the service's DestinationRule.
    pub(in crate::config) subset: String,
    /// Of the service; may be left out if there is only one.
    pub(in crate::config) port: Option<PortSelector>,
}

/// `port.number`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct PortSelector {
    pub(in crate::config) number: u32,
}

/// `http[].redirect`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["port", "derivePort"]))]
pub(in crate::config) struct Redirect {
    /// In place of the path.
    pub(in crate::config) uri: String,
    /// In place of the prefix that matched.
    pub(in crate::config) prefix_rewrite: String,
    pub(in crate::config) authority: String,
    #[schemars(with = "u32")]
    pub(in crate::config) port: Option<u32>,
    pub(in crate::config) derive_port: Option<DerivePort>,
    pub(in crate::config) scheme: String,
    /// 301, if unset.
    pub(in crate::config) redirect_code: u32,
}

/// `http[].redirect.derivePort`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum DerivePort {
    FromProtocolDefault,
    FromRequestPort,
}

/// `http[].directResponse`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["status"]))]
pub(in crate::config) struct DirectResponse {
    pub(in crate::config) status: u32,
    pub(in crate::config) body: Option<Body>,
}

/// `http[].directResponse.body`: one of the two.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = one_of(["string", "bytes"]))]
pub(in crate::config) struct Body {
    pub(in crate::config) string: Option<String>,
    /// Base64.
    #[schemars(extend("format" = "byte"))]
    pub(in crate::config) bytes: Option<String>,
}

/// `http[].rewrite`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Rewrite {
    /// In place of the prefix that matched, or of the whole path.
    pub(in crate::config) uri: String,
    #[schemars(transform = limit(NO_COMMANDS))]
    pub(in crate::config) authority: String,
    /// Replaces what matches in the path.
    pub(in crate::config) uri_regex_rewrite: Option<RegexRewrite>,
}

/// `http[].rewrite.uriRegexRewrite`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct RegexRewrite {
    pub(in crate::config) r#match: String,
    pub(in crate::config) rewrite: String,
}

/// `headers`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Headers {
    pub(in crate::config) request: HeaderOperations,
    pub(in crate::config) response: HeaderOperations,
}

/// `headers.request` and `headers.response`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct HeaderOperations {
    /// Replaces values.
    #[schemars(transform = limit(NO_COMMANDS))]
    pub(in crate::config) set: BTreeMap<Arc<str>, Arc<str>>,
    /// Adds values.
    #[schemars(transform = limit(NO_COMMANDS))]
    pub(in crate::config) add: BTreeMap<Arc<str>, Arc<str>>,
    pub(in crate::config) remove: Vec<Arc<str>>,
}

/// `http[].delegate`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Delegate {
    pub(in crate::config) name: String,
    /// The root's own, if empty.
    pub(in crate::config) namespace: String,
}

/// `http[].retries`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Retries {
    /// Further tries after the first; 0 switches retries off.
    #[schemars(range(min = 0))]
    pub(in crate::config) attempts: i32,
    /// Of each try; that of the route, if unset.
    pub(in crate::config) per_try_timeout: Option<Span>,
    /// Conditions and status codes, separated by commas.
    #[schemars(transform = limit(
        "`retriable-headers` and `http3-post-connect-failure` have no effect, as in a sidecar"
    ))]
    pub(in crate::config) retry_on: String,
    pub(in crate::config) retry_remote_localities: Option<bool>,
    pub(in crate::config) retry_ignore_previous_hosts: Option<bool>,
    /// Base of the time between tries.
    pub(in crate::config) backoff: Option<Span>,
}

/// `http[].fault`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Fault {
    /// Requests are held up.
    pub(in crate::config) delay: Option<Delay>,
    /// Requests are answered with an error.
    pub(in crate::config) abort: Option<Abort>,
}

/// `http[].fault.delay`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["fixedDelay", "exponentialDelay"]))]
pub(in crate::config) struct Delay {
    pub(in crate::config) fixed_delay: Option<Span>,
    exponential_delay: Option<Unsupported<Span>>,
    /// Share of requests; none, if unset.
    pub(in crate::config) percentage: Option<Percent>,
    /// Deprecated: whole number.
    pub(in crate::config) percent: i32,
}

/// `http[].fault.abort`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = one_of(["httpStatus", "grpcStatus", "http2Error"]))]
pub(in crate::config) struct Abort {
    #[schemars(with = "i32")]
    pub(in crate::config) http_status: Option<i32>,
    /// Name or number.
    pub(in crate::config) grpc_status: String,
    http2_error: Option<Unsupported<String>>,
    /// Share of requests; none, if unset.
    pub(in crate::config) percentage: Option<Percent>,
}

/// A share of 100.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Percent {
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) value: f64,
}

/// `http[].mirrors[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["destination"]))]
pub(in crate::config) struct Mirror {
    pub(in crate::config) destination: Option<Destination>,
    /// Share of requests; all, if unset.
    pub(in crate::config) percentage: Option<Percent>,
}

/// `http[].corsPolicy`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct CorsPolicy {
    /// An origin that one of these matches is let in.
    pub(in crate::config) allow_origins: Vec<StringMatch>,
    /// Deprecated: exact origins.
    pub(in crate::config) allow_origin: Vec<String>,
    pub(in crate::config) allow_methods: Vec<String>,
    pub(in crate::config) allow_headers: Vec<String>,
    pub(in crate::config) expose_headers: Vec<String>,
    /// How long a preflight may be cached.
    pub(in crate::config) max_age: Option<Span>,
    pub(in crate::config) allow_credentials: Option<bool>,
    /// Preflights of other origins: to the upstream, or answered here.
    pub(in crate::config) unmatched_preflights: Option<UnmatchedPreflights>,
}

/// `http[].corsPolicy.unmatchedPreflights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum UnmatchedPreflights {
    Unspecified,
    Forward,
    Ignore,
}
