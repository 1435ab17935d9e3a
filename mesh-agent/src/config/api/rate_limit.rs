//! `RateLimit` of malha.dev, whole: how many requests callers may send to a service. A kind of the
//! mesh's own, since Istio has local rate limits only as Envoy's configuration (`EnvoyFilter`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::meta::Labels;
use super::scalar::Span;
use super::schema::{required, rules};
use super::virtual_service::StringMatch;

/// `RateLimit.spec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["host", "limits"]))]
pub(in crate::config) struct RateLimit {
    /// A service of the object's namespace, by name or by full name.
    #[schemars(
        length(min = 1, max = 253),
        transform = rules([("wildcard not allowed in host", "!self.contains(\"*\")")]),
    )]
    pub(in crate::config) host: String,
    /// The first one that is for a request counts it. A request that none is for is not limited.
    #[schemars(length(min = 1, max = 32))]
    pub(in crate::config) limits: Vec<Limit>,
}

/// `limits[]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = required(["requests", "per"]))]
pub(in crate::config) struct Limit {
    /// For logs and metrics.
    #[schemars(length(max = 63))]
    pub(in crate::config) name: String,
    /// Callers that it is for; all, if unset. Each of their pods may send so many requests.
    pub(in crate::config) from: Option<From>,
    /// Requests that it is for: one of these must match; all requests, if unset.
    #[schemars(length(max = 16))]
    pub(in crate::config) r#match: Vec<LimitMatch>,
    /// Requests in each `per`; 0 lets none in.
    #[schemars(with = "u32", range(max = 1_000_000))]
    pub(in crate::config) requests: Option<u32>,
    /// At most an hour.
    #[schemars(
        with = "Span",
        transform = rules([("must be at most 1h", "duration(self) <= duration('1h')")]),
    )]
    pub(in crate::config) per: Option<Span>,
    /// Requests at once by a caller that has sent none for long. If unset: the requests of a second.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) burst: Option<u32>,
}

/// `limits[].from`: all of it must hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("minProperties" = 1))]
pub(in crate::config) struct From {
    /// Of the caller's pod.
    pub(in crate::config) namespace: String,
    /// Labels that the caller's pod must have.
    #[schemars(extend("maxProperties" = 64))]
    pub(in crate::config) labels: Labels,
}

/// `limits[].match[]`: all of it must hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("minProperties" = 1))]
pub(in crate::config) struct LimitMatch {
    /// Path, without the query.
    pub(in crate::config) uri: Option<StringMatch>,
    pub(in crate::config) method: Option<StringMatch>,
    /// Names in lower case; `{}` matches any value.
    pub(in crate::config) headers: BTreeMap<String, StringMatch>,
    /// Name of a rule of the VirtualService by which the request goes.
    pub(in crate::config) route: String,
}
