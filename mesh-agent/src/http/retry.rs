//! Whether a request is tried again, and when. Pure.
//!
//! Source: Istio `http[].retries` (istio-surface 1.1.2 and 2.2), Envoy `RetryStateImpl`. Not here:
//! limits on retries (`balance`), what is sent again (`replay`).

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use super::body::grpc_status;
use super::serve::HttpVersion;
use crate::balance::share;
use crate::model::{RetryOn, RetryPolicy};

/// What an attempt has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The head of an answer.
    Answer {
        status: StatusCode,
        /// `grpc-status` in the head: an answer of trailers only.
        grpc: Option<u16>,
        /// It has `x-envoy-ratelimited`.
        rate_limited: bool,
    },
    /// No connection: nothing was sent.
    NoConnection,
    /// The endpoint has not begun with it (HTTP/2 `REFUSED_STREAM`, or GOAWAY before it).
    Refused,
    /// The connection or stream broke, or what came is no HTTP.
    Broken,
    /// `perTryTimeout` has passed.
    TryTimeout,
}

impl Outcome {
    /// Of a response's head.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        Self::Answer {
            status,
            grpc: grpc_status(headers).and_then(|value| value.to_str().ok()?.parse().ok()),
            rate_limited: headers.contains_key("x-envoy-ratelimited"),
        }
    }
}

/// Whether the policy has conditions that can hold once something of a request was sent: then its
/// head and body must be kept. `endpoint`: what is spoken to it.
pub(super) fn keeps(
    policy: &RetryPolicy,
    (grpc, body): (bool, bool),
    endpoint: HttpVersion,
) -> bool {
    const OF_ANSWERS: RetryOn = RetryOn::SERVER_ERROR
        .with(RetryOn::GATEWAY_ERROR)
        .with(RetryOn::RESET)
        .with(RetryOn::RATE_LIMITED)
        .with(RetryOn::RETRIABLE_4XX);
    const OF_GRPC: RetryOn = RetryOn::CANCELLED
        .with(RetryOn::DEADLINE_EXCEEDED)
        .with(RetryOn::INTERNAL)
        .with(RetryOn::RESOURCE_EXHAUSTED)
        .with(RetryOn::UNAVAILABLE);
    // Only HTTP/2 has a word for it. What has no body comes back from the connection.
    const OF_REFUSALS: RetryOn = RetryOn::REFUSED_STREAM.with(RetryOn::RESET_BEFORE_REQUEST);
    policy.attempts > 0
        && (policy.on.has(OF_ANSWERS)
            || !policy.statuses.is_empty()
            || (grpc && policy.on.has(OF_GRPC))
            || (endpoint == HttpVersion::Http2 && body && policy.on.has(OF_REFUSALS)))
}

/// Whether the policy wants another attempt after this outcome.
pub(super) fn wanted(policy: &RetryPolicy, outcome: Outcome) -> bool {
    let on = policy.on;
    // Envoy's policies for 5xx hold for whatever brings no answer, too.
    let any_failure = RetryOn::SERVER_ERROR.with(RetryOn::GATEWAY_ERROR).with(RetryOn::RESET);
    match outcome {
        Outcome::Answer { rate_limited: true, .. } => on.has(RetryOn::RATE_LIMITED),
        Outcome::Answer { status, grpc, .. } => {
            let code = status.as_u16();
            (on.has(RetryOn::SERVER_ERROR) && code >= 500)
                || (on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&code))
                || (on.has(RetryOn::RETRIABLE_4XX) && code == 409)
                || policy.statuses.contains(&code)
                || grpc.is_some_and(|grpc| on.has(of_grpc(grpc)))
        }
        Outcome::NoConnection => {
            on.has(any_failure.with(RetryOn::CONNECT_FAILURE).with(RetryOn::RESET_BEFORE_REQUEST))
        }
        Outcome::Refused => {
            on.has(any_failure.with(RetryOn::REFUSED_STREAM).with(RetryOn::RESET_BEFORE_REQUEST))
        }
        Outcome::Broken | Outcome::TryTimeout => on.has(any_failure),
    }
}

/// The condition that a `grpc-status` meets; the empty one if none.
fn of_grpc(status: u16) -> RetryOn {
    match status {
        1 => RetryOn::CANCELLED,
        4 => RetryOn::DEADLINE_EXCEEDED,
        8 => RetryOn::RESOURCE_EXHAUSTED,
        13 => RetryOn::INTERNAL,
        14 => RetryOn::UNAVAILABLE,
        _ => RetryOn::default(),
    }
}

