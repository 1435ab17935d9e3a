//! What the authority counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::admission::Outcome;
use super::decide::{Grant, Refusal};

/// Labels of certificates.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Signed {
    /// `own`, or `agent` for an identity of a pod on the agent's node.
    caller: &'static str,
}

/// Labels of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    reason: &'static str,
}

/// Labels of admission reviews.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reviewed {
    /// `admitted`, `warned`, `refused`, or `unanswered` for a request that is no review.
    answer: &'static str,
}

/// Labels of writes to objects' status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Written {
    /// `ok`, `conflict` (the object had changed meanwhile, and is looked at again) or `error`.
    result: &'static str,
}

/// The families.
pub(super) struct Metrics {
    signed: Family<Signed, Counter>,
    refused: Family<Refused, Counter>,
    reviewed: Family<Reviewed, Counter>,
    written: Family<Written, Counter>,
    /// 1 on the replica that writes objects' status.
    leads: Gauge,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            signed: Family::default(),
            refused: Family::default(),
            reviewed: Family::default(),
            written: Family::default(),
            leads: Gauge::default(),
        };
        registry.register(
            "malha_authority_signed",
            "Certificates signed, for the caller itself or for a pod of an agent's node",
            metrics.signed.clone(),
        );
        registry.register(
            "malha_authority_refused",
            "Requests for a certificate that were refused",
            metrics.refused.clone(),
        );
        registry.register(
            "malha_authority_reviews",
            "Admission reviews of the API server, by answer",
            metrics.reviewed.clone(),
        );
        registry.register(
            "malha_authority_status_writes",
            "Writes to the status of objects, by result",
            metrics.written.clone(),
        );
        registry.register(
            "malha_authority_leader",
            "Whether this replica writes the status of objects",
            metrics.leads.clone(),
        );
        metrics
    }

    pub(super) fn signed(&self, grant: &Grant) {
        let caller = if grant.impersonated { "agent" } else { "own" };
        self.signed.get_or_create(&Signed { caller }).inc();
    }

    pub(super) fn reviewed(&self, outcome: Outcome) {
        let answer = match outcome {
            Outcome::Admitted => "admitted",
            Outcome::Warned => "warned",
            Outcome::Refused => "refused",
        };
        self.reviewed.get_or_create(&Reviewed { answer }).inc();
    }

    pub(super) fn unanswered(&self) {
        self.reviewed.get_or_create(&Reviewed { answer: "unanswered" }).inc();
    }

    pub(super) fn written(&self, result: &'static str) {
        self.written.get_or_create(&Written { result }).inc();
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&Refused { reason: refusal.reason() }).inc();
    }
}
