//! One upstream's run-time state: who may be chosen, how busy each is, whose turn it is, who is
//! ejected.
//!
//! Invariant: what is known of an address survives a change of configuration as long as the address
//! stays an endpoint.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::clock;
use super::ejection::{Book, Ejection, EjectionCounters, Rules};
use super::hash::{hash_of, mix};
use super::host::{ActiveGuard, Host, Watch};
use super::limits::Limits;
use super::live::{Choice, Picked};
use super::outlier::{self, EjectionReason};
use super::pick::{choose, choose_weighted};
use super::table::Table;
use super::view::{Candidate, Family, Generation, Healthy, Members, Set, View};
use super::warmup;
use crate::model::{Endpoint, LoadBalancer, OutlierDetection, ServiceKey, TrafficPolicy, Warmup};

/// Makes of a request's draw, or its hash, one for its tier: the two choices are independent.
const TIER: u64 = 1;

/// What an upstream is: one client's view of a service port, or of a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamKey {
    /// UID of the source workload.
    pub source: Arc<str>,
    /// The service.
    pub service: ServiceKey,
    /// Service port.
    pub port: u16,
    /// Subset, if the route names one.
    pub subset: Option<Arc<str>>,
}

/// Run-time state of one upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    key: UpstreamKey,
    /// First use: the ticks of outlier detection count from here.
    started: Instant,
    pub(super) limits: Arc<Limits>,
    /// One per family, so that clients of one family get exact turns; tiers have their own.
    turns: [AtomicUsize; 2],
    view: ArcSwap<View>,
    /// Held while a view or a table is built, so that it is built once.
    rebuild: Mutex<()>,
    book: Mutex<Book>,
    /// Grows with each change of who is out; 0: nobody ever was.
    changes: AtomicU64,
    counters: Arc<EjectionCounters>,
}

impl Upstream {
    pub(super) fn new(key: UpstreamKey, counters: &Arc<EjectionCounters>) -> Self {
        let turn = first_turn(&key);
        Self {
            key,
            started: clock::now(),
            limits: Arc::default(),
            turns: [AtomicUsize::new(turn), AtomicUsize::new(turn)],
            view: ArcSwap::from_pointee(View::default()),
            rebuild: Mutex::new(()),
            book: Mutex::default(),
            changes: AtomicU64::new(0),
            counters: Arc::clone(counters),
        }
    }

    /// Chooses among the healthy endpoints of the first family in `families` that has any endpoint,
    /// those that were tried only if no other is left.
    pub(super) fn pick(
        self: &Arc<Self>,
        generation: &Generation<'_>,
        families: &[Family],
        policy: &TrafficPolicy,
        choice: &Choice<'_>,
    ) -> Option<Picked> {
        let view = self.view(generation);
        let (family, members) = families
            .iter()
            .map(|family| (*family, view.members(*family)))
            .find(|(_, members)| !members.candidates.is_empty())?;
        let healthy = policy.outlier.as_ref().and_then(|policy| self.healthy(&view, policy));
        let fit = healthy.as_ref().map(|healthy| &healthy.of[family as usize]);
        let hash = choice.hash.filter(|_| policy.load_balancer.is_hash());
        let (members, only, turn) = match &members.tiers {
            None => {
                let only = fit.and_then(|fit| fit.only.as_deref());
                (members, only, &self.turns[family as usize])
            }
            Some(tiers) => {
                let fit = fit.and_then(|fit| fit.tiers.as_ref()).unwrap_or(&tiers.whole);
                let point = mix(hash.unwrap_or(choice.draw), TIER);
                let (tier, only) = tiers.choose(fit, point, choice.leave)?;
                (&tier.members, only, &*tier.turn)
            }
        };
        let mut set = Set { all: &members.candidates, only };
        let fresh = if choice.tried.is_empty() { Vec::new() } else { set.without(choice.tried) };
        if !fresh.is_empty() {
            set.only = Some(&fresh);
        }
        let chosen = match hash {
            Some(hash) => set.by_hash(&self.table(members, policy.load_balancer), hash)?,
            None => choose_in(set, (members, turn), policy, choice.draw)?,
        };
        Some(self.picked(chosen, policy))
    }

