//! [`Live`]: a snapshot and the state of its upstreams now.
//!
//! Invariant: a request loads `Live` once and uses it to the end, so all it sees is one generation.

use std::hash::{BuildHasher, BuildHasherDefault};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use rustc_hash::{FxHashMap, FxHasher};
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::clock;
use super::ejection::{Ejection, EjectionCount, EjectionCounters};
use super::host::ActiveGuard;
use super::limits::{Connections, InFlight};
use super::rate::Rates;
use super::upstream::{Upstream, UpstreamKey};
use super::view::{Family, Generation};
use crate::model::{
    Endpoint, OutlierDetection, RateLimit, Service, ServicePort, ServiceTarget, Snapshot, Subset,
    TrafficPolicy, Workload,
};

/// Locks over the upstreams: readers of one shard do not disturb those of another, and a first use
/// holds up one shard only.
const SHARDS: usize = 16;

/// The current [`Live`], shared by the workers and swapped by the control side.
pub type LiveHandle = Arc<ArcSwap<Live>>;

/// One generation of configuration with the run-time state that outlives it.
#[derive(Debug)]
pub struct Live {
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Grows by one with each `next`; not the snapshot's generation, which its maker counts.
    epoch: u64,
    arrivals: Arrivals,
    upstreams: Arc<Upstreams>,
    rates: Arc<Rates>,
}

/// One client's view of a destination.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The client's pod.
    pub source: &'a Arc<Workload>,
    /// The service that the route chose.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a ServicePort,
    /// The subset, if the route names one.
    pub subset: Option<&'a Subset>,
    /// The policy that holds for this client, port and subset.
    pub policy: &'a TrafficPolicy,
    /// The address that the client dialled; its family is preferred.
    pub dialled: SocketAddr,
}

impl<'a> Ask<'a> {
    /// What `source`, which dialled `dialled`, asks for where its route leads to `target`.
    pub fn new(source: &'a Arc<Workload>, target: &ServiceTarget<'a>, dialled: SocketAddr) -> Self {
        let &ServiceTarget { service, port, subset, policy } = target;
        Self { source, service, port, subset, policy, dialled }
    }
}

/// One choice of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Endpoints that have failed this request already: chosen only if no other is left, where
    /// localities count in the one that is chosen.
    pub tried: &'a [SocketAddr],
    /// Endpoints that were tried, whose localities are left for others while these have anybody
    /// healthy (`retryRemoteLocalities`).
    pub leave: &'a [SocketAddr],
    /// [`super::hash_of`] the request's key, where the policy hashes and the request has one.
    pub hash: Option<u64>,
    /// 64 random bits.
    pub draw: u64,
}

/// An upstream in one generation, as one request sees it.
#[derive(Debug)]
pub struct Balancer<'a> {
    live: &'a Live,
    ask: Ask<'a>,
    upstream: Arc<Upstream>,
}

/// The chosen endpoint. Its request counts as active until the guard is dropped.
#[derive(Debug)]
pub struct Picked {
    /// Where to go.
    pub endpoint: Endpoint,
    /// Holds the endpoint's active count up, and is told how the request ends.
    pub active: ActiveGuard,
}

type Shard = RwLock<FxHashMap<UpstreamKey, Arc<Upstream>>>;

#[derive(Debug, Default)]
struct Upstreams {
    shards: [Shard; SHARDS],
    ejections: Arc<EjectionCounters>,
}

// === impl Live ===

