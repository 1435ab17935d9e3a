//! The identities in use on this node: one certificate for each service account with local pods,
//! shared by its pods, renewed in the background.
//!
//! What it is not: it does not know pods; whoever enrolls one calls `ensure`, and `release` when it
//! is gone. Invariant: of two callers who ask for one identity at once, one waits for the other's
//! certificate; and a failed renewal never takes a certificate away.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use rustc_hash::FxHashMap;
use tokio::sync::{Mutex, Notify};

use super::provider::draw;
use super::{Clock, Credentials, IdentityError, Issuer, KeyDir, Renewal, Trust};
use crate::model::SpiffeId;

/// Service accounts on one node; more are refused. A kubelet runs 110 pods by default.
const MAX_IDENTITIES: usize = 4096;
/// Requests to the authority at a time during renewal.
const RENEWALS_AT_ONCE: usize = 8;
/// Longest sleep of the renewal task, so that a corrected system clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How often the file of roots is looked at.
const TRUST_CHECK: Duration = Duration::from_secs(10);
/// The same while there are none: an agent may start before the authority has published them.
const FIRST_TRUST_CHECK: Duration = Duration::from_secs(1);
/// A kept certificate is used if it lives longer than this: time enough to get another.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// How certificates are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Life of a certificate; a renewal comes at half of it.
    pub ttl: Duration,
    /// The clock.
    pub clock: Clock,
}

impl Default for Settings {
    /// One day, as Istio does, by the machine's clock.
    fn default() -> Self {
        Self { ttl: Duration::from_secs(86_400), clock: Clock::System }
    }
}

/// All identities of the node. Shared by `Arc`; cheap to read from any thread.
pub struct Identities {
    issuer: Issuer,
    trust: ArcSwap<Trust>,
    settings: Settings,
    keys: Option<KeyDir>,
    entries: RwLock<FxHashMap<SpiffeId, Entry>>,
    /// Wakes the renewal task when a certificate came in that may be due first.
    changed: Notify,
}

struct Entry {
    references: usize,
    held: Option<Held>,
    /// Held by whoever talks to the authority about this identity.
    turn: Arc<Mutex<()>>,
}

struct Held {
    credentials: Arc<Credentials>,
    renewal: Renewal,
}

/// A reference that is given back unless `keep` is called: `ensure` may fail or be cancelled.
struct Claim<'a> {
    identities: &'a Identities,
    identity: &'a SpiffeId,
    kept: bool,
}

// === Identities ===

impl Identities {
    /// No identity yet.
    pub fn new(issuer: Issuer, trust: Trust, settings: Settings) -> Self {
        Self {
            issuer,
            trust: ArcSwap::from_pointee(trust),
            settings,
            keys: None,
            entries: RwLock::default(),
            changed: Notify::new(),
        }
    }

    /// Keeps certificates and keys in a folder, and uses those that are there.
    #[must_use]
    pub fn with_keys(self, keys: KeyDir) -> Self {
        Self { keys: Some(keys), ..self }
    }

