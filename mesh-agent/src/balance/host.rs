//! One endpoint as one upstream sees it, and the guard of a request that is there.
//!
//! Invariant: a host outlives changes of configuration as long as its address stays an endpoint; a
//! guard gives back what it took, on the counter it took it from. What is said of a healthy
//! endpoint costs one load.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::time::Instant;

use super::outlier::{self, EjectionReason, Outcome, Streak};
use super::upstream::Upstream;
use crate::model::OutlierDetection;

/// An address and its run-time state.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) address: SocketAddr,
    /// Since when it is an endpoint; `None`: from the process' beginning.
    pub(super) since: Option<Instant>,
    active: AtomicU32,
    /// [`Streak`]'s bits, in one word so that counting and starting over cannot get between each
    /// other.
    streak: AtomicU64,
    /// Failures without an answer in a row, where they are counted apart.
    local: AtomicU32,
    /// Set and cleared under the lock of the upstream's `Book` only.
    ejected: AtomicBool,
}

/// One active request at one endpoint. What becomes of it is said here, too.
#[derive(Debug)]
pub struct ActiveGuard {
    host: Arc<Host>,
    /// `None` without outlier detection.
    watch: Option<Watch>,
}

/// Where a guard says what became of its request, and by which policy it is judged.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) upstream: Arc<Upstream>,
    pub(super) policy: Arc<OutlierDetection>,
}

// === impl Host ===

impl Host {
    pub(super) fn new(address: SocketAddr, since: Option<Instant>) -> Self {
        Self {
            address,
            since,
            active: AtomicU32::new(0),
            streak: AtomicU64::new(0),
            local: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
        }
    }

    /// Requests that are there now.
    pub(super) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Ejects it or takes it back; its streaks start over.
    pub(super) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Ordering::Relaxed);
        self.start_over();
    }

    pub(super) fn start_over(&self) {
        self.streak.store(0, Ordering::Relaxed);
        self.local.store(0, Ordering::Relaxed);
    }

    /// Counts the end of a request; says whether that makes enough to eject it.
    pub(super) fn count(
        &self,
        outcome: Outcome,
        policy: &OutlierDetection,
    ) -> Option<EjectionReason> {
        // Whoever answers can be reached.
        if policy.split && outcome != Outcome::Local && self.local.load(Ordering::Relaxed) != 0 {
            self.local.store(0, Ordering::Relaxed);
        }
        match outcome {
            Outcome::Fine => {
                if self.streak.load(Ordering::Relaxed) != 0 {
                    self.streak.store(0, Ordering::Relaxed);
                }
                None
            }
            Outcome::Error { gateway } => {
                let next = |bits| Some(Streak::from_bits(bits).error(gateway).bits());
                let order = Ordering::Relaxed;
                let Ok(before) = self.streak.fetch_update(order, order, next) else { return None };
                Streak::from_bits(before).error(gateway).verdict(policy)
            }
            Outcome::Local => {
                let next = |count: u32| Some(count.saturating_add(1));
                let order = Ordering::Relaxed;
                let Ok(before) = self.local.fetch_update(order, order, next) else { return None };
                outlier::reached(before.saturating_add(1), policy.consecutive_local)
                    .then_some(EjectionReason::ConsecutiveLocal)
            }
        }
    }
}

// === impl ActiveGuard ===

impl ActiveGuard {
    pub(super) fn new(host: &Arc<Host>, watch: Option<Watch>) -> Self {
        host.active.fetch_add(1, Ordering::Relaxed);
        Self { host: Arc::clone(host), watch }
    }

    /// The endpoint answered with this status; for gRPC, what the status in the head comes to in
    /// HTTP. A TCP connection that was made counts as 200.
    pub fn answered(&self, status: u16) {
        if let Some(watch) = &self.watch {
            watch.tell(&self.host, outlier::answered(status, &watch.policy));
        }
    }

    /// The endpoint did not answer: no connection, none in time, or it was lost. Not for what the
    /// agent itself refuses (overflow, policy).
    pub fn unanswered(&self) {
        if let Some(watch) = &self.watch {
            watch.tell(&self.host, outlier::unanswered(&watch.policy));
        }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.host.active.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Watch ===

impl Watch {
    fn tell(&self, host: &Arc<Host>, outcome: Outcome) {
        // What was under way to an ejected endpoint says nothing new, unless its time is over.
        if outcome != Outcome::Fine
            && host.is_ejected()
            && self.upstream.is_still_ejected(host, &self.policy)
        {
            return;
        }
        if let Some(reason) = host.count(outcome, &self.policy) {
            self.upstream.eject(host, &self.policy, reason);
        }
    }
}
