//! An upstream's endpoints in one generation of configuration, and which of them may be chosen.
//!
//! Where localities count, the endpoints of a family are in tiers, each with candidates, turns and
//! table of its own: within a tier a choice is made as elsewhere among all.
//!
//! Invariant: a view never changes but for what is computed from it and kept: tables of hashes, and
//! the list of those not ejected, which names the change of the upstream's book that it is of.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arc_swap::ArcSwapOption;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::hash::mix;
use super::hash_of;
use super::host::Host;
use super::live::Ask;
use super::locality::{Groups, Preference};
use super::outlier;
use super::priority::{self, Health, Loads};
use super::table::Table;
use crate::model::{Endpoint, LoadBalancer, LocalitySetting, OutlierDetection, in_use};

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
    /// Who asks for what; in one generation the same for all who ask an upstream.
    pub(super) ask: &'a Ask<'a>,
    /// The mesh's.
    pub(super) locality: &'a LocalitySetting,
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
    /// The same candidates by locality; `None`: where they are makes no difference.
    pub(super) tiers: Option<Box<Tiers>>,
}

/// One family's endpoints by locality.
#[derive(Debug)]
pub(super) struct Tiers {
    pub(super) each: Vec<Tier>,
    /// See [`Groups::weights`].
    weights: Option<Vec<u64>>,
    /// While nobody is ejected.
    pub(super) whole: TierFit,
}

/// Those that are equally near, or share a weight.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) members: Members,
    pub(super) turn: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
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
    /// By family.
    pub(super) of: [Fit; 2],
}

/// Who of one family is not ejected.
#[derive(Debug)]
pub(super) struct Fit {
    /// Without tiers: indexes in order; `None`: all.
    pub(super) only: Option<Box<[u32]>>,
    /// With tiers.
    pub(super) tiers: Option<TierFit>,
}

