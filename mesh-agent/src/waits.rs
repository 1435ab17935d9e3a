//! Waits between attempts: each twice as long as the one before, with jitter, without an end.
//!
//! With jitter, or the agents of a cluster whose API server, runtime or authority comes back would all
//! come in step. No clock is read here.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Waits from `first` to `last`, each with up to as much again by chance.
pub(crate) fn growing(first: Duration, last: Duration) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(last)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

/// `wait`, with up to as much again by chance.
pub(crate) fn jittered(wait: Duration) -> Duration {
    growing(wait, wait).next().unwrap_or(wait)
}