    /// Whom this node believes.
    pub fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }

    /// Takes a reference to an identity and returns its certificate, issuing it if there is none
    /// that is valid. Without success no reference is held.
    ///
    /// # Errors
    /// When the authority refuses or is away.
    pub async fn ensure(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, IdentityError> {
        let trust = self.trust();
        if !trust.accepts(identity) {
            return Err(IdentityError::ForeignTrustDomain {
                identity: identity.clone(),
                accepted: trust.domains().join(", "),
            });
        }
        let (claim, turn) = self.claim(identity)?;
        let _turn = turn.lock().await;
        let valid =
            self.current(identity).filter(|held| held.not_after() > self.settings.clock.now());
        let credentials = match valid {
            Some(credentials) => credentials,
            None => match self.restore(identity) {
                Some(credentials) => credentials,
                None => self.obtain(identity).await?,
            },
        };
        claim.keep();
        Ok(credentials)
    }

    /// The certificate in use; `None` if nobody ensured the identity.
    pub fn current(&self, identity: &SpiffeId) -> Option<Arc<Credentials>> {
        let entries = self.read();
        Some(Arc::clone(&entries.get(identity)?.held.as_ref()?.credentials))
    }

    /// Gives one reference back; with the last one the certificate and its key are dropped.
    pub fn release(&self, identity: &SpiffeId) {
        let mut entries = self.write();
        let Some(entry) = entries.get_mut(identity) else { return };
        entry.references -= 1;
        if entry.references == 0 {
            entries.remove(identity);
            drop(entries);
            if let Some(Err(error)) = self.keys.as_ref().map(|keys| keys.remove(identity)) {
                tracing::warn!(%identity, %error, "a kept key cannot be removed");
            }
            tracing::debug!(%identity, "identity released");
        }
    }

    /// Removes kept keys of identities that are not in use: their pods ended while no agent ran.
    pub fn forget_other_keys(&self) {
        let Some(keys) = &self.keys else { return };
        let used: Vec<SpiffeId> = self.read().keys().cloned().collect();
        if let Err(error) = keys.keep_only(&used) {
            tracing::warn!(%error, "kept keys cannot be removed");
        }
    }

    /// All certificates with their renewals, in the order of their identities.
    pub fn list(&self) -> Vec<(Arc<Credentials>, Renewal)> {
        let entries = self.read();
        let held = entries.values().filter_map(|entry| entry.held.as_ref());
        let mut list: Vec<_> =
            held.map(|held| (Arc::clone(&held.credentials), held.renewal)).collect();
        drop(entries);
        list.sort_by(|(a, _), (b, _)| a.identity().cmp(b.identity()));
        list
    }

    /// Renews certificates as they come due. Never returns; dropped to stop it.
    pub async fn run_rotation(&self) {
        loop {
            let now = self.settings.clock.now();
            let due: Vec<SpiffeId> = self.due(|renewal| renewal.due() <= now);
            futures_util::stream::iter(due)
                .for_each_concurrent(RENEWALS_AT_ONCE, |identity| async move {
                    self.renew(&identity).await;
                })
                .await;
            let sleep = self.until_next().min(LONGEST_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    /// Follows the file of roots, where there is one. Never returns; dropped to stop it.
    pub async fn run_trust(&self) {
        let mut reported = None;
        loop {
            let wait = if self.trust().is_nobody() { FIRST_TRUST_CHECK } else { TRUST_CHECK };
            tokio::time::sleep(wait).await;
            match self.issuer.trust() {
                None => std::future::pending().await,
                Some(Ok(trust)) => {
                    reported = None;
                    if !trust.same_as(&self.trust()) {
                        self.replace_trust(trust).await;
                    }
                }
                Some(Err(error)) => {
                    let error = error.to_string();
                    if reported.as_ref() != Some(&error) {
                        tracing::error!(%error, "trusted roots cannot be read, the old ones stay");
                        reported = Some(error);
                    }
                }
            }
        }
    }

    /// Believes others from now on: new connections know the new roots, sessions made under the old
    /// ones are forgotten, and a certificate that no new root vouches for is renewed at once.
    pub async fn replace_trust(&self, trust: Trust) {
        let trust = Arc::new(trust);
        self.trust.store(Arc::clone(&trust));
        let identities: Vec<SpiffeId> = self.read().keys().cloned().collect();
        tracing::info!(identities = identities.len(), "trusted roots have changed");
        for identity in identities {
            let Some(turn) = self.read().get(&identity).map(|entry| Arc::clone(&entry.turn)) else {
                continue;
            };
            // Whoever has the turn may have begun under the old roots; who gets it later has not.
            let _turn = turn.lock().await;
            let Some(before) = self.current(&identity) else { continue };
            match before.under(&trust) {
                Ok(credentials) => self.exchange(&identity, credentials, &trust),
                Err(error) => tracing::error!(%identity, %error, "new roots cannot be used"),
            }
        }
        self.changed.notify_one();
    }

    fn exchange(&self, identity: &SpiffeId, credentials: Credentials, trust: &Trust) {
        let now = self.settings.clock.now();
        let mut entries = self.write();
        let Some(held) = entries.get_mut(identity).and_then(|entry| entry.held.as_mut()) else {
            return;
        };
        if trust.verify_chain(&credentials.issued().chain, now).is_err() {
            held.renewal.hasten(now);
        }
        held.credentials = Arc::new(credentials);
    }

    async fn renew(&self, identity: &SpiffeId) {
        let Some(turn) = self.read().get(identity).map(|entry| Arc::clone(&entry.turn)) else {
            return;
        };
        let _turn = turn.lock().await;
        let now = self.settings.clock.now();
        let Err(error) = self.obtain(identity).await else { return };
        let mut entries = self.write();
        let Some(held) = entries.get_mut(identity).and_then(|entry| entry.held.as_mut()) else {
            return;
        };
        held.renewal.failed(now, draw());
        let failures = held.renewal.failures();
        if held.credentials.not_after() <= now {
            tracing::error!(%identity, %error, failures, "certificate expired, renewal failed");
        } else {
            tracing::warn!(%identity, %error, failures, "renewal failed, certificate kept");
        }
    }

    /// Issues and installs; the caller has the identity's turn.
    async fn obtain(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, IdentityError> {
        let now = self.settings.clock.now();
        let trust = self.trust();
        let issued = self.issuer.issue(identity, self.settings.ttl, now).await?;
        let credentials = Arc::new(Credentials::new(identity, issued, &trust)?);
        let renewal = Renewal::new(now, credentials.not_after(), draw());
        // Released meanwhile: nobody wants it.
        if self.install(identity, &credentials, renewal) {
            tracing::info!(%identity, serial = credentials.serial(), "certificate issued");
            self.save(&credentials);
        }
        Ok(credentials)
    }

    /// A certificate that an agent before this one kept, if it is as good as a new one; the caller
    /// has the identity's turn.
    fn restore(&self, identity: &SpiffeId) -> Option<Arc<Credentials>> {
        let restore = || -> Result<Option<Credentials>, String> {
            let Some(keys) = &self.keys else { return Ok(None) };
            let now = self.settings.clock.now();
            let trust = self.trust();
            let Some(issued) = keys.load(identity).map_err(|error| error.to_string())? else {
                return Ok(None);
            };
            trust.verify_chain(&issued.chain, now).map_err(|error| error.to_string())?;
            let credentials =
                Credentials::new(identity, issued, &trust).map_err(|error| error.to_string())?;
            Ok(Some(credentials).filter(|one| one.not_after() > now + SHORTEST_LIFE))
        };
        let credentials = match restore() {
            Ok(credentials) => Arc::new(credentials?),
            Err(error) => {
                tracing::warn!(%identity, error, "a kept certificate cannot be used");
                return None;
            }
        };
        let renewal = Renewal::new(credentials.not_before(), credentials.not_after(), draw());
        if self.install(identity, &credentials, renewal) {
            tracing::info!(%identity, serial = credentials.serial(), "certificate kept");
        }
        Some(credentials)
    }

    /// Whether somebody still wants it.
    fn install(
        &self,
        identity: &SpiffeId,
        credentials: &Arc<Credentials>,
        renewal: Renewal,
    ) -> bool {
        let mut entries = self.write();
        let Some(entry) = entries.get_mut(identity) else { return false };
        entry.held = Some(Held { credentials: Arc::clone(credentials), renewal });
        drop(entries);
        self.changed.notify_one();
        true
    }

    fn save(&self, credentials: &Credentials) {
        let Some(keys) = &self.keys else { return };
        let identity = credentials.identity();
        if let Err(error) = keys.save(identity, credentials.issued()) {
            tracing::warn!(%identity, %error, "a certificate cannot be kept for the next agent");
        }
        // Released while it was written.
        if self.current(identity).is_none()
            && let Err(error) = keys.remove(identity)
        {
            tracing::warn!(%identity, %error, "a kept key cannot be removed");
        }
    }

    fn claim<'a>(
        &'a self,
        identity: &'a SpiffeId,
    ) -> Result<(Claim<'a>, Arc<Mutex<()>>), IdentityError> {
        let mut entries = self.write();
        if !entries.contains_key(identity) && entries.len() >= MAX_IDENTITIES {
            let identity = identity.clone();
            return Err(IdentityError::TooMany { identity, limit: MAX_IDENTITIES });
        }
        let entry = entries.entry(identity.clone()).or_insert_with(|| Entry {
            references: 0,
            held: None,
            turn: Arc::default(),
        });
        entry.references += 1;
        let turn = Arc::clone(&entry.turn);
        Ok((Claim { identities: self, identity, kept: false }, turn))
    }

    fn due(&self, wanted: impl Fn(&Renewal) -> bool) -> Vec<SpiffeId> {
        let entries = self.read();
        let held =
            entries.iter().filter_map(|(identity, entry)| Some((identity, entry.held.as_ref()?)));
        held.filter(|(_, held)| wanted(&held.renewal))
            .map(|(identity, _)| identity.clone())
            .collect()
    }

    fn until_next(&self) -> Duration {
        let now = self.settings.clock.now();
        let entries = self.read();
        let renewals =
            entries.values().filter_map(|entry| Some(entry.held.as_ref()?.renewal.due()));
        renewals
            .min()
            .map_or(LONGEST_SLEEP, |due| due.duration_since(now).unwrap_or(Duration::ZERO))
    }

    // A panic elsewhere while the lock was held cannot leave a half-made entry: every change is
    // one assignment. So poisoning is passed over.
    fn read(&self) -> RwLockReadGuard<'_, FxHashMap<SpiffeId, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, FxHashMap<SpiffeId, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === Claim ===

impl Claim<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.identities.release(self.identity);
        }
    }
}
