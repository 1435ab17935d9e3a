//! The contract between the agent's administrative socket (`admin`) and `meshctl` (`cli`):
//! messages, client and server stubs of `mesh-agent/proto/admin.proto`. No behaviour.

mod generated;

pub use generated::*;

/// Where the agent's socket is if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/malha/admin.sock";
