//! Which endpoint a request goes to.
//!
//! [`Live`] ties one generation of configuration to the run-time state of its upstreams (active
//! requests, round-robin cursors); a new generation takes that state over by key. [`choose`] is the
//! pure decision. Not here: connections (`http::pool`, `tunnel`), outlier ejection, locality.
//!
//! Invariant: an upstream belongs to one source workload, so what one client's requests count never
//! moves another client's balance. Its numbers are atomics, so all workers see one state.

mod draws;
mod live;
mod pick;
mod upstream;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use draws::{Draws, share};
pub use live::{Ask, Live, LiveHandle};
pub use pick::choose;
pub use upstream::{ActiveGuard, Picked, UpstreamKey};
