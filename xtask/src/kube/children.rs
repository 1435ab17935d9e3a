//! The lab's processes as far as we are their parent: to notice one that ends, and to collect them.

use std::collections::BTreeMap;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;

/// Processes by the name that they are recorded under.
#[derive(Debug, Default)]
pub(super) struct Children(Mutex<BTreeMap<String, Child>>);

impl Children {
    /// Starts one.
    pub(super) fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        self.lock().insert(name.to_owned(), child);
        Ok(())
    }

    /// How it ended, if it is ours and has.
    pub(super) fn ended(&self, name: &str) -> Option<ExitStatus> {
        self.lock().get_mut(name)?.try_wait().ok()?
    }

    /// Waits for one that was killed.
    pub(super) fn collect(&self, name: &str) {
        if let Some(mut child) = self.lock().remove(name) {
            // Nothing to say: it was to end.
            let _ = child.wait();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Children {
    /// The guardian has killed them, or the lab stays up: none is waited for that runs.
    fn drop(&mut self) {
        for child in self.lock().values_mut() {
            let _ = child.try_wait();
        }
    }
}
