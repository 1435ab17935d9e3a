//! Who holds a token: the API server's word, remembered for a few seconds.
//!
//! Invariant: a token that was revoked, or whose pod or account is gone, is refused at most
//! [`REMEMBERED`] later. Tokens are remembered by digest only.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use rustc_hash::FxHashMap;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::decide::{Caller, Refusal, caller};

/// How long a verdict holds.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Verdicts that are remembered; at the limit the old ones go, and if there is none, all.
const MOST: usize = 4096;
/// Reviews at a time; further callers wait. Anybody in the cluster can make the authority ask.
const AT_ONCE: usize = 16;
/// Time for a review, the wait for a place included.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the API server about tokens.
pub(super) struct Reviews {
    api: Api<TokenReview>,
    audience: String,
    places: Semaphore,
    verdicts: Mutex<Verdicts>,
}

type Verdict = Result<Caller, Refusal>;

#[derive(Default)]
struct Verdicts(FxHashMap<[u8; 32], (Instant, Verdict)>);

impl Reviews {
    pub(super) fn new(client: Client, audience: String) -> Self {
        let verdicts = Mutex::default();
        Self { api: Api::all(client), audience, places: Semaphore::new(AT_ONCE), verdicts }
    }

    /// Whose token it is.
    pub(super) async fn caller(&self, token: &str) -> Verdict {
        let digest = digest(token);
        if let Some(verdict) = self.verdicts().get(&digest, Instant::now()) {
            return verdict;
        }
        tokio::time::timeout(TIMEOUT, self.ask(token, digest))
            .await
            .unwrap_or_else(|_| Err(Refusal::Away(format!("no answer in {TIMEOUT:?}"))))
    }

    async fn ask(&self, token: &str, digest: [u8; 32]) -> Verdict {
        let _place = self.places.acquire().await;
        // An agent that starts asks for many certificates at once, with one token.
        if let Some(verdict) = self.verdicts().get(&digest, Instant::now()) {
            return verdict;
        }
        let spec = TokenReviewSpec {
            audiences: Some(vec![self.audience.clone()]),
            token: Some(token.to_owned()),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.api.create(&PostParams::default(), &review).await;
        // Not remembered: it says nothing about the token.
        let answer = answer.map_err(|error| Refusal::Away(error.to_string()))?;
        let verdict = caller(&answer.status.unwrap_or_default(), &self.audience);
        self.verdicts().put(digest, verdict.clone(), Instant::now());
        verdict
    }

    fn verdicts(&self) -> std::sync::MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verdicts {
    fn get(&self, digest: &[u8; 32], now: Instant) -> Option<Verdict> {
        let (until, verdict) = self.0.get(digest)?;
        (*until > now).then(|| verdict.clone())
    }

    fn put(&mut self, digest: [u8; 32], verdict: Verdict, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, (until, _)| *until > now);
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(digest, (now + REMEMBERED, verdict));
    }
}

fn digest(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_for_seconds_and_for_its_token() {
        let now = Instant::now();
        let mut verdicts = Verdicts::default();
        verdicts.put(digest("a"), Err(Refusal::NoToken), now);
        assert!(verdicts.get(&digest("a"), now).is_some());
        assert!(verdicts.get(&digest("b"), now).is_none());
        assert!(verdicts.get(&digest("a"), now + REMEMBERED).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut verdicts = Verdicts::default();
        for number in 0..3 * MOST {
            verdicts.put(digest(&number.to_string()), Err(Refusal::NoToken), now);
            assert!(verdicts.0.len() <= MOST);
        }
        let later = now + REMEMBERED;
        verdicts.put(digest("x"), Err(Refusal::NoToken), later);
        assert!(verdicts.get(&digest("x"), later).is_some());
    }
}