/// Who of each tier is not ejected, and what follows for the others.
#[derive(Debug)]
pub(super) struct TierFit {
    /// Indexes in order; `None`: all.
    only: Vec<Option<Box<[u32]>>>,
    health: Vec<Health>,
    loads: Loads,
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
    pub(super) fn build(generation: &Generation<'_>, previous: &Self, first_turn: usize) -> Self {
        let known: FxHashMap<SocketAddr, &Arc<Host>> = previous
            .v4
            .candidates
            .iter()
            .chain(&previous.v6.candidates)
            .map(|candidate| (candidate.endpoint.address, &candidate.host))
            .collect();
        let Ask { source, service, port, subset, policy, .. } = *generation.ask;
        let since = |address| generation.arrivals.of(&service.key, port.port, address);
        let preference = Preference::of(source, service, policy, generation.locality);
        let members = |family: Family| {
            let selected = |found: &&Endpoint| {
                Family::of(found.address) == family && subset.is_none_or(|subset| subset.has(found))
            };
            let candidates: Vec<Candidate> = in_use(port.endpoints.iter().filter(selected))
                .map(|endpoint| Candidate {
                    endpoint: endpoint.clone(),
                    host: match known.get(&endpoint.address) {
                        Some(host) => Arc::clone(host),
                        None => Arc::new(Host::new(endpoint.address, since(endpoint.address))),
                    },
                })
                .collect();
            let previous = previous.members(family);
            let groups =
                preference.and_then(|of| of.groups(candidates.iter().map(|c| &c.endpoint)));
            let before = previous.tiers.as_deref();
            let tiers =
                groups.map(|groups| Box::new(Tiers::new(groups, &candidates, before, first_turn)));
            Members { tiers, ..Members::new(candidates, Some(previous)) }
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
    fn new(candidates: Vec<Candidate>, previous: Option<&Self>) -> Self {
        let newest = candidates.iter().filter_map(|candidate| candidate.host.since).max();
        let same = |(new, old): (&Candidate, &Candidate)| new.host.address == old.host.address;
        let previous = previous.filter(|previous| {
            candidates.len() == previous.candidates.len()
                && candidates.iter().zip(&previous.candidates).all(same)
        });
        let table = previous.and_then(|previous| previous.table.load_full());
        Self { candidates, newest, table: ArcSwapOption::new(table), tiers: None }
    }

    /// Who is not ejected by this policy.
    pub(super) fn fit(&self, policy: &OutlierDetection) -> Fit {
        match &self.tiers {
            None => Fit { only: self.healthy(Some(policy)), tiers: None },
            Some(tiers) => Fit { only: None, tiers: Some(tiers.fit(policy)) },
        }
    }

    /// Indexes of those who are not ejected; `None`: all are used, since nobody is out, or, where a
    /// policy is given, too many are.
    fn healthy(&self, policy: Option<&OutlierDetection>) -> Option<Box<[u32]>> {
        let fine: Box<[u32]> = (0..)
            .zip(&self.candidates)
            .filter(|(_, found)| !found.host.is_ejected())
            .map(|(at, _)| at)
            .collect();
        let hosts = self.candidates.len();
        let ejected = hosts - fine.len();
        let is_panic = |policy: &OutlierDetection| {
            outlier::is_panic(hosts, ejected, policy.min_health_percent)
        };
        (ejected > 0 && !policy.is_some_and(is_panic)).then_some(fine)
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

// === impl Tiers ===

impl Tiers {
    fn new(
        groups: Groups,
        candidates: &[Candidate],
        previous: Option<&Self>,
        first_turn: usize,
    ) -> Self {
        let Groups { members, weights } = groups;
        let tier = |(at, indexes): (usize, Vec<usize>)| {
            let previous = previous.and_then(|previous| previous.each.get(at));
            let own = indexes.into_iter().filter_map(|index| candidates.get(index)).cloned();
            Tier {
                members: Members::new(own.collect(), previous.map(|tier| &tier.members)),
                turn: match previous {
                    Some(tier) => Arc::clone(&tier.turn),
                    None => Arc::new(AtomicUsize::new(first_turn)),
                },
            }
        };
        let each: Vec<Tier> = members.into_iter().enumerate().map(tier).collect();
        let sizes = each.iter().map(|tier| tier.members.candidates.len());
        let health: Vec<Health> = sizes.map(|hosts| Health { hosts, ejected: 0 }).collect();
        let whole = TierFit {
            only: each.iter().map(|_| None).collect(),
            loads: loads(weights.as_deref(), &health, 0),
            health,
        };
        Self { each, weights, whole }
    }

    fn fit(&self, policy: &OutlierDetection) -> TierFit {
        let fine: Vec<_> = self.each.iter().map(|tier| tier.members.healthy(None)).collect();
        let of_tier = |(tier, fine): (&Tier, &Option<Box<[u32]>>)| {
            let hosts = tier.members.candidates.len();
            Health { hosts, ejected: fine.as_ref().map_or(0, |fine| hosts - fine.len()) }
        };
        let health: Vec<Health> = self.each.iter().zip(&fine).map(of_tier).collect();
        let loads = loads(self.weights.as_deref(), &health, policy.min_health_percent);
        let used = |(at, fine): (usize, Option<_>)| fine.filter(|_| !loads.is_panic(at));
        TierFit { only: fine.into_iter().enumerate().map(used).collect(), health, loads }
    }

    /// The tier of a request, and who of it is not ejected. `point`: 64 random or hashed bits;
    /// `left`: those whose tier is left for another, if there is another.
    pub(super) fn choose<'a>(
        &'a self,
        fit: &'a TierFit,
        point: u64,
        left: &[SocketAddr],
    ) -> Option<(&'a Tier, Option<&'a [u32]>)> {
        let has_one = |at: usize| {
            let members = self.each.get(at).map_or(&[][..], |tier| &tier.members.candidates);
            members.iter().any(|found| left.contains(&found.endpoint.address))
        };
        let elsewhere = match left {
            [] => None,
            _ => priority::beside(self.weights.as_deref(), &fit.health, has_one, point),
        };
        let at = elsewhere.or_else(|| fit.loads.at(point))?;
        Some((self.each.get(at)?, fit.only.get(at)?.as_deref()))
    }
}

fn loads(weights: Option<&[u64]>, health: &[Health], min_health_percent: u32) -> Loads {
    match weights {
        None => Loads::by_priority(health, min_health_percent),
        Some(weights) => Loads::by_weight(weights, health, min_health_percent),
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
