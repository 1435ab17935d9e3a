//! HTTP routes (Istio `VirtualService`, HTTP part), compiled: hosts expanded, expressions built,
//! defaults filled in. Field semantics: istio-surface 1.1.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use regex::Regex;

use super::{Cors, Fault, HttpRules, L4Routes, Mirror, ObjectRef, RetryPolicy, ServiceKey};

/// A host name, a wildcard `*.suffix`, or `*`. Always lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// Exactly this name.
    Exact(Arc<str>),
    /// `*.suffix`; holds `.suffix` and does not match `suffix` itself.
    Suffix(Arc<str>),
    /// `*`.
    Any,
}

impl HostPattern {
    /// Parses `*`, `*.suffix` or a name.
    pub fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.into()),
            None => Self::Exact(text.into()),
        }
    }

    /// Whether `host` (lower case, no port) is covered.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => &**name == host,
            Self::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// Exact names before wildcards, long wildcards before short ones.
    pub fn specificity(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Suffix(suffix) => suffix.len(),
            Self::Any => 0,
        }
    }
}

/// `exportTo`: who sees an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// `*`.
    #[default]
    Everyone,
    /// These namespaces (`.` resolved).
    Namespaces(Vec<Arc<str>>),
}

impl Visibility {
    /// Whether clients in `namespace` see it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everyone => true,
            Self::Namespaces(names) => names.iter().any(|name| &**name == namespace),
        }
    }
}

/// Istio's `StringMatch`.
#[derive(Clone, Debug)]
pub enum StringMatch {
    /// The whole string.
    Exact(Arc<str>),
    /// A raw string prefix: `/foo` matches `/foobar`.
    Prefix(Arc<str>),
    /// RE2, anchored at both ends when compiled.
    Regex(Regex),
    /// `{}` or regex `*`: present.
    Present,
}

impl StringMatch {
    /// Whether `value` matches; `ignore_case` holds for exact and prefix only.
    pub fn matches(&self, value: &str, ignore_case: bool) -> bool {
        match self {
            Self::Exact(text) if ignore_case => text.eq_ignore_ascii_case(value),
            Self::Exact(text) => &**text == value,
            Self::Prefix(text) if ignore_case => {
                value.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
            }
            Self::Prefix(text) => value.starts_with(&**text),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
        }
    }
}

impl PartialEq for StringMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            (Self::Present, Self::Present) => true,
            _ => false,
        }
    }
}

/// A condition on a named value (header or query parameter).
#[derive(Clone, Debug, PartialEq)]
pub struct KeyMatch {
    /// Header name in lower case, or query parameter name.
    pub key: Arc<str>,
    /// The condition.
    pub value: StringMatch,
}

/// One entry of `http[].match[]`: all conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// `match[].name`, appended to the route's name.
    pub name: Arc<str>,
    /// Path without query.
    pub uri: Option<StringMatch>,
    /// `ignoreUriCase`.
    pub ignore_uri_case: bool,
    /// `:scheme`.
    pub scheme: Option<StringMatch>,
    /// Method, case sensitive.
    pub method: Option<StringMatch>,
    /// Host with port, as sent.
    pub authority: Option<StringMatch>,
    /// Headers that must match.
    pub headers: Vec<KeyMatch>,
    /// Headers that must not match (absent passes).
    pub without_headers: Vec<KeyMatch>,
    /// Query parameters that must match.
    pub query: Vec<KeyMatch>,
    /// Service port that the client addressed.
    pub port: Option<u16>,
    /// Labels of the client's pod.
    pub source_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Namespace of the client's pod.
    pub source_namespace: Option<Arc<str>>,
}

/// One header change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Header.
    pub name: HeaderName,
    /// Value.
    pub value: HeaderValue,
}

/// `headers.request` or `headers.response`: set, then add (each sorted by key), then remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOps {
    /// Overwrite.
    pub set: Vec<HeaderEdit>,
    /// Append one more value.
    pub add: Vec<HeaderEdit>,
    /// Remove.
    pub remove: Vec<HeaderName>,
}

/// How the path is rewritten.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// `rewrite.uri`: replaces the prefix that the route matched, or the whole path of an exact or
    /// regex match.
    Uri(Arc<str>),
    /// `rewrite.uriRegexRewrite`: RE2 substitution on the path; `\1` compiled to `${1}`.
    Regex {
        /// Pattern.
        pattern: Regex,
        /// Replacement in the `regex` crate's syntax.
        replacement: Arc<str>,
    },
}