impl Live {
    /// The first generation.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            snapshot,
            epoch: 1,
            arrivals: Arrivals::default(),
            upstreams: Arc::default(),
            rates: Arc::default(),
        }
    }

    /// A handle that starts with this generation.
    pub fn handle(snapshot: Arc<Snapshot>) -> LiveHandle {
        Arc::new(ArcSwap::from_pointee(Self::new(snapshot)))
    }

    /// The generation after this one. Upstreams keep their state; those whose source, service port
    /// or subset is gone are forgotten (requests in flight hold what they need).
    pub fn next(&self, snapshot: Arc<Snapshot>) -> Self {
        self.upstreams.retain(|key| {
            let source = snapshot.workloads_by_uid.get(&key.source);
            let service = snapshot.services.get(&key.service);
            let (Some(source), Some(service)) = (source, service) else { return false };
            let is_there = |name: &Arc<str>| snapshot.subset(service, source.client(), name);
            service.port(key.port).is_some()
                && key.subset.as_ref().is_none_or(|name| is_there(name).is_some())
        });
        self.rates.retain(&snapshot);
        let arrivals = self.arrivals.next(&self.snapshot, &snapshot, clock::now());
        Self {
            snapshot,
            epoch: self.epoch + 1,
            arrivals,
            upstreams: Arc::clone(&self.upstreams),
            rates: Arc::clone(&self.rates),
        }
    }

    /// Counts a request of `caller` against `limit`, of this generation's snapshot; `false`: it is
    /// one too many, and not counted.
    pub fn lets_in(&self, caller: &Workload, limit: &Arc<RateLimit>, now: Instant) -> bool {
        self.rates.take(caller, limit, now)
    }

    /// What a request asks and counts with; one look-up, for the whole request.
    pub fn upstream<'a>(&'a self, ask: Ask<'a>) -> Balancer<'a> {
        let upstream = self.upstreams.get(UpstreamKey {
            source: Arc::clone(&ask.source.uid),
            service: ask.service.key.clone(),
            port: ask.port.port,
            subset: ask.subset.map(|subset| Arc::clone(&subset.name)),
        });
        Balancer { live: self, ask, upstream }
    }

    /// The ready endpoint of `port` (in `subset`) at `address`, if it is one.
    pub fn endpoint_at<'a>(
        port: &'a ServicePort,
        subset: Option<&Subset>,
        address: SocketAddr,
    ) -> Option<&'a Endpoint> {
        port.endpoints.iter().find(|endpoint| {
            endpoint.address == address && subset.is_none_or(|subset| subset.has(endpoint))
        })
    }

    /// Who is ejected now, for whom, in order of client, service and endpoint.
    pub fn ejections(&self) -> Vec<Ejection> {
        let now = clock::now();
        let mut found: Vec<Ejection> = Vec::new();
        for upstream in self.upstreams.all() {
            // Where a change of configuration has ended outlier detection, all are used.
            if let Some(policy) = self.outlier_policy(upstream.key()) {
                found.extend(upstream.ejections(policy, now));
            }
        }
        found.sort_by(|a, b| {
            (&a.source, &a.service, a.port, &a.subset, a.address)
                .cmp(&(&b.source, &b.service, b.port, &b.subset, b.address))
        });
        found
    }

    fn outlier_policy(&self, key: &UpstreamKey) -> Option<&OutlierDetection> {
        let source = self.snapshot.workloads_by_uid.get(&key.source)?;
        let service = self.snapshot.services.get(&key.service)?;
        let rule = self.snapshot.destination_rule(service, source.client())?;
        let subset = key.subset.as_deref().and_then(|name| rule.subset(name));
        rule.policy(subset, key.port).outlier.as_deref()
    }

    /// How many ejections there were and are, by service and reason.
    pub fn ejection_counts(&self) -> Vec<EjectionCount> {
        let mut counts = self.upstreams.ejections.all();
        for ejection in self.ejections() {
            let same = |count: &&mut EjectionCount| {
                count.service == ejection.service && count.reason == ejection.reason
            };
            if let Some(count) = counts.iter_mut().find(same) {
                count.active += 1;
            }
        }
        counts
    }

    /// How many upstreams have been used and not forgotten.
    pub fn upstream_count(&self) -> usize {
        self.upstreams.shards.iter().map(|shard| read(shard).len()).sum()
    }
}

// === impl Balancer ===

impl Balancer<'_> {
    /// Chooses a healthy endpoint; `None`: there is none (503 `UH`).
    pub fn pick(&self, choice: &Choice<'_>) -> Option<Picked> {
        let ask = &self.ask;
        let preferred = Family::of(ask.dialled);
        let usable = [preferred, preferred.other()];
        let usable: &[Family] = match has_family(ask.source, preferred.other()) {
            true => &usable,
            false => &usable[..1],
        };
        self.upstream.pick(&self.generation(), usable, ask.policy, choice)
    }

    /// Takes the endpoint that the client has chosen, so that what becomes of the request counts there;
    /// `None`: it is ejected.
    pub fn pick_at(&self, endpoint: &Endpoint) -> Option<Picked> {
        self.upstream.pick_at(&self.generation(), self.ask.policy, endpoint)
    }

    fn generation(&self) -> Generation<'_> {
        Generation {
            epoch: self.live.epoch,
            arrivals: &self.live.arrivals,
            ask: &self.ask,
            locality: &self.live.snapshot.locality,
        }
    }

    /// Lets a request in under `http2MaxRequests`; `None`: overflow.
    pub fn admit(&self) -> Option<InFlight> {
        self.upstream.limits.admit(self.ask.policy)
    }

    /// Lets a retry in under the retry budget, else under `maxRetries`; `None`: not now.
    pub fn retry(&self) -> Option<InFlight> {
        self.upstream.limits.retry(self.ask.policy)
    }

    /// The upstream's connections; `None` where neither `maxConnections` nor
    /// `http1MaxPendingRequests` is set.
    pub fn connections(&self) -> Option<Connections> {
        self.upstream.limits.connections(&self.ask.policy.pool)
    }
}

fn has_family(pod: &Workload, family: Family) -> bool {
    pod.ips.iter().any(|ip| match family {
        Family::V4 => matches!(ip, IpAddr::V4(_)),
        Family::V6 => matches!(ip, IpAddr::V6(_)),
    })
}

// === impl Upstreams ===

impl Upstreams {
    fn get(&self, key: UpstreamKey) -> Arc<Upstream> {
        let hash = BuildHasherDefault::<FxHasher>::default().hash_one(&key);
        // The map inside uses the low bits, the shard the next ones.
        let shard = &self.shards[usize::try_from(hash >> 32).unwrap_or(0) % SHARDS];
        if let Some(found) = read(shard).get(&key) {
            return Arc::clone(found);
        }
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Upstream::new(key.clone(), &self.ejections));
        Arc::clone(shard.entry(key.clone()).or_insert_with(made))
    }

    fn all(&self) -> Vec<Arc<Upstream>> {
        let of = |shard| read(shard).values().cloned().collect::<Vec<_>>();
        self.shards.iter().flat_map(of).collect()
    }

    /// Looks under a lock that requests share: with many rules the question takes its time.
    fn retain(&self, keep: impl Fn(&UpstreamKey) -> bool) {
        for shard in &self.shards {
            let gone: Vec<UpstreamKey> =
                read(shard).keys().filter(|key| !keep(key)).cloned().collect();
            if gone.is_empty() {
                continue;
            }
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            for key in gone {
                shard.remove(&key);
            }
        }
    }
}

fn read(shard: &Shard) -> std::sync::RwLockReadGuard<'_, FxHashMap<UpstreamKey, Arc<Upstream>>> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}
