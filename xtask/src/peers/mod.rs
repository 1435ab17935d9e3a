//! Foreign programs that the mesh is tested against, made by other people from the same
//! specifications.
//!
//! Not part of the lab: a peer is an ordinary process that the caller places, in a pod's network
//! namespace or on loopback. Invariant: what is fetched is pinned by version and by hash.

pub mod envoy;
mod fortio;
mod go;
mod process;
mod wheel;

pub use fortio::fortio;
pub use go::go;
pub use process::{Process, Record};

/// Where peers are kept, fetched or built.
#[must_use]
pub fn cache() -> std::path::PathBuf {
    crate::tool::workspace().join("target/peers")
}
