//! Since when endpoints take requests, as far as this process has seen them come.
//!
//! Invariant: a moment is that of the generation in which an endpoint of a service port appeared, for
//! every client alike, and stays with it until it goes or is no longer ready. Who was there when the
//! process began has none. Source: Envoy's slow start counts from a host's addition to its cluster.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::time::Instant;

use crate::model::{Readiness, ServiceKey, ServicePort, Snapshot};

/// By service port and address.
type Moments = FxHashMap<(u16, SocketAddr), Instant>;

/// Those that came after the first configuration: one entry for each endpoint at most.
#[derive(Debug, Default)]
pub(super) struct Arrivals(FxHashMap<ServiceKey, Arc<Moments>>);

impl Arrivals {
    /// Those of the snapshot after `before`, which comes into force `now`. Services that have not
    /// changed are shared by the snapshots, and not looked into.
    pub(super) fn next(&self, before: &Snapshot, after: &Snapshot, now: Instant) -> Self {
        let mut next = Self::default();
        if before.generation == 0 {
            return next;
        }
        for (key, service) in &after.services {
            let (old, known) = (before.services.get(key), self.0.get(key));
            let moments = match old {
                Some(old) if Arc::ptr_eq(old, service) => known.cloned(),
                _ => {
                    let mut found = Moments::default();
                    for port in &service.ports {
                        let old = old.and_then(|old| old.port(port.port));
                        arrived(old, port, (known, now), &mut found);
                    }
                    (!found.is_empty()).then(|| Arc::new(found))
                }
            };
            next.0.extend(moments.map(|moments| (key.clone(), moments)));
        }
        next
    }

    /// When an endpoint came; `None`: it was there from the beginning.
    pub(super) fn of(
        &self,
        service: &ServiceKey,
        port: u16,
        address: SocketAddr,
    ) -> Option<Instant> {
        self.0.get(service)?.get(&(port, address)).copied()
    }
}

fn arrived(
    old: Option<&ServicePort>,
    new: &ServicePort,
    (known, now): (Option<&Arc<Moments>>, Instant),
    found: &mut Moments,
) {
    let were_there: FxHashSet<SocketAddr> = old.into_iter().flat_map(serving).collect();
    for address in serving(new) {
        let place = (new.port, address);
        let moment = match were_there.contains(&address) {
            true => known.and_then(|known| known.get(&place).copied()),
            false => Some(now),
        };
        found.extend(moment.map(|moment| (place, moment)));
    }
}

fn serving(port: &ServicePort) -> impl Iterator<Item = SocketAddr> {
    let serving = port.endpoints.iter().filter(|one| one.readiness != Readiness::NotReady);
    serving.map(|one| one.address)
}
