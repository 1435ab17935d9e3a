//! An upstream's endpoints in one generation of configuration, and which of them may be chosen.
//!
//! Invariant: a view never changes but for what is computed from it and kept: tables of hashes, and
//! the list of those not ejected, which names the change of the upstream's book that it is of.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::hash::mix;
use super::hash_of;
use super::host::Host;
use super::table::Table;
use crate::model::{Endpoint, LoadBalancer, OutlierDetection, ServiceKey, Subset, in_use};

/// Address families, as far as balancing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What an upstream is made of in one generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Generation<'a> {
    /// [`super::Live`]'s number.
    pub(super) epoch: u64,
    pub(super) arrivals: &'a Arrivals,
    /// The service, and its port.
    pub(super) of: (&'a ServiceKey, u16),
    pub(super) endpoints: &'a [Endpoint],
    pub(super) subset: Option<&'a Subset>,
}

/// The endpoints of one generation that take requests: the ready ones, or where none of a family
/// is, those that terminate and still serve.
#[derive(Debug, Default)]
pub(super) struct View {
    /// [`super::Live`]'s number; 0 before the first.
    pub(super) epoch: u64,
    v4: Members,
    v6: Members,
    /// Made when somebody is ejected.
    pub(super) healthy: ArcSwapOption<Healthy>,
}

/// One family's endpoints, in the order of the configuration.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) candidates: Vec<Candidate>,
    /// When the last one came; `None`: all were there from the beginning.
    pub(super) newest: Option<Instant>,
    /// Made when a policy hashes.
    pub(super) table: ArcSwapOption<Table>,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: Endpoint,
    pub(super) host: Arc<Host>,
}

/// Who is not ejected.
#[derive(Debug)]
pub(super) struct Healthy {
    /// The book's change.
    pub(super) change: u64,
    /// By this policy.
    pub(super) policy: Arc<OutlierDetection>,
    /// Until this moment; `None`: nobody is out.
    pub(super) until: Option<Instant>,
    /// Indexes in order, by family; `None`: all.
    pub(super) only: [Option<Box<[u32]>>; 2],
}

/// Those among whom a choice is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set<'a> {
    pub(super) all: &'a [Candidate],
    /// Indexes into `all` in order; `None`: all.
    pub(super) only: Option<&'a [u32]>,
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

// === impl View ===

impl View {
    pub(super) fn build(generation: &Generation<'_>, previous: &Self) -> Self {
        let known: FxHashMap<SocketAddr, &Arc<Host>> = previous
            .v4
            .candidates
            .iter()
            .chain(&previous.v6.candidates)
            .map(|candidate| (candidate.endpoint.address, &candidate.host))
            .collect();
        let (service, port) = generation.of;
        let since = |address| generation.arrivals.of(service, port, address);
        let members = |family: Family| {
            let selected = |found: &&Endpoint| {
                Family::of(found.address) == family
                    && generation.subset.is_none_or(|subset| subset.has(found))
            };
            let candidates = in_use(generation.endpoints.iter().filter(selected))
                .map(|endpoint| Candidate {
                    endpoint: endpoint.clone(),
                    host: match known.get(&endpoint.address) {
                        Some(host) => Arc::clone(host),
                        None => Arc::new(Host::new(endpoint.address, since(endpoint.address))),
                    },
                })
                .collect();
            Members::new(candidates, previous.members(family))
        };
        Self {
            epoch: generation.epoch,
            v4: members(Family::V4),
            v6: members(Family::V6),
            healthy: ArcSwapOption::empty(),
        }
    }

    pub(super) fn members(&self, family: Family) -> &Members {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

// === impl Members ===

impl Members {
    /// A table goes over to the next generation where the addresses are the same.
    fn new(candidates: Vec<Candidate>, previous: &Self) -> Self {
        let newest = candidates.iter().filter_map(|candidate| candidate.host.since).max();
        let same = |(new, old): (&Candidate, &Candidate)| new.host.address == old.host.address;
        let table = previous.table.load_full().filter(|_| {
            candidates.len() == previous.candidates.len()
                && candidates.iter().zip(&previous.candidates).all(same)
        });
        Self { candidates, newest, table: ArcSwapOption::new(table) }
    }

    /// The table for this balancer, if it is there.
    pub(super) fn table(&self, by: LoadBalancer) -> Option<Arc<Table>> {
        self.table.load_full().filter(|table| table.by == by)
    }

    pub(super) fn build_table(&self, by: LoadBalancer) -> Arc<Table> {
        let addresses: Vec<SocketAddr> =
            self.candidates.iter().map(|candidate| candidate.host.address).collect();
        let table = Arc::new(Table::build(by, &addresses));
        self.table.store(Some(Arc::clone(&table)));
        table
    }
}

// === impl Set ===

impl<'a> Set<'a> {
    pub(super) fn len(&self) -> usize {
        self.only.map_or(self.all.len(), <[u32]>::len)
    }

    pub(super) fn get(&self, at: usize) -> Option<&'a Candidate> {
        match self.only {
            None => self.all.get(at),
            Some(only) => self.all.get(*only.get(at)? as usize),
        }
    }

    /// The member with this index in all, if it is one.
    pub(super) fn member(&self, index: usize) -> Option<&'a Candidate> {
        let is_one = |only: &[u32]| {
            u32::try_from(index).is_ok_and(|index| only.binary_search(&index).is_ok())
        };
        self.all.get(index).filter(|_| self.only.is_none_or(is_one))
    }

    /// Those that are not in `tried`, as indexes.
    pub(super) fn without(&self, tried: &[SocketAddr]) -> Vec<u32> {
        let is_fresh = |index: &u32| {
            let found = self.all.get(*index as usize);
            found.is_some_and(|found| !tried.contains(&found.endpoint.address))
        };
        match self.only {
            None => (0..).take(self.all.len()).filter(is_fresh).collect(),
            Some(only) => only.iter().copied().filter(is_fresh).collect(),
        }
    }

    /// The member that a key goes to: the first on its walk. Where nearly all are away a walk could
    /// be long; after [`WALK`] steps it is the one that ranks highest for this key.
    pub(super) fn by_hash(&self, table: &Table, hash: u64) -> Option<&'a Candidate> {
        /// With a tenth of the endpoints left, one walk in a thousand is longer.
        const WALK: usize = 64;
        let near = table.walk(hash).take(WALK).find_map(|index| self.member(index));
        let rank = |candidate: &&Candidate| {
            mix(hash, hash_of(candidate.host.address.to_string().as_bytes()))
        };
        near.or_else(|| (0..self.len()).filter_map(|at| self.get(at)).max_by_key(rank))
    }
}