impl PartialEq for PathRewrite {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Uri(a), Self::Uri(b)) => a == b,
            (
                Self::Regex { pattern: a, replacement: c },
                Self::Regex { pattern: b, replacement: d },
            ) => a.as_str() == b.as_str() && c == d,
            _ => false,
        }
    }
}

/// `http[].rewrite`, and authority changes made by `headers.request`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrite {
    /// Path.
    pub path: Option<PathRewrite>,
    /// `:authority` / `Host`.
    pub authority: Option<HeaderValue>,
}

/// `http[].route[]`: one weighted destination.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedDestination {
    /// `destination.host`, expanded and in lower case: for messages.
    pub host: Arc<str>,
    /// The service, or `None`: unknown host (503 `NC`).
    pub service: Option<ServiceKey>,
    /// `destination.subset`.
    pub subset: Option<Arc<str>>,
    /// `destination.port.number`; `None`: the only port, else the one the client addressed.
    pub port: Option<u16>,
    /// Share of the sum; entries of weight 0 are dropped when there are several.
    pub weight: u32,
    /// Changes to the request, after the route's.
    pub request_headers: HeaderOps,
    /// Changes to the response, after the route's.
    pub response_headers: HeaderOps,
    /// Authority asked for by this destination's `headers.request`.
    pub authority: Option<HeaderValue>,
}

/// Requests that go on to a destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// At least one.
    pub destinations: Vec<WeightedDestination>,
    /// Sum of the weights; at least 1.
    pub total_weight: u32,
    /// `rewrite`.
    pub rewrite: Rewrite,
    /// `timeout`; `None`: disabled.
    pub timeout: Option<Duration>,
    /// `retries`.
    pub retries: RetryPolicy,
    /// `mirror` and `mirrors[]`.
    pub mirrors: Vec<Mirror>,
}

/// Path of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// Keep it.
    Keep,
    /// `redirect.uri`: replaces the whole path, keeps the query.
    Uri(Arc<str>),
    /// `redirect.prefixRewrite`: replaces the matched prefix.
    Prefix(Arc<str>),
}

/// Port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// As in the request's authority.
    Keep,
    /// `redirect.port`.
    Number(u16),
    /// `derivePort: FROM_PROTOCOL_DEFAULT`: none written.
    ProtocolDefault,
    /// `derivePort: FROM_REQUEST_PORT`.
    RequestPort,
}

/// `http[].redirect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Path.
    pub path: RedirectPath,
    /// `redirect.authority`.
    pub authority: Option<Arc<str>>,
    /// Port.
    pub port: RedirectPort,
    /// `redirect.scheme`.
    pub scheme: Option<Arc<str>>,
    /// 301, 302, 303, 307 or 308.
    pub code: StatusCode,
}

/// `http[].directResponse`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body, at most 1 MiB.
    pub body: bytes::Bytes,
}

/// What happens to a request that a rule matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Goes to a destination.
    Forward(Forward),
    /// Answered with a Location.
    Redirect(Redirect),
    /// Answered here.
    Direct(DirectResponse),
}

/// One entry of `http[]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    /// `http[].name`, or `default`.
    pub name: Arc<str>,
    /// Any of these; empty matches all. Entries that cannot apply in the mesh are gone.
    pub matches: Vec<HttpMatch>,
    /// What to do.
    pub action: Action,
    /// `headers.request`.
    pub request_headers: HeaderOps,
    /// `headers.response`.
    pub response_headers: HeaderOps,
    /// `fault`.
    pub fault: Option<Box<Fault>>,
    /// `corsPolicy`.
    pub cors: Option<Box<Cors>>,
}

/// A compiled `VirtualService`, as clients in the mesh see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// The object.
    pub object: ObjectRef,
    /// Hosts, expanded.
    pub hosts: Vec<HostPattern>,
    /// `exportTo`.
    pub visibility: Visibility,
    /// `metadata.creationTimestamp`, seconds since the epoch: the oldest owns a host.
    pub created: i64,
    /// `http[]` in order, cut after the first catch-all.
    pub http: HttpRules,
    /// `tls[]` and `tcp[]`.
    pub l4: L4Routes,
}

/// Path of a request, without its query; `/` when the target has none (`*`, authority form).
pub fn path_of(uri: &Uri) -> &str {
    match uri.path() {
        "" => "/",
        path => path,
    }
}
