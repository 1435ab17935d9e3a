//! Rate limits: which one counts a request, and whether that lets it in (`RateLimit` of malha.dev).
//!
//! A request counts against the service that it addresses, and against the one that its rule sends it
//! to, where that is another. Invariant: without limits this costs one look at an empty table.

use std::sync::Arc;

use tokio::time::Instant;

use super::router::{Head, holds};
use crate::balance::Live;
use crate::model::{HttpRule, RateLimit, RateMatch, Service, Workload};
use crate::telemetry::RequestRecord;

/// A request, as far as limits look at it.
pub(super) struct Limits<'a> {
    pub(super) live: &'a Live,
    pub(super) source: &'a Workload,
    pub(super) head: &'a Head<'a>,
    /// The service that the client addressed, and its port.
    pub(super) addressed: Option<&'a Arc<Service>>,
    pub(super) port: u16,
    /// The VirtualService's rule that the request falls under.
    pub(super) rule: Option<&'a HttpRule>,
}

impl Limits<'_> {
    /// Counts the request against the service that it addresses; `false`: it is one too many, which
    /// the record is told.
    pub(super) fn let_in(&self, record: &mut RequestRecord) -> bool {
        self.addressed.is_none_or(|service| self.count(service, record))
    }

    /// Counts it against the service that it goes to, unless it addresses that.
    pub(super) fn let_on(&self, to: &Service, record: &mut RequestRecord) -> bool {
        self.addressed.is_some_and(|service| service.key == to.key) || self.count(to, record)
    }

    fn count(&self, service: &Service, record: &mut RequestRecord) -> bool {
        let limits = &self.live.snapshot.rate_limits;
        if limits.is_empty() {
            return true;
        }
        let limits = limits.get(&service.key);
        let limit = limits.and_then(|limits| limits.iter().find(|limit| self.is_under(limit)));
        let Some(limit) = limit else { return true };
        let is_in = self.live.lets_in(self.source, limit, Instant::now());
        if !is_in {
            record.rate_limited(limit);
        }
        is_in
    }

    fn is_under(&self, limit: &RateLimit) -> bool {
        let is_one = |entry: &RateMatch| {
            let rule = self.rule.map(|rule| &rule.name);
            (entry.route.is_none() || entry.route.as_ref() == rule)
                && holds(&entry.request, self.source, self.head, self.port)
        };
        limit.callers.include(self.source)
            && (limit.matches.is_empty() || limit.matches.iter().any(is_one))
    }
}
