//! When a request is sent again (Istio `http[].retries`). Semantics: istio-surface 1.1.2 and 2.2.

use std::sync::Arc;
use std::time::Duration;

/// A set of conditions of `retries.retryOn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetryOn(u16);

impl RetryOn {
    /// `5xx`: any 5xx, or no answer at all.
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`: 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`: no answer (reset, connection lost, per-try time-out).
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`: as `reset`, with nothing of the request sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`: no connection.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `envoy-ratelimited`: the answer has `x-envoy-ratelimited`.
    pub const RATE_LIMITED: Self = Self(1 << 5);
    /// `retriable-4xx`: 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// `refused-stream`: the endpoint has not begun with the request (HTTP/2 `REFUSED_STREAM`).
    pub const REFUSED_STREAM: Self = Self(1 << 7);
    /// `cancelled`: `grpc-status` 1 in the response's head, as are the next four.
    pub const CANCELLED: Self = Self(1 << 8);
    /// `deadline-exceeded`: 4.
    pub const DEADLINE_EXCEEDED: Self = Self(1 << 9);
    /// `internal`: 13.
    pub const INTERNAL: Self = Self(1 << 10);
    /// `resource-exhausted`: 8.
    pub const RESOURCE_EXHAUSTED: Self = Self(1 << 11);
    /// `unavailable`: 14.
    pub const UNAVAILABLE: Self = Self(1 << 12);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any condition of `other` is in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no condition.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each condition with its word in `retryOn`.
    pub const NAMED: [(&'static str, Self); 13] = [
        ("5xx", Self::SERVER_ERROR),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("envoy-ratelimited", Self::RATE_LIMITED),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("refused-stream", Self::REFUSED_STREAM),
        ("cancelled", Self::CANCELLED),
        ("deadline-exceeded", Self::DEADLINE_EXCEEDED),
        ("internal", Self::INTERNAL),
        ("resource-exhausted", Self::RESOURCE_EXHAUSTED),
        ("unavailable", Self::UNAVAILABLE),
    ];

    /// Istio's default.
    pub const DEFAULT: Self = Self::CONNECT_FAILURE
        .with(Self::REFUSED_STREAM)
        .with(Self::UNAVAILABLE)
        .with(Self::CANCELLED);
}

/// `http[].retries`, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Further attempts after the first; 0: none.
    pub attempts: u32,
    /// `perTryTimeout`: of one attempt, within the route's.
    pub per_try_timeout: Option<Duration>,
    /// `retryOn`, its names.
    pub on: RetryOn,
    /// `retryOn`, its numbers: statuses that are tried again.
    pub statuses: Arc<[u16]>,
    /// `retryRemoteLocalities`: further attempts go to localities that were not tried yet.
    pub remote_localities: bool,
    /// `retryIgnorePreviousHosts`: further attempts go to other endpoints where there are any. Not
    /// heeded under consistent hashing.
    pub ignore_previous_hosts: bool,
    /// `backoff`: base of the time between attempts; it never exceeds ten times this.
    pub back_off: Duration,
}

impl RetryPolicy {
    /// `attempts: 0`.
    #[must_use]
    pub fn never() -> Self {
        Self { attempts: 0, ..Self::default() }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on: RetryOn::DEFAULT,
            statuses: Arc::default(),
            remote_localities: false,
            ignore_previous_hosts: true,
            back_off: Duration::from_millis(25),
        }
    }
}
