//! Which endpoint a request goes to.
//!
//! [`Live`] ties one generation of configuration to the run-time state of its upstreams (active
//! requests, turns, ejections, what counts under limits); a new generation takes that state over by
//! key. A request asks for its [`Balancer`] once and picks, admits and reports through it. Pure
//! leaves: [`choose`] decides, `table` says where keys go, `locality` which endpoints come first for
//! a client, `priority` what others get when these are ejected, `outlier` when and for how long
//! somebody is, `warmup` what a new endpoint weighs. Not here: connections (`http::pool`, `tunnel`).
//!
//! Invariant: an upstream belongs to one source workload, so what one client's requests count never
//! moves another client's balance. Its numbers are atomics, so all workers see one state. A policy
//! without hashes, limits, outlier detection or warm-up reads no clock and takes no lock, and localities
//! cost nothing where they do not count.

mod arrivals;
mod clock;
mod draws;
mod ejection;
mod hash;
mod host;
mod limits;
mod live;
mod locality;
mod outlier;
mod pick;
mod priority;
mod rate;
mod table;
mod upstream;
mod view;
mod warmup;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use draws::{Draws, by_weight, share};
pub use ejection::{Ejection, EjectionCount};
pub use hash::{choose_version, hash_of};
pub use host::ActiveGuard;
pub use limits::{Connections, InFlight, OpenPermit, PendingPermit};
pub use live::{Ask, Balancer, Choice, Live, LiveHandle, Picked};
pub use outlier::EjectionReason;
pub use pick::choose;
pub use upstream::UpstreamKey;
