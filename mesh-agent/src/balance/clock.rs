//! The one place where balancing reads the clock: for answers and choices under outlier detection
//! or warm-up, and when an upstream or a generation begins. All that is computed from it takes
//! `now`.

use tokio::time::Instant;

/// Now; tests may pause it.
pub(super) fn now() -> Instant {
    Instant::now()
}