/// The HTTP status that a `grpc-status` means (Envoy's `grpcToHttpStatus`).
pub(super) fn status_of_grpc(status: u16) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// How long to wait before retry number `retry` (from 1): anywhere in [0, (2^retry - 1) x base),
/// never above ten times the base.
pub(super) fn back_off(base: Duration, retry: u32, draw: u64) -> Duration {
    let factor = 1_u32.checked_shl(retry).map_or(u32::MAX, |power| power - 1);
    let most = base.saturating_mul(factor.min(10));
    Duration::from_nanos(share(draw, u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(on: RetryOn, statuses: &[u16]) -> RetryPolicy {
        RetryPolicy { on, statuses: statuses.into(), ..RetryPolicy::default() }
    }

    fn answer(code: u16) -> Outcome {
        Outcome::of(StatusCode::from_u16(code).unwrap(), &HeaderMap::new())
    }

    fn grpc(code: &'static str) -> Outcome {
        let headers = [("grpc-status".parse().unwrap(), code.parse().unwrap())];
        Outcome::of(StatusCode::OK, &headers.into_iter().collect())
    }

    #[test]
    fn waits_grow_to_the_cap() {
        let base = Duration::from_millis(25);
        let most = |retry| back_off(base, retry, u64::MAX).as_millis();
        assert_eq!([most(1), most(2), most(3), most(4)], [24, 74, 174, 249]);
        assert_eq!(most(40), 249);
        assert_eq!(back_off(base, 2, 0), Duration::ZERO);
        assert_eq!(back_off(Duration::from_secs(1), 1, u64::MAX).as_millis(), 999);
    }

    #[test]
    fn the_default_is_istios() {
        let policy = RetryPolicy::default();
        for outcome in [Outcome::NoConnection, Outcome::Refused, grpc("1"), grpc("14")] {
            assert!(wanted(&policy, outcome), "{outcome:?}");
        }
        for outcome in [answer(503), answer(500), Outcome::Broken, Outcome::TryTimeout, grpc("13")]
        {
            assert!(!wanted(&policy, outcome), "{outcome:?}");
        }
    }

    /// Each condition with all outcomes that it wants.
    #[test]
    fn conditions_want_what_their_names_say() {
        let broken =
            [Outcome::NoConnection, Outcome::Refused, Outcome::Broken, Outcome::TryTimeout];
        let all = [200, 404, 409, 500, 501, 502, 503, 504].map(answer);
        let grpcs = ["0", "1", "4", "8", "13", "14", "x"].map(grpc);
        let outcomes: Vec<_> = [&all[..], &grpcs[..], &broken[..]].concat();
        let expected = [
            (RetryOn::SERVER_ERROR, [&all[3..], &broken[..]].concat()),
            (RetryOn::GATEWAY_ERROR, [&all[5..], &broken[..]].concat()),
            (RetryOn::RESET, broken.to_vec()),
            (RetryOn::RESET_BEFORE_REQUEST, broken[..2].to_vec()),
            (RetryOn::CONNECT_FAILURE, broken[..1].to_vec()),
            (RetryOn::REFUSED_STREAM, broken[1..2].to_vec()),
            (RetryOn::RETRIABLE_4XX, vec![answer(409)]),
            (RetryOn::CANCELLED, vec![grpc("1")]),
            (RetryOn::DEADLINE_EXCEEDED, vec![grpc("4")]),
            (RetryOn::RESOURCE_EXHAUSTED, vec![grpc("8")]),
            (RetryOn::INTERNAL, vec![grpc("13")]),
            (RetryOn::UNAVAILABLE, vec![grpc("14")]),
            (RetryOn::RATE_LIMITED, vec![]),
            (RetryOn::default(), vec![]),
        ];
        for (condition, expected) in expected {
            let policy = on(condition, &[]);
            let found: Vec<_> = outcomes.iter().filter(|one| wanted(&policy, **one)).collect();
            assert_eq!(found, expected.iter().collect::<Vec<_>>(), "{condition:?}");
        }
        let policy = on(RetryOn::default(), &[404, 501]);
        let found: Vec<_> = outcomes.iter().filter(|one| wanted(&policy, **one)).collect();
        assert_eq!(found, [&all[1], &all[4]]);
    }

    #[test]
    fn a_rate_limited_answer_is_only_tried_again_where_asked_for() {
        let headers = [("x-envoy-ratelimited".parse().unwrap(), "true".parse().unwrap())];
        let limited = Outcome::of(StatusCode::SERVICE_UNAVAILABLE, &headers.into_iter().collect());
        assert!(!wanted(&on(RetryOn::SERVER_ERROR, &[503]), limited));
        assert!(wanted(&on(RetryOn::RATE_LIMITED, &[]), limited));
    }

    #[test]
    fn only_what_may_be_sent_again_is_kept() {
        use HttpVersion::{Http1, Http2};
        assert!(!keeps(&RetryPolicy::default(), (false, true), Http1));
        assert!(keeps(&RetryPolicy::default(), (true, true), Http1));
        assert!(keeps(&RetryPolicy::default(), (false, true), Http2));
        assert!(keeps(&on(RetryOn::RESET, &[]), (false, true), Http1));
        assert!(keeps(&on(RetryOn::default(), &[429]), (false, true), Http1));
        for refused in [RetryOn::REFUSED_STREAM, RetryOn::RESET_BEFORE_REQUEST] {
            assert!(keeps(&on(refused, &[]), (false, true), Http2));
            assert!(!keeps(&on(refused, &[]), (false, false), Http2));
            assert!(!keeps(&on(refused, &[]), (false, true), Http1));
        }
        assert!(!keeps(&on(RetryOn::CONNECT_FAILURE, &[]), (true, true), Http2));
        let never = RetryPolicy { attempts: 0, ..on(RetryOn::RESET, &[429]) };
        assert!(!keeps(&never, (true, true), Http2));
    }
}
