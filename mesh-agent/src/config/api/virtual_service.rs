//! `VirtualService` of networking.istio.io, whole (istio-surface 1.1). Fields typed
//! [`Unsupported`] are reported as not honoured yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::meta::Labels;
use super::scalar::{Span, Unsupported};

/// `VirtualService.spec`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct VirtualService {
    pub(in crate::config) hosts: Vec<String>,
    pub(in crate::config) gateways: Vec<String>,
    pub(in crate::config) export_to: Vec<String>,
    pub(in crate::config) http: Vec<HttpRoute>,
    tls: Option<Unsupported>,
    tcp: Option<Unsupported>,
}

/// `http[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct HttpRoute {
    pub(in crate::config) name: String,
    pub(in crate::config) r#match: Vec<HttpMatch>,
    pub(in crate::config) route: Vec<RouteDestination>,
    pub(in crate::config) redirect: Option<Redirect>,
    pub(in crate::config) direct_response: Option<DirectResponse>,
    pub(in crate::config) delegate: Option<Unsupported<Delegate>>,
    pub(in crate::config) rewrite: Option<Rewrite>,
    pub(in crate::config) timeout: Option<Span>,
    retries: Option<Unsupported<Retries>>,
    fault: Option<Unsupported<Fault>>,
    mirror: Option<Unsupported<Destination>>,
    mirrors: Option<Unsupported<Vec<Mirror>>>,
    mirror_percent: Option<Unsupported>,
    mirror_percentage: Option<Unsupported>,
    cors_policy: Option<Unsupported<CorsPolicy>>,
    pub(in crate::config) headers: Option<Headers>,
}

/// `http[].match[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct HttpMatch {
    pub(in crate::config) name: String,
    pub(in crate::config) uri: Option<StringMatch>,
    pub(in crate::config) ignore_uri_case: bool,
    pub(in crate::config) scheme: Option<StringMatch>,
    pub(in crate::config) method: Option<StringMatch>,
    pub(in crate::config) authority: Option<StringMatch>,
    pub(in crate::config) headers: BTreeMap<String, StringMatch>,
    pub(in crate::config) without_headers: BTreeMap<String, StringMatch>,
    pub(in crate::config) query_params: BTreeMap<String, StringMatch>,
    pub(in crate::config) port: Option<u32>,
    pub(in crate::config) source_labels: Labels,
    pub(in crate::config) source_namespace: String,
    pub(in crate::config) gateways: Vec<String>,
    stat_prefix: Option<Unsupported>,
}

/// Istio's `StringMatch`: one of the three.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct StringMatch {
    pub(in crate::config) exact: Option<String>,
    pub(in crate::config) prefix: Option<String>,
    pub(in crate::config) regex: Option<String>,
}

/// `http[].route[]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct RouteDestination {
    pub(in crate::config) destination: Option<Destination>,
    pub(in crate::config) weight: i32,
    pub(in crate::config) headers: Option<Headers>,
}

/// A destination.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Destination {
    pub(in crate::config) host: String,
    pub(in crate::config) subset: String,
    pub(in crate::config) port: Option<PortSelector>,
}

/// `port.number`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct PortSelector {
    pub(in crate::config) number: u32,
}

/// `http[].redirect`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Redirect {
    pub(in crate::config) uri: String,
    pub(in crate::config) prefix_rewrite: String,
    pub(in crate::config) authority: String,
    pub(in crate::config) port: Option<u32>,
    pub(in crate::config) derive_port: Option<DerivePort>,
    pub(in crate::config) scheme: String,
    pub(in crate::config) redirect_code: u32,
}

/// `http[].redirect.derivePort`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(in crate::config) enum DerivePort {
    FromProtocolDefault,
    FromRequestPort,
}

/// `http[].directResponse`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct DirectResponse {
    pub(in crate::config) status: u32,
    pub(in crate::config) body: Option<Body>,
}

/// `http[].directResponse.body`: one of the two.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Body {
    pub(in crate::config) string: Option<String>,
    /// Base64.
    pub(in crate::config) bytes: Option<String>,
}

/// `http[].rewrite`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::config) struct Rewrite {
    pub(in crate::config) uri: String,
    pub(in crate::config) authority: String,
    pub(in crate::config) uri_regex_rewrite: Option<RegexRewrite>,
}

/// `http[].rewrite.uriRegexRewrite`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct RegexRewrite {
    pub(in crate::config) r#match: String,
    pub(in crate::config) rewrite: String,
}

/// `headers`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Headers {
    pub(in crate::config) request: HeaderOperations,
    pub(in crate::config) response: HeaderOperations,
}

/// `headers.request` and `headers.response`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct HeaderOperations {
    pub(in crate::config) set: BTreeMap<Arc<str>, Arc<str>>,
    pub(in crate::config) add: BTreeMap<Arc<str>, Arc<str>>,
    pub(in crate::config) remove: Vec<Arc<str>>,
}

/// `http[].delegate`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::config) struct Delegate {
    name: Option<IgnoredAny>,
    namespace: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Retries {
    attempts: Option<IgnoredAny>,
    per_try_timeout: Option<IgnoredAny>,
    retry_on: Option<IgnoredAny>,
    retry_remote_localities: Option<IgnoredAny>,
    retry_ignore_previous_hosts: Option<IgnoredAny>,
    backoff: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fault {
    delay: Option<Delay>,
    abort: Option<Abort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Delay {
    fixed_delay: Option<IgnoredAny>,
    exponential_delay: Option<IgnoredAny>,
    percentage: Option<IgnoredAny>,
    percent: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Abort {
    http_status: Option<IgnoredAny>,
    grpc_status: Option<IgnoredAny>,
    http2_error: Option<IgnoredAny>,
    percentage: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    destination: Option<IgnoredAny>,
    percentage: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CorsPolicy {
    allow_origins: Option<IgnoredAny>,
    allow_origin: Option<IgnoredAny>,
    allow_methods: Option<IgnoredAny>,
    allow_headers: Option<IgnoredAny>,
    expose_headers: Option<IgnoredAny>,
    max_age: Option<IgnoredAny>,
    allow_credentials: Option<IgnoredAny>,
    unmatched_preflights: Option<IgnoredAny>,
}
