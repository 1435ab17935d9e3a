//! What a route does with requests beside routing them: faults, CORS, mirrors
//! (istio-surface 1.1 and 1.1.1).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::{ServiceKey, StringMatch};

/// A share of requests, in parts of a million (Envoy's finest; 0.0001 %).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// Every request.
    pub const ALL: Self = Self(Self::WHOLE);
    /// No request.
    pub const NONE: Self = Self(0);
    const WHOLE: u32 = 1_000_000;

    /// Of a percentage; `None` if it is not within 0 and 100.
    pub fn percent(percent: f64) -> Option<Self> {
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        Some(Self((percent * 10_000.0).round() as u32))
    }

    /// Whether a request with this draw (64 random bits) is one of them.
    pub fn takes(self, draw: u64) -> bool {
        (u128::from(draw) * u128::from(Self::WHOLE)) >> 64 < u128::from(self.0)
    }

    /// In percent.
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

/// `http[].fault`: delay and abort are rolled for each on its own; the delay comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `delay`: how long, and for which share.
    pub delay: Option<(Duration, Share)>,
    /// `abort`: with what, and for which share.
    pub abort: Option<(FaultAbort, Share)>,
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAbort {
    /// `httpStatus`.
    Http(StatusCode),
    /// `grpcStatus`, by number: a trailers-only answer.
    Grpc(u16),
}

/// `http[].corsPolicy` (Fetch standard, section 3.2).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cors {
    /// `allowOrigins`, and the deprecated `allowOrigin`: any of these.
    pub allow_origins: Vec<StringMatch>,
    /// `allowMethods`, joined.
    pub allow_methods: Option<HeaderValue>,
    /// `allowHeaders`, joined.
    pub allow_headers: Option<HeaderValue>,
    /// `exposeHeaders`, joined.
    pub expose_headers: Option<HeaderValue>,
    /// `maxAge`, in seconds.
    pub max_age: Option<HeaderValue>,
    /// `allowCredentials`.
    pub allow_credentials: bool,
    /// `unmatchedPreflights`: whether a preflight of another origin goes on to the service (else it
    /// is answered without CORS headers).
    pub forward_unmatched: bool,
}

/// `http[].mirror` or one of `mirrors[]`: where copies of requests go. Answers are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `destination.host`, expanded and in lower case: for messages.
    pub host: Arc<str>,
    /// The service, or `None`: unknown host, no copies.
    pub service: Option<ServiceKey>,
    /// `destination.subset`.
    pub subset: Option<Arc<str>>,
    /// `destination.port.number`; `None`: the only port, else the one the client addressed.
    pub port: Option<u16>,
    /// Which requests.
    pub share: Share,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(Share::percent(100.0), Some(Share::ALL));
        assert_eq!(Share::percent(0.0), Some(Share::NONE));
        for wrong in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Share::percent(wrong), None, "{wrong}");
        }
        assert!(Share::ALL.takes(u64::MAX) && Share::ALL.takes(0));
        assert!(!Share::NONE.takes(0));
        let finest = Share::percent(0.0001).unwrap();
        assert!(finest.takes(u64::MAX / 1_000_001) && !finest.takes(u64::MAX / 999_999));
    }
}
