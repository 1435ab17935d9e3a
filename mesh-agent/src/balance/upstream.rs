//! One upstream's run-time state: who may be chosen, how busy each is, whose turn it is.
//!
//! Invariant: the active count of an address survives a change of configuration as long as the
//! address stays an endpoint; a guard gives back what it took, on the counter it took it from.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustc_hash::FxHashMap;

use super::pick::choose;
use crate::model::{Endpoint, LoadBalancer, ServiceKey, Subset, in_use};

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

/// The chosen endpoint. Its request counts as active until the guard is dropped.
#[derive(Debug)]
pub struct Picked {
    /// Where to go.
    pub endpoint: Endpoint,
    /// Holds the endpoint's active count up.
    pub active: ActiveGuard,
}

/// One active request at one endpoint.
#[derive(Debug)]
pub struct ActiveGuard(Arc<AtomicU32>);

/// Address families, as far as balancing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Run-time state of one upstream.
#[derive(Debug)]
pub(super) struct Upstream {
    /// One per family, so that clients of one family get exact turns.
    turns: [AtomicUsize; 2],
    view: ArcSwap<View>,
    rebuild: Mutex<()>,
}

/// The endpoints of one generation that take requests: the ready ones, or where none of a family is,
/// those that terminate and still serve.
#[derive(Debug, Default)]
struct View {
    /// [`super::Live`]'s number; 0 before the first.
    epoch: u64,
    v4: Vec<Candidate>,
    v6: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Endpoint,
    active: Arc<AtomicU32>,
}

// === impl ActiveGuard ===

impl ActiveGuard {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Family ===

impl Family {
    pub(super) fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

// === impl Upstream ===

impl Upstream {
    pub(super) fn new() -> Self {
        Self {
            turns: [AtomicUsize::new(0), AtomicUsize::new(0)],
            view: ArcSwap::from_pointee(View::default()),
            rebuild: Mutex::new(()),
        }
    }

    /// Chooses among the ready endpoints of the first family in `families` that has any, those in
    /// `tried` only if no other is left.
    pub(super) fn pick(
        &self,
        generation: &Generation<'_>,
        families: &[Family],
        policy: LoadBalancer,
        tried: &[SocketAddr],
        draw: u64,
    ) -> Option<Picked> {
        let view = self.view(generation);
        let (family, candidates) = families
            .iter()
            .map(|family| (*family, view.candidates(*family)))
            .find(|(_, candidates)| !candidates.is_empty())?;
        let turn = || self.turns[family as usize].fetch_add(1, Ordering::Relaxed);
        let load = |candidate: &Candidate| candidate.active.load(Ordering::Relaxed);
        let fresh: Vec<&Candidate> = if tried.is_empty() {
            Vec::new()
        } else {
            candidates.iter().filter(|found| !tried.contains(&found.endpoint.address)).collect()
        };
        let chosen = if fresh.is_empty() {
            let at = choose(policy, candidates.len(), |at| load(&candidates[at]), turn, draw)?;
            candidates.get(at)?
        } else {
            let at = choose(policy, fresh.len(), |at| load(fresh[at]), turn, draw)?;
            fresh.get(at)?
        };
        Some(Picked { endpoint: chosen.endpoint.clone(), active: ActiveGuard::new(&chosen.active) })
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
        let built = Arc::new(View::build(generation, &current));
        if built.epoch > current.epoch {
            self.view.store(Arc::clone(&built));
        }
        built
    }
}

/// What an upstream is made of in one generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generation<'a> {
    pub(super) epoch: u64,
    pub(super) endpoints: &'a [Endpoint],
    pub(super) subset: Option<&'a Subset>,
}

// === impl View ===

impl View {
    fn build(generation: &Generation<'_>, previous: &Self) -> Self {
        let counts: FxHashMap<SocketAddr, &Arc<AtomicU32>> = previous
            .v4
            .iter()
            .chain(&previous.v6)
            .map(|candidate| (candidate.endpoint.address, &candidate.active))
            .collect();
        let mut view = Self { epoch: generation.epoch, ..Self::default() };
        for family in [Family::V4, Family::V6] {
            let selected = |found: &&Endpoint| {
                Family::of(found.address) == family && is_selected(found, generation)
            };
            let chosen = in_use(generation.endpoints.iter().filter(selected));
            let candidates = chosen.map(|endpoint| Candidate {
                endpoint: endpoint.clone(),
                active: counts
                    .get(&endpoint.address)
                    .map_or_else(Arc::default, |old| (*old).clone()),
            });
            match family {
                Family::V4 => view.v4.extend(candidates),
                Family::V6 => view.v6.extend(candidates),
            }
        }
        view
    }

    fn candidates(&self, family: Family) -> &[Candidate] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

fn is_selected(endpoint: &Endpoint, generation: &Generation<'_>) -> bool {
    generation.subset.is_none_or(|subset| in_subset(endpoint, subset))
}

/// Whether the pod behind `endpoint` carries all labels of `subset`.
pub(super) fn in_subset(endpoint: &Endpoint, subset: &Subset) -> bool {
    subset.labels.iter().all(|(key, value)| {
        endpoint.workload.as_ref().is_some_and(|pod| pod.labels.get(key) == Some(value))
    })
}