    /// The endpoint that its client has chosen; `None`: it is ejected.
    pub(super) fn pick_at(
        self: &Arc<Self>,
        generation: &Generation<'_>,
        policy: &TrafficPolicy,
        endpoint: &Endpoint,
    ) -> Option<Picked> {
        let view = self.view(generation);
        let family = Family::of(endpoint.address);
        let all = &view.members(family).candidates;
        let Some(index) = all.iter().position(|found| found.host.address == endpoint.address)
        else {
            // Not ready: nobody is balanced there, and its client knows why it wants this one.
            let active = ActiveGuard::new(&Arc::new(Host::new(endpoint.address, None)), None);
            return Some(Picked { endpoint: endpoint.clone(), active });
        };
        let healthy = policy.outlier.as_ref().and_then(|policy| self.healthy(&view, policy));
        let fit = healthy.as_ref().map(|healthy| &healthy.of[family as usize]);
        let only = fit.and_then(|fit| fit.only.as_deref());
        let chosen = Set { all, only }.member(index)?;
        // Tiers keep their own lists.
        let is_out = fit.is_some_and(|fit| fit.tiers.is_some()) && chosen.host.is_ejected();
        (!is_out).then(|| self.picked(chosen, policy))
    }

    fn picked(self: &Arc<Self>, chosen: &Candidate, policy: &TrafficPolicy) -> Picked {
        let watch = policy
            .outlier
            .as_ref()
            .map(|policy| Watch { upstream: Arc::clone(self), policy: Arc::clone(policy) });
        let active = ActiveGuard::new(&chosen.host, watch);
        Picked { endpoint: chosen.endpoint.clone(), active }
    }

    /// The candidates of a generation, built when it is first asked for. A request that still holds
    /// an older generation builds its own and leaves the newer one in place.
    fn view(&self, generation: &Generation<'_>) -> Arc<View> {
        let current = self.view.load();
        if current.epoch == generation.epoch {
            return Arc::clone(&current);
        }
        let _one_builder = self.rebuild.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.view.load_full();
        if current.epoch == generation.epoch {
            return current;
        }
        let built = Arc::new(View::build(generation, &current, first_turn(&self.key)));
        if built.epoch > current.epoch {
            self.view.store(Arc::clone(&built));
            self.forget_leavers(&built);
        }
        built
    }

    fn table(&self, members: &Members, by: LoadBalancer) -> Arc<Table> {
        if let Some(table) = members.table(by) {
            return table;
        }
        let _one_builder = self.rebuild.lock().unwrap_or_else(PoisonError::into_inner);
        members.table(by).unwrap_or_else(|| members.build_table(by))
    }

    // === outlier detection ===

    /// Who is not ejected; `None`: nobody ever was.
    fn healthy(&self, view: &View, policy: &Arc<OutlierDetection>) -> Option<Arc<Healthy>> {
        let change = self.changes.load(Ordering::Acquire);
        if change == 0 {
            return None;
        }
        let is_current = |found: &Arc<Healthy>| {
            found.change == change
                && Arc::ptr_eq(&found.policy, policy)
                && found.until.is_none_or(|until| clock::now() < until)
        };
        if let Some(found) = view.healthy.load_full().filter(is_current) {
            return Some(found);
        }
        let rules = self.rules(policy);
        let mut book = self.book();
        self.settle(&mut book, &rules);
        let made = Arc::new(Healthy {
            change: self.changes.load(Ordering::Acquire),
            policy: Arc::clone(policy),
            until: book.next(&rules),
            of: [Family::V4, Family::V6].map(|family| view.members(family).fit(policy)),
        });
        view.healthy.store(Some(Arc::clone(&made)));
        Some(made)
    }

    /// Whether a host is out, after a look at the clock.
    pub(super) fn is_still_ejected(&self, host: &Host, policy: &OutlierDetection) -> bool {
        let mut book = self.book();
        self.settle(&mut book, &self.rules(policy));
        host.is_ejected()
    }

