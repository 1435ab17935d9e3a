//! HBONE: HTTP/2 CONNECT in mutual TLS 1.3 between nodes, compatible with Istio's ztunnel.
//!
//! `wire` is the protocol and pure. `tls` joins rustls with one socket, `connection` drives both,
//! `stream` is what users hold; `client` and `pool` dial, `server` accepts.
//!
//! Invariants: everything here stays on one worker (`Rc`, `RefCell`; no borrow is held over an
//! await), and only a connection's driver touches its socket, as tokio keeps one waker per
//! direction.

mod carrier;
mod client;
mod connection;
mod error;
mod page;
mod pool;
mod quota;
mod server;
mod stream;
mod tls;
mod upstream;
pub mod wire;

#[cfg(test)]
mod tests;

use rustls_pki_types::CertificateDer;

use crate::model::SpiffeId;

pub use carrier::{UpstreamIo, reset_tcp};
pub use client::ClientTls;
pub use error::TunnelError;
pub use page::PageBuffer;
pub use pool::{Dialled, Pool, PoolKey};
pub use quota::{Budget, Permit, Quota, Usage};
pub use server::{Incoming, ServerSettings, serve};
pub use stream::TunnelStream;
pub use upstream::{LocalPod, LocalPods, LocalPodsHandle, OpenError, Security, Upstream};
pub use wire::{ConnectHead, Reason};

/// Reads the SPIFFE identity out of a peer's certificate chain, end entity first. It is compared
/// after every handshake, because a resumed session skips the verifier.
pub type PeerIdentity = fn(&[CertificateDer<'_>]) -> Option<SpiffeId>;
