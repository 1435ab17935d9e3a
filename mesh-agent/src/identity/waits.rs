//! How long an authority is left alone after a failure. Pure: the time is a parameter.
//!
//! Whoever enrols pods tries several times a second. Invariant: an authority that is away costs one
//! attempt per wait, not one per pod, and its refusal of one identity does not hold up another.

use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::IdentityError;
use crate::model::SpiffeId;

/// Wait after the first failure; doubles with each further one.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait: a pod starts at most so much after the authority is back.
const LAST: Duration = Duration::from_secs(10);
/// Refused identities that are remembered; at the limit all are forgotten, and asked for again.
const MOST: usize = 4096;

/// What failed, and until when it is not tried again.
#[derive(Debug, Default)]
pub(super) struct Waits {
    away: Option<Wait>,
    refused: FxHashMap<SpiffeId, Wait>,
}

#[derive(Debug)]
struct Wait {
    until: Instant,
    length: Duration,
    error: Arc<IdentityError>,
}

impl Waits {
    /// Whether an attempt may be made now; else the failure that forbids it.
    pub(super) fn check(
        &self,
        identity: &SpiffeId,
        now: Instant,
    ) -> Result<(), Arc<IdentityError>> {
        let waits = self.away.iter().chain(self.refused.get(identity));
        match waits.into_iter().find(|wait| wait.until > now) {
            Some(wait) => Err(Arc::clone(&wait.error)),
            None => Ok(()),
        }
    }

    /// Notes a success: the authority is there.
    pub(super) fn succeeded(&mut self, identity: &SpiffeId) {
        self.away = None;
        self.refused.remove(identity);
    }

    /// Notes a failure.
    pub(super) fn failed(
        &mut self,
        identity: &SpiffeId,
        error: IdentityError,
        now: Instant,
    ) -> Arc<IdentityError> {
        let error = Arc::new(error);
        if matches!(*error, IdentityError::Refused { .. }) {
            self.away = None;
            if self.refused.len() >= MOST {
                self.refused.clear();
            }
            let wait = Wait::after(self.refused.get(identity), Arc::clone(&error), now);
            self.refused.insert(identity.clone(), wait);
        } else {
            self.away = Some(Wait::after(self.away.as_ref(), Arc::clone(&error), now));
        }
        error
    }
}

impl Wait {
    fn after(before: Option<&Self>, error: Arc<IdentityError>, now: Instant) -> Self {
        let length = match before {
            None => FIRST,
            // One of several that were under way at once.
            Some(before) if before.until > now => before.length,
            Some(before) => (before.length * 2).min(LAST),
        };
        Self { until: now + length, length, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
    }

    fn refusal() -> IdentityError {
        IdentityError::Refused { identity: id("cart"), reason: "no".to_owned() }
    }

    fn away() -> IdentityError {
        IdentityError::Away { address: "a:1".to_owned(), reason: "refused".to_owned() }
    }

    #[test]
    fn a_refusal_is_one_identitys_an_absence_all_identities() {
        let now = Instant::now();
        let mut waits = Waits::default();
        waits.failed(&id("cart"), refusal(), now);
        assert!(waits.check(&id("cart"), now).is_err());
        assert!(waits.check(&id("front"), now).is_ok());
        waits.failed(&id("cart"), away(), now);
        assert!(waits.check(&id("front"), now).is_err());
        assert!(waits.check(&id("front"), now + FIRST).is_ok());
        waits.succeeded(&id("front"));
        assert!(waits.check(&id("front"), now).is_ok());
        assert!(waits.check(&id("cart"), now).is_err());
    }

    #[test]
    fn waits_grow_to_the_longest_and_many_at_once_count_as_one() {
        let mut now = Instant::now();
        let mut waits = Waits::default();
        let lengths: Vec<u128> = (0..7)
            .map(|_| {
                for _ in 0..3 {
                    waits.failed(&id("cart"), away(), now);
                }
                let length = waits.away.as_ref().unwrap().length;
                now += length;
                length.as_millis()
            })
            .collect();
        assert_eq!(lengths, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    }
}
