//! Wall-clock time for certificates. A certificate's times are `SystemTime`, while waiting is done
//! in Tokio's time, which tests pause: the anchored clock moves with the latter.

use std::time::SystemTime;

use tokio::time::Instant;

/// Where "now" comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's clock: follows its corrections.
    System,
    /// `at` plus what passed on Tokio's clock since `since`.
    Anchored {
        /// Wall-clock time of the anchor.
        at: SystemTime,
        /// Tokio time of the anchor.
        since: Instant,
    },
}

impl Clock {
    /// The current wall-clock time.
    pub fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Anchored { at, since } => *at + since.elapsed(),
        }
    }
}
