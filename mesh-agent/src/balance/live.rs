//! [`Live`]: a snapshot and the state of its upstreams now.
//!
//! Invariant: a request loads `Live` once and uses it to the end, so all it sees is one generation.

use std::hash::{BuildHasher, BuildHasherDefault};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;
use rustc_hash::{FxHashMap, FxHasher};

use super::upstream::{Family, Generation, Picked, Upstream, UpstreamKey, in_subset};
use crate::model::{Endpoint, LoadBalancer, Service, ServicePort, Snapshot, Subset, Workload};

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
    upstreams: Arc<Upstreams>,
}

/// A question to the balancer.
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
    /// How to choose.
    pub policy: LoadBalancer,
    /// The address that the client dialled; its family is preferred.
    pub dialled: SocketAddr,
    /// Endpoints that have failed this request already: chosen only if no other is left.
    pub tried: &'a [SocketAddr],
    /// 64 random bits.
    pub draw: u64,
}

type Shard = RwLock<FxHashMap<UpstreamKey, Arc<Upstream>>>;

#[derive(Debug, Default)]
struct Upstreams {
    shards: [Shard; SHARDS],
}

// === impl Live ===

impl Live {
    /// The first generation.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, epoch: 1, upstreams: Arc::default() }
    }

    /// A handle that starts with this generation.
    pub fn handle(snapshot: Arc<Snapshot>) -> LiveHandle {
        Arc::new(ArcSwap::from_pointee(Self::new(snapshot)))
    }

    /// The generation after this one. Upstreams keep their state; those whose source or service
    /// port is gone are forgotten (requests in flight hold what they need).
    pub fn next(&self, snapshot: Arc<Snapshot>) -> Self {
        self.upstreams.retain(|key| {
            snapshot.workloads_by_uid.contains_key(&key.source)
                && snapshot.services.get(&key.service).is_some_and(|s| s.port(key.port).is_some())
        });
        Self { snapshot, epoch: self.epoch + 1, upstreams: Arc::clone(&self.upstreams) }
    }

    /// Chooses a ready endpoint; `None` if no endpoint is ready (503 `UH`).
    pub fn pick(&self, ask: &Ask<'_>) -> Option<Picked> {
        let upstream = self.upstreams.get(UpstreamKey {
            source: Arc::clone(&ask.source.uid),
            service: ask.service.key.clone(),
            port: ask.port.port,
            subset: ask.subset.map(|subset| Arc::clone(&subset.name)),
        });
        let generation =
            Generation { epoch: self.epoch, endpoints: &ask.port.endpoints, subset: ask.subset };
        let preferred = Family::of(ask.dialled);
        let usable = [preferred, preferred.other()];
        let usable: &[Family] = match has_family(ask.source, preferred.other()) {
            true => &usable,
            false => &usable[..1],
        };
        upstream.pick(&generation, usable, ask.policy, ask.tried, ask.draw)
    }

    /// The ready endpoint of `port` (in `subset`) at `address`, if it is one.
    pub fn endpoint_at<'a>(
        port: &'a ServicePort,
        subset: Option<&Subset>,
        address: SocketAddr,
    ) -> Option<&'a Endpoint> {
        port.endpoints.iter().find(|endpoint| {
            endpoint.address == address && subset.is_none_or(|subset| in_subset(endpoint, subset))
        })
    }

    /// How many upstreams have been used and not forgotten.
    pub fn upstream_count(&self) -> usize {
        self.upstreams.shards.iter().map(|shard| read(shard).len()).sum()
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
        Arc::clone(shard.entry(key).or_insert_with(|| Arc::new(Upstream::new())))
    }

    fn retain(&self, keep: impl Fn(&UpstreamKey) -> bool) {
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
        }
    }
}

fn read(shard: &Shard) -> std::sync::RwLockReadGuard<'_, FxHashMap<UpstreamKey, Arc<Upstream>>> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}
