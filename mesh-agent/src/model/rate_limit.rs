//! How many requests callers may send to a service (`RateLimit` of malha.dev), compiled.
//!
//! Invariant: a limit that did not change is the same `Arc` in the next snapshot: what callers have
//! used of it is kept by pointer.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::{HttpMatch, ObjectRef, Workload};

/// One entry of `spec.limits[]`. Each caller's pod has its own use of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// The object that it is of.
    pub object: ObjectRef,
    /// `name`, else its place in the list, from 0: for logs and metrics.
    pub name: Arc<str>,
    /// `from`.
    pub callers: Callers,
    /// `match[]`: any of these; empty: every request.
    pub matches: Vec<RateMatch>,
    /// `requests`, `per` and `burst`.
    pub rate: Rate,
}

/// `limits[].from`: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Namespace of the caller's pod.
    pub namespace: Option<Arc<str>>,
    /// Labels that the caller's pod has.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Callers {
    /// Whether a pod is one of them.
    pub fn include(&self, pod: &Workload) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| *wanted == pod.name.namespace)
            && pod.has_labels(&self.labels)
    }
}

/// One entry of `limits[].match[]`: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RateMatch {
    /// Name of the VirtualService's rule that the request falls under.
    pub route: Option<Arc<str>>,
    /// `uri`, `method` and `headers`.
    pub request: HttpMatch,
}

/// A token bucket: so many requests at once, then one each interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds between two requests at the full rate; `None`: no request is let in.
    pub interval: Option<NonZeroU64>,
    /// Requests that a caller may send at once who has sent none for long; at least 1.
    pub burst: u32,
}

impl Rate {
    /// `requests` in each `per`. `burst`: by default what is let in within a second, rounded up.
    pub fn new(requests: u32, per: Duration, burst: Option<u32>) -> Self {
        let (requests, per) = (u128::from(requests), per.as_nanos().max(1));
        // Rounded up, so that never more than `requests` are let in.
        let interval = (requests > 0).then(|| per.div_ceil(requests));
        let interval = interval.map(|nanos| u64::try_from(nanos).unwrap_or(u64::MAX));
        let default = || u32::try_from((requests * NANOS).div_ceil(per)).unwrap_or(u32::MAX);
        Self {
            interval: interval.and_then(NonZeroU64::new),
            burst: burst.unwrap_or_else(default).max(1),
        }
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let rate = |requests, per_ms, burst| {
            let rate = Rate::new(requests, Duration::from_millis(per_ms), burst);
            (rate.interval.map(NonZeroU64::get), rate.burst)
        };
        assert_eq!(rate(200, 1_000, None), (Some(5_000_000), 200));
        assert_eq!(rate(200, 1_000, Some(50)), (Some(5_000_000), 50));
        assert_eq!(rate(3, 1_000, None), (Some(333_333_334), 3));
        assert_eq!(rate(100, 60_000, None), (Some(600_000_000), 2));
        assert_eq!(rate(1, 3_600_000, None), (Some(3_600_000_000_000), 1));
        assert_eq!(rate(10, 100, None), (Some(10_000_000), 100));
        assert_eq!(rate(0, 1_000, None), (None, 1));
    }
}
