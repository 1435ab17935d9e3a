//! What one pod may hold of its node's agent, so that no pod can use up the descriptors and memory
//! of all others. `LIMITS.md` lists what is counted here and what bounds the rest.
//!
//! Invariant: a pod may hold twice what it leaves free to the others, counted across workers. So one
//! greedy pod gets two thirds, two get two fifths each, and whoever comes next finds half of what
//! each of them has; all together never get more than there is. Sockets and streams are counted so
//! twice: those of connections that the pod makes, and those of connections that others make to it,
//! so that a flood of these takes nothing from those. Who connects to one pod shares what that pod
//! may have in the same way. (Choudhury and Hahne, "Dynamic queue length thresholds for
//! shared-memory packet switches", 1998.)

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

/// TLS handshakes of tunnels that a pod may have going on. A handshake costs a fifth of a
/// millisecond; at this many, those who wait time out anyway.
const HANDSHAKES: usize = 256;

/// Descriptors that a captured pod takes by being captured: six listeners, its network namespace,
/// and one to spare for the listeners of a change that overlap.
const OWN: usize = 8;

/// How many times what it leaves free a pod may hold.
const POD: usize = 2;

/// What the pods of a node share.
#[derive(Debug)]
pub struct Budget {
    sockets: Pot,
    streams: Pot,
    requests: Pot,
    memory: Pot,
}

#[derive(Debug)]
struct Pot {
    held: AtomicUsize,
    most: usize,
}

/// Counts of one pod.
#[derive(Debug)]
pub struct Quota {
    pod: Arc<str>,
    budget: Arc<Budget>,
    connections: Pot,
    handshakes: Pot,
    sockets: BySide,
    streams: BySide,
    requests: AtomicUsize,
    memory: AtomicUsize,
    /// Connections to the pod by the address that they come from; absent at 0.
    sources: Mutex<FxHashMap<IpAddr, usize>>,
    /// By reason, so that a flood of one kind does not hide another in the log.
    refused: [AtomicUsize; Refused::COUNT],
}

/// Counts of each [`Side`].
type BySide = [AtomicUsize; 2];

/// Who began what a socket or stream is for.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// The pod.
    Own,
    /// Somebody who connects to it.
    Others,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Source,
    Connections,
    Sockets,
    Streams,
    Handshakes,
    Requests,
}

/// Something that a pod holds, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    quota: Arc<Quota>,
    what: What,
    is_connection: bool,
    /// Counted for this source, too.
    source: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Socket(Side),
    Stream(Side),
    Handshake,
    Request,
    Memory(usize),
}

/// What a pod, or all pods of a node, hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sockets.
    pub sockets: usize,
    /// Streams of tunnels.
    pub streams: usize,
    /// HTTP requests that are not yet answered to the end.
    pub requests: usize,
    /// Octets that are set aside for larger buffers.
    pub memory: usize,
}

// === impl Budget ===

impl Budget {
    /// `most` is for all pods together.
    #[must_use]
    pub fn new(most: Usage) -> Arc<Self> {
        let pot = |most| Pot { held: AtomicUsize::new(0), most };
        Arc::new(Self {
            sockets: pot(most.sockets),
            streams: pot(most.streams),
            requests: pot(most.requests),
            memory: pot(most.memory),
        })
    }

    /// What all pods hold now.
    #[must_use]
    pub fn held(&self) -> Usage {
        Usage {
            sockets: self.sockets.held(),
            streams: self.streams.held(),
            requests: self.requests.held(),
            memory: self.memory.held(),
        }
    }

    /// What all pods together may hold.
    #[must_use]
    pub fn most(&self) -> Usage {
        Usage {
            sockets: self.sockets.most,
            streams: self.streams.most,
            requests: self.requests.most,
            memory: self.memory.most,
        }
    }
}

// === impl Pot ===