    /// Ejects a host whose streak is long enough, once, and if not too many are out.
    pub(super) fn eject(
        &self,
        host: &Arc<Host>,
        policy: &OutlierDetection,
        reason: EjectionReason,
    ) {
        let rules = self.rules(policy);
        let mut book = self.book();
        self.settle(&mut book, &rules);
        if host.is_ejected() {
            return;
        }
        // Whether or not there is room: the next one needs a streak of its own.
        host.start_over();
        let view = self.view.load();
        let family = Family::of(host.address);
        let candidates = &view.members(family).candidates;
        let most = outlier::most_ejected(candidates.len(), policy.max_ejection_percent);
        let is_endpoint = || candidates.iter().any(|found| Arc::ptr_eq(&found.host, host));
        if book.ejected(family) >= most || !is_endpoint() {
            return;
        }
        let (times, time) = book.eject(host, reason, &rules);
        self.changes.fetch_add(1, Ordering::Release);
        self.counters.add(&self.key.service, reason);
        tracing::info!(
            target: "outlier",
            client = %self.key.source,
            service = %self.key.service,
            port = self.key.port,
            subset = self.key.subset.as_deref(),
            endpoint = %host.address,
            reason = reason.as_str(),
            seconds = time.as_secs_f64(),
            times,
            "endpoint ejected"
        );
    }

    /// Those who are ejected now; none where outlier detection is off.
    pub(super) fn ejections(&self, policy: &OutlierDetection, now: Instant) -> Vec<Ejection> {
        let rules = Rules { policy, started: self.started, now };
        let book = self.book();
        let ejection = |(address, reason, remaining, times)| Ejection {
            source: Arc::clone(&self.key.source),
            service: self.key.service.clone(),
            port: self.key.port,
            subset: self.key.subset.clone(),
            address,
            reason,
            remaining,
            times,
        };
        book.list(&rules).map(ejection).collect()
    }

    pub(super) fn key(&self) -> &UpstreamKey {
        &self.key
    }

    fn rules<'a>(&self, policy: &'a OutlierDetection) -> Rules<'a> {
        Rules { policy, started: self.started, now: clock::now() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, book: &mut Book, rules: &Rules<'_>) {
        if book.settle(rules) {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    /// Whoever is an endpoint no more is not out either: it would take a place from others.
    fn forget_leavers(&self, view: &View) {
        if self.changes.load(Ordering::Acquire) == 0 {
            return;
        }
        let is_endpoint = |address| {
            let candidates = &view.members(Family::of(address)).candidates;
            candidates.iter().any(|found| found.host.address == address)
        };
        if self.book().keep(is_endpoint) {
            self.changes.fetch_add(1, Ordering::Release);
        }
    }
}

/// Where an upstream's turns begin: elsewhere for each client, or the first endpoint would get all
/// requests of clients that send one (Envoy draws at random). 32 bits, so that a count from here on
/// does not wrap around, which would be a turn out of order.
fn first_turn(key: &UpstreamKey) -> usize {
    let UpstreamKey { source, service, port, subset } = key;
    let name = format!("{source}|{service}|{port}|{}", subset.as_deref().unwrap_or_default());
    usize::try_from(hash_of(name.as_bytes()) >> 32).unwrap_or(0)
}

fn choose_in<'a>(
    set: Set<'a>,
    (members, turns): (&Members, &AtomicUsize),
    policy: &TrafficPolicy,
    draw: u64,
) -> Option<&'a Candidate> {
    let turn = || turns.fetch_add(1, Ordering::Relaxed);
    let load = |at| set.get(at).map_or(u32::MAX, |candidate| candidate.host.active());
    let by = policy.load_balancer;
    let at = match warming(policy, members) {
        None => choose(by, set.len(), load, turn, draw)?,
        Some((warmup, now)) => {
            let weight = |at| match set.get(at) {
                Some(candidate) => warmup::weight(warmup, candidate.host.since, now),
                None => 0.0,
            };
            choose_weighted(by, set.len(), load, turn, draw, weight)?
        }
    };
    set.get(at)
}

/// The policy's warm-up, and the time, while anybody may be in it.
fn warming<'a>(policy: &'a TrafficPolicy, members: &Members) -> Option<(&'a Warmup, Instant)> {
    let warmup = policy.warmup.as_ref()?;
    let newest = members.newest?;
    let now = clock::now();
    (now.saturating_duration_since(newest) < warmup.duration).then_some((warmup, now))
}
