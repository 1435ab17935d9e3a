//! The objects, what they compile to, and how that is told: the same for every source.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{debug, error, info, warn};

use super::Publish;
use super::compile::{Compiled, compile};
use super::diagnostic::{Diagnostic, Severity};
use super::objects::{Answers, Objects, Settings};
use crate::model::Snapshot;

/// The objects in force and what they say together.
pub(super) struct Store {
    /// What `compile` reads.
    pub(super) objects: Objects,
    snapshot: Arc<Snapshot>,
    diagnostics: Vec<Diagnostic>,
    /// Only the first generation is news: a cluster changes all the time.
    pub(super) quiet: bool,
}

impl Store {
    /// No object yet; generations go on from what is published.
    pub(super) fn new(settings: Settings, publish: &Publish) -> Self {
        Self {
            objects: Objects::new(settings),
            snapshot: publish.snapshot.borrow().clone(),
            diagnostics: Vec::new(),
            quiet: false,
        }
    }

    /// Takes what names resolve to now; whether that is news.
    pub(super) fn resolve(&mut self, answers: &Arc<Answers>) -> bool {
        let is_news = self.objects.answers() != &**answers;
        if is_news {
            self.objects.resolve(Arc::clone(answers));
        }
        is_news
    }

    /// Whether nothing has been compiled yet.
    pub(super) fn is_new(&self) -> bool {
        self.snapshot.generation == 0
    }

    /// Compiles the objects as they are now.
    pub(super) fn compile(&mut self) {
        let Compiled { snapshot, diagnostics, changed } = compile(&self.objects, &self.snapshot);
        if changed {
            self.snapshot = Arc::new(snapshot);
        }
        self.diagnostics = diagnostics;
    }

    /// Everything that is wrong.
    pub(super) fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// Tells of what changed since the last time.
    pub(super) fn publish(&self, publish: &Publish) {
        let Publish { snapshot, diagnostics, .. } = publish;
        if !Arc::ptr_eq(&snapshot.borrow(), &self.snapshot) {
            let generation = self.snapshot.generation;
            snapshot.send_replace(Arc::clone(&self.snapshot));
            if generation == 1 || !self.quiet {
                info!(generation, "configuration in force");
            } else {
                debug!(generation, "configuration in force");
            }
        }
        if **diagnostics.borrow() != self.diagnostics {
            log_new(&diagnostics.borrow(), &self.diagnostics);
            diagnostics.send_replace(Arc::new(self.diagnostics.clone()));
        }
    }
}

/// Wall clock, seconds since the epoch.
pub(super) fn now() -> i64 {
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(age.as_secs()).unwrap_or(i64::MAX)
}

fn log_new(before: &[Diagnostic], now: &[Diagnostic]) {
    for found in now.iter().filter(|found| before.binary_search(found).is_err()) {
        match found.severity {
            Severity::Error => error!(problem = %found, "configuration not in force"),
            Severity::Warning => warn!(problem = %found, "configuration in force with reserves"),
        }
    }
}