impl Pot {
    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// What a pod that holds `own` may hold beyond it, if others take nothing meanwhile and its own
    /// taking did not count.
    fn left(&self, own: usize) -> usize {
        self.most.saturating_sub(self.held()).saturating_mul(POD).saturating_sub(own)
    }

    /// Whether a pod that holds `own` may have `amount` more.
    fn has_room(&self, own: usize, amount: usize) -> bool {
        self.left(own) / (POD + 1) >= amount
    }

    /// Adds to `own`, the pod's share, and to the whole. Pods that come together may see each
    /// other's and all be refused, near the limit only; never do both get what is there once.
    fn take(&self, own: &AtomicUsize, amount: usize) -> bool {
        let own_now = own.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let held_now = self.held.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let taken = held_now <= self.most && own_now <= (self.most - held_now).saturating_mul(POD);
        if !taken {
            self.give(own, amount);
        }
        taken
    }

    fn give(&self, own: &AtomicUsize, amount: usize) {
        own.fetch_sub(amount, Ordering::Relaxed);
        self.held.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Takes one of what is not shared.
    fn take_one(&self) -> bool {
        let taken = self.held.fetch_add(1, Ordering::Relaxed) < self.most;
        if !taken {
            self.give_one();
        }
        taken
    }

    fn give_one(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Quota ===

impl Quota {
    /// The quota of `pod` (its name, for the log): at most `connections`, captured ones that it
    /// makes and those that others make to it, and its share of `budget`.
    #[must_use]
    pub fn new(pod: Arc<str>, budget: Arc<Budget>, connections: usize) -> Arc<Self> {
        let pot = |most| Pot { held: AtomicUsize::new(0), most };
        budget.sockets.held.fetch_add(OWN, Ordering::Relaxed);
        Arc::new(Self {
            pod,
            budget,
            connections: pot(connections),
            handshakes: pot(HANDSHAKES),
            sockets: BySide::default(),
            streams: BySide::default(),
            requests: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
            sources: Mutex::default(),
            refused: Default::default(),
        })
    }

    /// A quota that refuses nothing but handshakes.
    #[cfg(any(test, fuzzing))]
    pub fn unlimited() -> Arc<Self> {
        let most = usize::MAX >> 2;
        let budget =
            Budget::new(Usage { sockets: most, streams: most, requests: most, memory: most });
        Self::new("test/pod".into(), budget, most)
    }

    /// Room for one connection more of the pod's, and for the socket that it comes on.
    pub fn connection(self: &Arc<Self>) -> Option<Permit> {
        let permit = self.socket()?;
        self.as_connection(permit)
    }

    /// Room for one connection more that `source` makes to the pod, and for its socket. A source
    /// may hold as many as the pod may still take.
    pub fn connection_from(self: &Arc<Self>, source: IpAddr) -> Option<Permit> {
        if !self.admits(source) {
            return self.refuse(Refused::Source);
        }
        let permit = self.socket_of(Side::Others)?;
        Some(self.of(self.as_connection(permit)?, source))
    }

    /// The same on a tunnel's stream; the socket to the application is taken apart.
    pub fn stream_from(self: &Arc<Self>, source: IpAddr) -> Option<Permit> {
        if !self.admits(source) {
            return self.refuse(Refused::Source);
        }
        let permit = self.stream_of(Side::Others)?;
        Some(self.of(self.as_connection(permit)?, source))
    }

    /// Room for one socket more, which the agent opens on the pod's behalf.
    pub fn socket(self: &Arc<Self>) -> Option<Permit> {
        self.socket_of(Side::Own)
    }

    /// Room for one socket more, on which the agent passes on to the pod what others send.
    pub fn socket_for_others(self: &Arc<Self>) -> Option<Permit> {
        self.socket_of(Side::Others)
    }

    fn socket_of(self: &Arc<Self>, side: Side) -> Option<Permit> {
        if self.budget.sockets.take(&self.sockets[side as usize], 1) {
            return Some(self.permit(What::Socket(side)));
        }
        self.refuse(Refused::Sockets)
    }

    /// Room for one stream more, of a tunnel to somewhere else.
    pub fn stream(self: &Arc<Self>) -> Option<Permit> {
        self.stream_of(Side::Own)
    }

    fn stream_of(self: &Arc<Self>, side: Side) -> Option<Permit> {
        if self.budget.streams.take(&self.streams[side as usize], 1) {
            return Some(self.permit(What::Stream(side)));
        }
        self.refuse(Refused::Streams)
    }

    /// Counts what a socket or stream carries.
    fn as_connection(self: &Arc<Self>, carrier: Permit) -> Option<Permit> {
        if !self.connections.take_one() {
            return self.refuse(Refused::Connections);
        }
        let mut permit = carrier;
        permit.is_connection = true;
        Some(permit)
    }

    fn admits(&self, source: IpAddr) -> bool {
        let held = self.sources().get(&source).copied().unwrap_or(0);
        let left = |pot: &Pot, own: &BySide| pot.left(held_by(own, Side::Others));
        let sockets = left(&self.budget.sockets, &self.sockets);
        let streams = left(&self.budget.streams, &self.streams);
        held < sockets.min(streams)
    }

    fn of(&self, mut permit: Permit, source: IpAddr) -> Permit {
        *self.sources().entry(source).or_default() += 1;
        permit.source = Some(source);
        permit
    }

    fn sources(&self) -> MutexGuard<'_, FxHashMap<IpAddr, usize>> {
        // A number and nothing else: no panic leaves it half changed.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, source: IpAddr) {
        let mut sources = self.sources();
        if let Some(held) = sources.get_mut(&source) {
            *held -= 1;
            if *held == 0 {
                sources.remove(&source);
            }
        }
    }

    /// Room for one handshake more, of which anybody can begin many: only a quarter of the sockets
    /// that others may still take, so that established connections have theirs.
    pub fn handshake(self: &Arc<Self>) -> Option<Permit> {
        let left = self.budget.sockets.left(held_by(&self.sockets, Side::Others));
        if self.handshakes.held() * 4 < left && self.handshakes.take_one() {
            return Some(self.permit(What::Handshake));
        }
        self.refuse(Refused::Handshakes)
    }

    /// Room for one HTTP request more.
    pub fn request(self: &Arc<Self>) -> Option<Permit> {
        if self.budget.requests.take(&self.requests, 1) {
            return Some(self.permit(What::Request));
        }
        self.refuse(Refused::Requests)
    }

    /// Sets `octets` aside for a buffer that can also be small: to have none is no refusal.
    pub fn room(self: &Arc<Self>, octets: usize) -> Option<Permit> {
        let taken = self.budget.memory.take(&self.memory, octets);
        taken.then(|| self.permit(What::Memory(octets)))
    }

    /// Whether [`Quota::room`] would succeed, which costs less to ask.
    #[must_use]
    pub fn has_room(&self, octets: usize) -> bool {
        self.budget.memory.has_room(self.memory.load(Ordering::Relaxed), octets)
    }

    fn permit(self: &Arc<Self>, what: What) -> Permit {
        Permit { quota: Arc::clone(self), what, is_connection: false, source: None }
    }

    fn refuse(&self, what: Refused) -> Option<Permit> {
        let refused = self.refused[what as usize].fetch_add(1, Ordering::Relaxed) + 1;
        // At 1, 2, 4, 8: a flood is told of and does not flood the log.
        if refused.is_power_of_two() {
            let what = what.name();
            tracing::warn!(pod = %self.pod, what, refused, "a pod is at its limit");
        }
        None
    }

    /// How many have been refused so far.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.refused.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// What the pod holds now.
    #[must_use]
    pub fn held(&self) -> Usage {
        Usage {
            sockets: held_by(&self.sockets, Side::Own) + held_by(&self.sockets, Side::Others),
            streams: held_by(&self.streams, Side::Own) + held_by(&self.streams, Side::Others),
            requests: self.requests.load(Ordering::Relaxed),
            memory: self.memory.load(Ordering::Relaxed),
        }
    }
}

fn held_by(counts: &BySide, side: Side) -> usize {
    counts[side as usize].load(Ordering::Relaxed)
}

impl Drop for Quota {
    fn drop(&mut self) {
        self.budget.sockets.held.fetch_sub(OWN, Ordering::Relaxed);
    }
}

// === impl Refused ===

impl Refused {
    const COUNT: usize = Self::Requests as usize + 1;

    /// What there are too many of.
    fn name(self) -> &'static str {
        match self {
            Self::Source => "connections of one source",
            Self::Connections => "connections",
            Self::Sockets => "sockets",
            Self::Streams => "streams",
            Self::Handshakes => "handshakes",
            Self::Requests => "requests",
        }
    }
}

// === impl Permit ===

impl Permit {
    /// Whose it is.
    #[must_use]
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let quota = &self.quota;
        if let Some(source) = self.source {
            quota.forget(source);
        }
        if self.is_connection {
            quota.connections.give_one();
        }
        match self.what {
            What::Socket(side) => quota.budget.sockets.give(&quota.sockets[side as usize], 1),
            What::Stream(side) => quota.budget.streams.give(&quota.streams[side as usize], 1),
            What::Handshake => quota.handshakes.give_one(),
            What::Request => quota.budget.requests.give(&quota.requests, 1),
            What::Memory(octets) => quota.budget.memory.give(&quota.memory, octets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many pods on one budget of `sockets`, what they take themselves apart.
    fn pods(count: usize, sockets: usize) -> (Arc<Budget>, Vec<Arc<Quota>>) {
        let most = Usage { sockets: sockets + count * OWN, streams: 90, requests: 3, memory: 900 };
        let budget = Budget::new(most);
        let quotas = (0..count).map(|_| Quota::new("p".into(), budget.clone(), usize::MAX));
        let quotas = quotas.collect();
        (budget, quotas)
    }

    /// Takes until refused.
    fn greedy(quota: &Arc<Quota>) -> Vec<Permit> {
        std::iter::from_fn(|| quota.connection()).collect()
    }

    #[test]
    fn a_permit_makes_room_when_it_goes() {
        let most = Usage { sockets: 100, streams: 100, ..Usage::default() };
        let quota = Quota::new("p".into(), Budget::new(most), 2);
        let first = quota.connection().unwrap();
        let _second = quota.stream_from([10, 0, 0, 1].into()).unwrap();
        assert!(quota.connection().is_none());
        assert_eq!((quota.refused(), quota.held().sockets, quota.held().streams), (1, 1, 1));
        assert!(quota.handshake().is_some() && quota.socket().is_some(), "counted apart");
        drop(first);
        assert!(quota.connection().is_some());
    }

    #[test]
    fn greedy_pods_get_equal_shares_and_leave_half_of_one() {
        for count in 1..=5 {
            let share = 60;
            let (budget, quotas) = pods(count, share * count + share / 2);
            let mut held: Vec<Vec<Permit>> = quotas.iter().map(|_| Vec::new()).collect();
            // They race: each takes one in turn until nobody gets any.
            while {
                let taken = quotas.iter().zip(&mut held).map(|(quota, held)| {
                    quota.connection().map(|permit| held.push(permit)).is_some()
                });
                taken.collect::<Vec<_>>().contains(&true)
            } {}
            assert!(held.iter().all(|held| held.len() == share), "{count} pods");
            drop(held);
            assert_eq!(budget.held().sockets, count * OWN);
        }
    }

    #[test]
    fn who_came_first_makes_room_for_who_comes_later() {
        let (_, quotas) = pods(2, 90);
        let mut first = greedy(&quotas[0]);
        assert_eq!(first.len(), 60);
        let second = greedy(&quotas[1]);
        assert_eq!(second.len(), 20, "two thirds of what was left");
        first.truncate(50);
        assert!(quotas[0].connection().is_none(), "it has more than twice what it leaves");
        assert!(quotas[1].connection().is_some());
    }

    #[test]
    fn a_greedy_source_leaves_room_to_another() {
        let (budget, quotas) = pods(1, 130);
        let from = |last: u8| quotas[0].connection_from(IpAddr::from([10, 0, 0, last]));
        let first: Vec<_> = std::iter::from_fn(|| from(1)).collect();
        assert_eq!(first.len(), 65, "the pod could have 86");
        let second: Vec<_> = std::iter::from_fn(|| from(2)).collect();
        assert_eq!(second.len(), 17, "a quarter of what was left to the pod");
        assert!(from(1).is_none() && from(3).is_some());
        drop((first, second));
        assert_eq!((budget.held().sockets, quotas[0].sources().len()), (OWN, 0));
    }

    #[test]
    fn handshakes_leave_sockets_to_the_pods_own_connections() {
        let (_, quotas) = pods(1, 70);
        let shake = || {
            let socket = quotas[0].connection_from([10, 0, 0, 1].into())?;
            Some((socket, quotas[0].handshake()?))
        };
        let flood: Vec<_> = std::iter::from_fn(shake).collect();
        assert_eq!(flood.len(), 20, "of 46 sockets that others may have");
        let more = std::iter::from_fn(|| quotas[0].connection_from([10, 0, 0, 2].into()));
        let more: Vec<_> = more.collect();
        assert_eq!(
            more.len(),
            20,
            "another source gets a quarter of the 80 that are left to others"
        );
        assert_eq!(
            greedy(&quotas[0]).len(),
            20,
            "the pod itself two thirds of the 30 that are free"
        );
    }

    /// Two pods are flooded one after the other: what is free shrinks after the first flood has got
    /// all that it may have.
    #[test]
    fn floods_take_nothing_from_connections_that_a_pod_makes() {
        let (_, quotas) = pods(2, 90);
        let flood = |quota: &Arc<Quota>| -> Vec<Permit> {
            let from = || quota.connection_from([10, 0, 0, 1].into());
            std::iter::from_fn(from).collect()
        };
        let _floods = (flood(&quotas[0]), flood(&quotas[1]));
        for quota in &quotas {
            assert!(quota.connection_from([10, 0, 0, 1].into()).is_none());
            assert!(greedy(quota).len() > 5);
        }
    }

    #[test]
    fn pods_take_descriptors_by_being_there() {
        let (budget, quotas) = pods(3, 10);
        assert_eq!(budget.held().sockets, 3 * OWN);
        drop(quotas);
        assert_eq!(budget.held().sockets, 0);
    }

    #[test]
    fn memory_and_requests_are_shared_in_the_same_way() {
        let (budget, quotas) = pods(2, 10);
        assert!(quotas[0].has_room(600) && !quotas[0].has_room(601));
        let most = quotas[0].room(600).unwrap();
        assert!(quotas[0].room(1).is_none() && !quotas[0].has_room(1));
        assert_eq!(quotas[0].refused(), 0, "it makes do with less");
        let _rest = quotas[1].room(200).unwrap();
        assert_eq!(budget.held().memory, 800);
        drop(most);
        assert_eq!(budget.held().memory, 200);
        let _two = (quotas[0].request().unwrap(), quotas[0].request().unwrap());
        assert!(quotas[0].request().is_none(), "refused");
        assert_eq!(quotas[0].refused(), 1);
    }

    #[test]
    fn threads_never_get_more_than_there_is() {
        let (budget, quotas) = pods(4, 100);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                quotas.iter().map(|quota| scope.spawn(|| greedy(quota))).collect();
            let permits: Vec<_> = threads.into_iter().map(|one| one.join().unwrap()).collect();
            permits.iter().map(Vec::len).sum()
        });
        assert!(taken <= 100 && taken > 40, "{taken}");
        assert_eq!(budget.held().sockets, 4 * OWN);
    }
}
