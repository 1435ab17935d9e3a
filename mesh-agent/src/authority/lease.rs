//! Which replica leads: a Lease of Kubernetes', as client-go's leader election uses it.
//!
//! Whether another's lease has run out is told by this process's own clock: by how long the Lease has
//! not changed, never by the time that is written in it. Invariant: a replica that cannot renew gives
//! up ([`GIVE_UP`]) before another may take over ([`DURATION`]).
//!
//! Source: `coordination.k8s.io/v1`; `k8s.io/client-go/tools/leaderelection`.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Name of the Lease.
const NAME: &str = "malha-authority";
/// A lease that has not been renewed for this long is anybody's.
const DURATION: Duration = Duration::from_secs(15);
const DURATION_SECONDS: i32 = 15;
/// How often the leader renews it.
const RENEW: Duration = Duration::from_secs(5);
/// How often others look, and a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// After this long without a renewal a leader is none any more.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Time for one look at the Lease, with the write that may follow.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The Lease, seen by one replica.
pub(super) struct Leadership {
    api: Api<Lease>,
    election: Mutex<Election>,
}

/// What a replica knows of the election. Pure but for the clock, which it is given.
#[derive(Debug)]
struct Election {
    /// Name of this replica.
    me: String,
    /// What the Lease said last, and since when.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It was another's.
    Take,
    /// It is this replica's.
    Renew,
    /// It is another's.
    Wait,
}

// === Leadership ===

impl Leadership {
    /// Asks nobody yet. `me` must be another name in each process.
    pub(super) fn new(client: Client, namespace: &str, me: String) -> Self {
        let election = Mutex::new(Election { me, seen: None });
        Self { api: Api::namespaced(client, namespace), election }
    }

    /// Waits until this replica leads.
    pub(super) async fn won(&self) {
        let mut reported = false;
        loop {
            match self.look().await {
                Ok(true) => return,
                Ok(false) => reported = false,
                Err(error) if !reported => {
                    tracing::warn!(%error, "the Lease cannot be read or written");
                    reported = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews for as long as that is possible; returns when this replica leads no more.
    pub(super) async fn lost(&self) {
        let mut renewed = Instant::now();
        let mut wait = RENEW;
        loop {
            tokio::time::sleep(wait).await;
            let begun = Instant::now();
            match self.look().await {
                Ok(true) => (renewed, wait) = (begun, RENEW),
                Ok(false) => return,
                Err(error) if renewed.elapsed() + RETRY >= GIVE_UP => {
                    tracing::warn!(%error, "the Lease cannot be renewed");
                    return;
                }
                Err(_) => wait = RETRY,
            }
        }
    }

    /// Leaves the Lease to the others at once, if it is this replica's. Tried once: it would run out.
    pub(super) async fn release(&self) {
        let release = async {
            let me = self.election.lock().await.me.clone();
            let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
            if spec.holder_identity.as_ref() != Some(&me) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.renew_time = Some(now());
            self.api.replace(NAME, &PostParams::default(), &lease).await.map(|_| ())
        };
        match tokio::time::timeout(TIMEOUT, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the Lease cannot be released"),
            Err(_) => tracing::debug!("the Lease cannot be released in time"),
        }
    }

    /// Whether this replica leads, after it has done what it could for that.
    async fn look(&self) -> anyhow::Result<bool> {
        let look = async {
            let mut election = self.election.lock().await;
            let lease = self.api.get_opt(NAME).await?;
            let spec = lease.as_ref().and_then(|lease| lease.spec.as_ref());
            let step = election.step(spec, Instant::now());
            if step == Step::Wait {
                return Ok(false);
            }
            let mut lease = lease.unwrap_or_default();
            lease.spec = Some(election.next(step, lease.spec.take(), now()));
            let written = match step {
                Step::Create => {
                    lease.metadata.name = Some(NAME.to_owned());
                    self.api.create(&PostParams::default(), &lease).await
                }
                // With the version that was read: of two that try, one is too late.
                _ => self.api.replace(NAME, &PostParams::default(), &lease).await,
            };
            match written {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
                Err(error) => Err(error),
            }
        };
        Ok(tokio::time::timeout(TIMEOUT, look).await??)
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

// === Election ===

impl Election {
    /// What to do about the Lease as it is at `now`.
    fn step(&mut self, lease: Option<&LeaseSpec>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let holder = lease.holder_identity.as_deref().unwrap_or_default();
        if holder == self.me {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == lease => *since,
            _ => {
                self.seen = Some((lease.clone(), now));
                now
            }
        };
        let lasts = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = lasts.map_or(DURATION, Duration::from_secs);
        if now.duration_since(since) >= lasts { Step::Take } else { Step::Wait }
    }

    /// What the Lease says after the step.
    fn next(&self, step: Step, before: Option<LeaseSpec>, now: MicroTime) -> LeaseSpec {
        let before = before.unwrap_or_default();
        let acquired = before.acquire_time.filter(|_| step == Step::Renew);
        let changes = before.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(changes.saturating_add(i32::from(step == Step::Take))),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(me: &str) -> Election {
        Election { me: me.to_owned(), seen: None }
    }

    fn at(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_first_makes_it_and_the_second_waits() {
        let (mut a, mut b) = (election("a"), election("b"));
        let now = Instant::now();
        assert_eq!(a.step(None, now), Step::Create);
        let lease = a.next(Step::Create, None, at(100));
        assert_eq!(lease.holder_identity.as_deref(), Some("a"));
        assert_eq!(a.step(Some(&lease), now), Step::Renew);
        assert_eq!(b.step(Some(&lease), now), Step::Wait);
    }

    #[test]
    fn what_is_not_renewed_is_taken_by_the_own_clock() {
        let mut b = election("b");
        let begun = Instant::now();
        // Written long ago by its own words: what counts is that it does not change.
        let old = election("a").next(Step::Create, None, at(1));
        assert_eq!(b.step(Some(&old), begun), Step::Wait);
        let later = begun + DURATION.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(b.step(Some(&old), later), Step::Wait);
        let renewed = election("a").next(Step::Renew, Some(old), at(14));
        assert_eq!(renewed.acquire_time, Some(at(1)));
        assert_eq!(b.step(Some(&renewed), later), Step::Wait);
        assert_eq!(b.step(Some(&renewed), later + DURATION), Step::Take);
        let taken = b.next(Step::Take, Some(renewed), at(40));
        assert_eq!((taken.lease_transitions, taken.acquire_time), (Some(1), Some(at(40))));
    }

    #[test]
    fn what_is_released_is_taken_at_once() {
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            ..election("a").next(Step::Create, None, at(1))
        };
        assert_eq!(election("b").step(Some(&released), Instant::now()), Step::Take);
        assert_eq!(election("b").step(Some(&LeaseSpec::default()), Instant::now()), Step::Take);
    }

    #[test]
    fn one_gives_up_before_another_may_begin() {
        assert!(GIVE_UP + TIMEOUT < DURATION);
        assert_eq!(DURATION, Duration::from_secs(DURATION_SECONDS.unsigned_abs().into()));
    }
}
