//! Why a request could not be answered by an endpoint, in Envoy's words.
//!
//! Source: istio-surface 2.1. Each variant knows its status, flag, details and body.

use http::StatusCode;

use super::connect::ConnectError;
use super::incoming::IncomingError;
use crate::telemetry::ResponseFlag;

/// Details and body of a request that a rate limit refuses.
const RATE_LIMITED: &str = "local_rate_limited";

/// A request that ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HttpError {
    /// No rule matches: the client's request, or the VirtualService, is to be looked at.
    NoRoute,
    /// The rule names a service, port or subset that does not exist: fix the rule.
    NoCluster,
    /// No endpoint is ready: look at the destination's pods.
    NoHealthyUpstream,
    /// No connection to any endpoint that was tried.
    Connect(ConnectError),
    /// The endpoint closed the connection before it answered.
    Closed,
    /// The endpoint reset the stream before it answered.
    Reset,
    /// The endpoint's answer is not HTTP.
    Protocol,
    /// The request could not be sent on: its client's body failed, or a rule made it illegal.
    Local,
    /// The route's time-out passed.
    Timeout,
    /// `perTryTimeout` passed, and no further attempt was allowed.
    TryTimeout,
    /// A limit of the destination's policy (`connectionPool`), or what the source's pod may hold of the
    /// agent: raise the limit, or look at the pod.
    Overflow,
    /// A rate limit of the service: the caller sends more than it may (`RateLimit`).
    RateLimited,
    /// The request is not legal HTTP, in its head or in its body: look at the client.
    Malformed,
    /// The request's transfer coding is not spoken here.
    Coding,
}

impl HttpError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Timeout | Self::TryTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NoCluster
            | Self::NoHealthyUpstream
            | Self::Connect(_)
            | Self::Closed
            | Self::Reset
            | Self::Overflow
            | Self::Local => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn flag(&self) -> ResponseFlag {
        match self {
            Self::NoRoute => ResponseFlag::NoRoute,
            Self::NoCluster => ResponseFlag::NoCluster,
            Self::NoHealthyUpstream => ResponseFlag::NoHealthyUpstream,
            Self::Connect(
                ConnectError::Remote(_) | ConnectError::Local(_) | ConnectError::Timeout,
            ) => ResponseFlag::UpstreamConnectFailure,
            Self::Closed => ResponseFlag::UpstreamClosed,
            Self::Reset => ResponseFlag::UpstreamReset,
            Self::Protocol => ResponseFlag::UpstreamProtocolError,
            Self::Local => ResponseFlag::LocalReset,
            Self::Timeout | Self::TryTimeout => ResponseFlag::UpstreamTimeout,
            Self::Overflow | Self::Connect(ConnectError::Limit) => ResponseFlag::UpstreamOverflow,
            Self::RateLimited => ResponseFlag::RateLimited,
            Self::Malformed | Self::Coding => ResponseFlag::DownstreamProtocolError,
        }
    }

    /// Envoy's `response_code_details`.
    pub(super) fn details(&self) -> String {
        let reset = |reason| format!("upstream_reset_before_response_started{{{reason}}}");
        match self {
            Self::NoRoute => "route_not_found".to_owned(),
            Self::NoCluster => "cluster_not_found".to_owned(),
            Self::NoHealthyUpstream => "no_healthy_upstream".to_owned(),
            Self::Connect(ConnectError::Remote(_)) => reset("remote_connection_failure"),
            Self::Connect(ConnectError::Local(_)) => reset("local_connection_failure"),
            Self::Connect(ConnectError::Timeout) => reset("connection_timeout"),
            Self::Overflow | Self::Connect(ConnectError::Limit) => reset("overflow"),
            Self::Closed => reset("connection_termination"),
            Self::Reset => reset("remote_reset"),
            Self::Protocol => reset("protocol_error"),
            Self::Local => reset("local_reset"),
            Self::Timeout => "response_timeout".to_owned(),
            Self::TryTimeout => "upstream_per_try_timeout".to_owned(),
            Self::RateLimited => RATE_LIMITED.to_owned(),
            Self::Malformed | Self::Coding => "http.codec_error".to_owned(),
        }
    }

    /// What the client reads. `retried`: more than one attempt was made.
    pub(super) fn body(&self, retried: bool) -> String {
        let reason = match self {
            Self::NoRoute | Self::NoCluster | Self::Malformed | Self::Coding => {
                return String::new();
            }
            Self::NoHealthyUpstream => return "no healthy upstream".to_owned(),
            Self::RateLimited => return RATE_LIMITED.to_owned(),
            Self::Timeout | Self::TryTimeout => return "upstream request timeout".to_owned(),
            Self::Connect(error) => error.to_string(),
            Self::Closed => "connection termination".to_owned(),
            Self::Reset => "remote reset".to_owned(),
            Self::Overflow => "overflow".to_owned(),
            Self::Protocol => "protocol error".to_owned(),
            Self::Local => "local reset".to_owned(),
        };
        let latest = if retried { "retried and the latest reset reason" } else { "reset reason" };
        format!("upstream connect error or disconnect/reset before headers. {latest}: {reason}")
    }
}

impl From<&h2::Error> for HttpError {
    fn from(error: &h2::Error) -> Self {
        match error.is_remote() && (error.is_reset() || error.is_go_away()) {
            true => Self::Reset,
            false if error.is_io() => Self::Closed,
            false => Self::Protocol,
        }
    }
}

impl From<&IncomingError> for HttpError {
    fn from(error: &IncomingError) -> Self {
        match error {
            IncomingError::Http1(error) => error.into(),
            IncomingError::Http2(error) => error.into(),
        }
    }
}

impl From<&hyper::Error> for HttpError {
    fn from(error: &hyper::Error) -> Self {
        if error.is_parse() {
            Self::Protocol
        } else if error.is_user() {
            Self::Local
        } else {
            Self::Closed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_envoys() {
        let refused = HttpError::Connect(ConnectError::Remote("refused".to_owned()));
        assert_eq!(
            refused.body(false),
            "upstream connect error or disconnect/reset before headers. reset reason: remote \
             connection failure, transport failure reason: refused"
        );
        assert_eq!(
            HttpError::Closed.body(true),
            "upstream connect error or disconnect/reset before headers. retried and the latest \
             reset reason: connection termination"
        );
        assert_eq!(HttpError::NoRoute.body(false), "");
    }
}
