//! The agent's administrative interface: gRPC on a Unix socket, read-only, for root and the agent's
//! own user. `meshctl` is its client.
//!
//! What it is not: it changes nothing, and the data path does not know that it exists.
//! Invariant: an answer is computed from one snapshot, never from two generations.

mod http;
mod policies;
mod routes;
mod server;
mod socket;
mod views;

use std::sync::Arc;
use std::time::SystemTime;

use crate::api;
use crate::identity::Identities;
use crate::model::Snapshot;

pub use http::{Probes, serve_probes};
pub use server::serve;
pub use socket::AdminSocket;

/// Asks another part of the agent for rows, at the moment of a request. Must not block.
pub type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What the interface shows, and whom it asks.
pub struct AdminState {
    /// Name of the node.
    pub node: Arc<str>,
    /// When the agent started.
    pub started: SystemTime,
    /// Configuration in force.
    pub snapshot: Ask<Arc<Snapshot>>,
    /// Certificates.
    pub identities: Arc<Identities>,
    /// Findings about the configuration.
    pub diagnostics: Ask<Vec<api::Diagnostic>>,
    /// Connections, those that are older than their pod's enrolment among them.
    pub connections: Ask<Vec<api::Connection>>,
    /// Endpoints that outlier detection leaves out.
    pub ejections: Ask<Vec<api::Ejection>>,
    /// Captured pods and the eBPF side's counters.
    pub capture: Ask<api::Capture>,
}
