//! Messages, client and server stubs of the protocols that the agent's parts speak with each other
//! or with Istio's: the administrative socket (`admin` and `cli`, `mesh-agent/proto/admin.proto`),
//! and the certificate service (`identity` and `authority`, [`istio_ca`]). No behaviour.

mod generated;
pub mod istio_ca;

pub use generated::*;

/// Where the agent's socket is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/malha/admin.sock";
