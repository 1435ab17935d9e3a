//! The certificates of this node's service accounts.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::ca::{Issued, LocalCa};
use super::credentials::Credentials;
use super::rotation;
use super::IdentityError;
use crate::model::SpiffeId;

/// Longest sleep of the rotation task, so that a clock that jumps is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Where certificates come from.
pub enum Issuer {
    /// A root key on this machine.
    Local(LocalCa),
}

impl From<LocalCa> for Issuer {
    fn from(ca: LocalCa) -> Self {
        Self::Local(ca)
    }
}

impl Issuer {
    fn issue(
        &self,
        identity: &SpiffeId,
        life: Duration,
        now: SystemTime,
    ) -> Result<Issued, IdentityError> {
        match self {
            Self::Local(ca) => ca.issue(identity, life, now),
        }
    }
}

struct Held {
    credentials: Arc<Credentials>,
    /// Local pods that use it.
    users: usize,
    renew_at: SystemTime,
    failures: u32,
}

/// Certificates by identity, with the number of pods that need each.
pub struct Identities {
    issuer: Issuer,
    trust_domain: Arc<str>,
    life: Duration,
    held: RwLock<FxHashMap<SpiffeId, Held>>,
    /// Issuing is slow compared with a look-up: one at a time, so that one identity is issued once.
    issuing: Mutex<()>,
    changed: Notify,
}

impl Identities {
    /// Certificates from `issuer`, each valid for `life`.
    pub fn new(issuer: Issuer, trust_domain: Arc<str>, life: Duration) -> Self {
        Self {
            issuer,
            trust_domain,
            life,
            held: RwLock::default(),
            issuing: Mutex::new(()),
            changed: Notify::new(),
        }
    }

    /// Credentials for `identity`, issued if there are none; counts one more user.
    ///
    /// # Errors
    /// When they cannot be issued.
    pub fn ensure(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, IdentityError> {
        let _one = self.issuing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) =
            self.held.write().unwrap_or_else(PoisonError::into_inner).get_mut(identity)
        {
            held.users += 1;
            return Ok(held.credentials.clone());
        }
        let (credentials, renew_at) = self.issue(identity)?;
        let held = Held { credentials: credentials.clone(), users: 1, renew_at, failures: 0 };
        self.held
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(identity.clone(), held);
        self.changed.notify_one();
        Ok(credentials)
    }

    /// The credentials in force, if any pod uses them.
    pub fn current(&self, identity: &SpiffeId) -> Option<Arc<Credentials>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.get(identity).map(|held| held.credentials.clone())
    }

    /// One user fewer; the last one takes the key along.
    pub fn release(&self, identity: &SpiffeId) {
        let mut all = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(identity) {
            held.users -= 1;
            if held.users == 0 {
                all.remove(identity);
            }
        }
    }

    /// All credentials in force, by identity.
    pub fn all(&self) -> Vec<Arc<Credentials>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = held.values().map(|held| held.credentials.clone()).collect();
        all.sort_by(|a, b| a.identity().cmp(b.identity()));
        all
    }

    /// Renews what is due, until dropped. A failure keeps the certificate in force and is retried.
    pub async fn run_rotation(&self) {
        loop {
            let now = SystemTime::now();
            self.renew_due(now);
            let next = {
                let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
                held.values().map(|held| held.renew_at).min()
            };
            let sleep = next
                .map_or(MAX_SLEEP, |at| at.duration_since(now).unwrap_or_default())
                .clamp(Duration::from_millis(100), MAX_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn renew_due(&self, now: SystemTime) {
        let due: Vec<SpiffeId> = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            held.iter().filter(|(_, held)| held.renew_at <= now).map(|(id, _)| id.clone()).collect()
        };
        for identity in due {
            let _one = self.issuing.lock().unwrap_or_else(PoisonError::into_inner);
            let issued = self.issue(&identity);
            let mut all = self.held.write().unwrap_or_else(PoisonError::into_inner);
            let Some(held) = all.get_mut(&identity) else { continue };
            match issued {
                Ok((credentials, renew_at)) => {
                    held.credentials = credentials;
                    held.renew_at = renew_at;
                    held.failures = 0;
                    tracing::info!(%identity, "certificate renewed");
                }
                Err(error) => {
                    held.failures += 1;
                    held.renew_at = now + rotation::retry_after(held.failures);
                    tracing::error!(%identity, %error, "certificate renewal failed");
                }
            }
        }
    }

    fn issue(
        &self,
        identity: &SpiffeId,
    ) -> Result<(Arc<Credentials>, SystemTime), IdentityError> {
        let now = SystemTime::now();
        let issued = self.issuer.issue(identity, self.life, now)?;
        let renew_at = rotation::renew_at(now, issued.not_after, draw());
        let credentials = Credentials::new(identity.clone(), self.trust_domain.clone(), issued)?;
        Ok((Arc::new(credentials), renew_at))
    }
}

/// A random number in 0..1; its quality does not matter here.
fn draw() -> f64 {
    let mut bytes = [0; 4];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
