//! The configurations that are in use: made at a policy's first connection, kept as long as it is the same.
//! Files are read anew every few seconds that somebody wants them, so that a renewed certificate is used.
//!
//! Invariant: a worker never waits for a file system, and of each pod one reading goes on at a time: one
//! whose files hang costs one thread, and its own connections. What was good stays in use while a file
//! cannot be read or is half changed.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use rustc_hash::FxHashMap;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{Mutex as Turn, oneshot};
use tokio::time::Instant;

use super::OriginationError;
use super::build::{Files, config};
use crate::model::{Alpn, TlsOrigination, TlsTarget};

/// Configurations that are kept; at this number the one that was not wanted for longest goes.
const MOST: usize = 1024;
/// How long what was read counts.
const FRESH: Duration = Duration::from_secs(5);
/// A configuration that nobody wanted for so long is not kept.
const UNUSED: Duration = Duration::from_secs(600);

/// Reads a file: UID of the pod, and a path as the pod's processes see it. It may block.
pub type ReadInPod = Arc<dyn Fn(&str, &str) -> io::Result<Vec<u8>> + Send + Sync>;

/// The configurations of all workers.
pub struct Origination {
    roots: Arc<RootCertStore>,
    read: ReadInPod,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    slots: FxHashMap<Key, (Arc<Slot>, Instant)>,
    /// Whose turn it is to read, by the pod's UID.
    turns: FxHashMap<Arc<str>, Arc<Turn<()>>>,
}

/// What makes configurations different.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    settings: Arc<TlsOrigination>,
    names: Arc<[Arc<str>]>,
    alpn: Alpn,
    /// UID of the pod, where its files count.
    pod: Option<Arc<str>>,
}

struct Slot {
    made: Mutex<Option<Made>>,
    turn: Arc<Turn<()>>,
}

/// What came of one reading.
struct Made {
    config: Result<Arc<ClientConfig>, OriginationError>,
    digest: [u8; 32],
    /// When it counts no more; `None`: never, as no file is in it.
    until: Option<Instant>,
}

// === impl Origination ===

impl Origination {
    /// `roots`: for policies that name none; `read`: for those that name files.
    pub fn new(roots: Arc<RootCertStore>, read: ReadInPod) -> Self {
        Self { roots, read, known: Mutex::default() }
    }

    /// The configuration for a connection of the pod with this UID.
    ///
    /// # Errors
    /// What the policy asks for cannot be had.
    pub async fn config(
        &self,
        pod: &Arc<str>,
        to: &TlsTarget,
    ) -> Result<Arc<ClientConfig>, OriginationError> {
        if let Some(secret) = &to.settings.secret {
            return Err(OriginationError::Secret(Arc::clone(secret)));
        }
        let slot = self.slot(pod, to);
        if let Some(found) = slot.current() {
            return found;
        }
        if !to.settings.has_files() {
            return slot.put(to, &self.roots, Ok(Files::default()), None);
        }
        let turn = Arc::clone(&slot.turn).lock_owned().await;
        if let Some(found) = slot.current() {
            return found;
        }
        let until = Some(Instant::now() + FRESH);
        let (read, roots) = (Arc::clone(&self.read), Arc::clone(&self.roots));
        let (pod, to) = (Arc::clone(pod), to.clone());
        let (done, made) = oneshot::channel();
        let work = move || {
            // Given back when the file system has answered, whoever still waits by then.
            let _turn = turn;
            let files = Files::read(&to.settings, |path| read(&pod, path));
            // Nobody may wait any more: whoever comes next finds it.
            let _ = done.send(slot.put(&to, &roots, files, until));
        };
        // No blocking task of a runtime's, which would wait for it at the agent's end.
        let no_thread = |error: &dyn Display| OriginationError::NoThread(error.to_string());
        let thread = thread::Builder::new().name("pod-files".to_owned()).spawn(work);
        thread.map_err(|error| no_thread(&error))?;
        made.await.unwrap_or_else(|error| Err(no_thread(&error)))
    }

    fn slot(&self, pod: &Arc<str>, to: &TlsTarget) -> Arc<Slot> {
        let of_pod = to.settings.has_files().then(|| Arc::clone(pod));
        let key = Key {
            settings: Arc::clone(&to.settings),
            names: Arc::clone(&to.names),
            alpn: to.alpn,
            pod: of_pod,
        };
        let now = Instant::now();
        let mut known = locked(&self.known);
        if let Some((slot, used)) = known.slots.get_mut(&key) {
            *used = now;
            return Arc::clone(slot);
        }
        known.forget_unused(now);
        let turn = match &key.pod {
            Some(pod) => Arc::clone(known.turns.entry(Arc::clone(pod)).or_default()),
            None => Arc::default(),
        };
        let slot = Arc::new(Slot { made: Mutex::default(), turn });
        known.slots.insert(key, (Arc::clone(&slot), now));
        slot
    }
}

// === impl Known ===

impl Known {
    fn forget_unused(&mut self, now: Instant) {
        self.slots.retain(|_, (_, used)| now.duration_since(*used) < UNUSED);
        if self.slots.len() >= MOST {
            let oldest = self.slots.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.slots.remove(&oldest);
            }
        }
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    }
}

// === impl Slot ===

impl Slot {
    /// What counts at the moment, if it is known.
    fn current(&self) -> Option<Result<Arc<ClientConfig>, OriginationError>> {
        let made = locked(&self.made);
        let made = made.as_ref()?;
        made.until.is_none_or(|until| Instant::now() < until).then(|| made.config.clone())
    }

    /// Takes what was read, which counts `until` then.
    fn put(
        &self,
        to: &TlsTarget,
        roots: &Arc<RootCertStore>,
        files: Result<Files, OriginationError>,
        until: Option<Instant>,
    ) -> Result<Arc<ClientConfig>, OriginationError> {
        let digest = files.as_ref().map_or([0; 32], Files::digest);
        if files.is_ok()
            && let Some(before) = &mut *locked(&self.made)
            && before.config.is_ok()
            && before.digest == digest
        {
            before.until = until;
            return before.config.clone();
        }
        let built = files.and_then(|files| config(to, roots, &files)).map(Arc::new);
        let mut made = locked(&self.made);
        match (&mut *made, built) {
            (Some(before @ Made { config: Ok(_), .. }), Err(error)) => {
                tracing::warn!(%error, "TLS settings not renewed, those of before stay in use");
                before.until = until;
                before.config.clone()
            }
            (_, built) => {
                *made = Some(Made { config: built.clone(), digest, until });
                built
            }
        }
    }
}

/// A lock whose holders do not panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
