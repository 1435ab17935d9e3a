//! What one pod may hold of its node's agent, so that no pod can use up the descriptors and memory
//! of all others.
//!
//! A connection above the quota is refused with a reset. Counted across workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// TLS handshakes of tunnels that a pod may have going on. A handshake costs a fifth of a
/// millisecond; at this many, those who wait time out anyway.
const HANDSHAKES: usize = 256;

/// Counts of one pod.
#[derive(Debug)]
pub struct Quota {
    connections: Count,
    handshakes: Count,
    refused: AtomicUsize,
}

#[derive(Debug)]
struct Count {
    now: AtomicUsize,
    most: usize,
}

/// One of what a pod may hold, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    quota: Arc<Quota>,
    which: fn(&Quota) -> &Count,
}

impl Quota {
    /// A quota of `connections`: captured ones that the pod makes, and those that others make to it.
    #[must_use]
    pub fn new(connections: usize) -> Arc<Self> {
        let count = |most| Count { now: AtomicUsize::new(0), most };
        let (connections, handshakes) = (count(connections), count(HANDSHAKES));
        Arc::new(Self { connections, handshakes, refused: AtomicUsize::new(0) })
    }

    /// Room for one connection more; `pod` is for the log.
    pub fn connection(self: &Arc<Self>, pod: &str) -> Option<Permit> {
        self.take(|quota| &quota.connections, pod, "connections")
    }

    /// Room for one handshake more.
    pub fn handshake(self: &Arc<Self>, pod: &str) -> Option<Permit> {
        self.take(|quota| &quota.handshakes, pod, "handshakes")
    }

    fn take(
        self: &Arc<Self>,
        which: fn(&Quota) -> &Count,
        pod: &str,
        what: &'static str,
    ) -> Option<Permit> {
        let count = which(self);
        // Threads that come together may see each other's and all be refused: near the limit only.
        if count.now.fetch_add(1, Ordering::Relaxed) < count.most {
            return Some(Permit { quota: Arc::clone(self), which });
        }
        count.now.fetch_sub(1, Ordering::Relaxed);
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // At 1, 2, 4, 8: a flood is told of and does not flood the log.
        if refused.is_power_of_two() {
            tracing::warn!(pod, limit = count.most, refused, "a pod is at its limit of {what}");
        }
        None
    }

    /// How many have been refused so far.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        (self.which)(&self.quota).now.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_makes_room_when_it_goes() {
        let quota = Quota::new(2);
        let first = quota.connection("p").unwrap();
        let _second = quota.connection("p").unwrap();
        assert!(quota.connection("p").is_none());
        assert_eq!(quota.refused(), 1);
        assert!(quota.handshake("p").is_some(), "counted apart");
        drop(first);
        assert!(quota.connection("p").is_some());
    }

    #[test]
    fn threads_never_get_more_than_there_is() {
        let quota = Quota::new(100);
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter_map(|_| quota.connection("p")).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            let permits: Vec<_> = threads.into_iter().map(|one| one.join().unwrap()).collect();
            permits.iter().map(Vec::len).sum()
        });
        assert!(taken <= 100 && taken > 90, "{taken}");
        assert_eq!(quota.connections.now.load(Ordering::Relaxed), 0);
    }
}
