//! The mesh's own ports, all bound inside the pod's network namespace.
//!
//! Numbers as Istio's ztunnel uses them, so that network policies and people's habits carry over.

/// Where captured outbound connections arrive.
pub const OUTBOUND: u16 = 15001;
/// Where inbound connections arrive that do not come through a tunnel.
pub const PLAINTEXT: u16 = 15006;
/// Where tunnels (HBONE) from other nodes arrive.
pub const TUNNEL: u16 = 15008;

/// Whether a connection to this port would reach the mesh itself.
///
/// Such a port is never an original destination, or the agent would dial itself without end.
#[inline(always)]
pub const fn is_mesh(port: u16) -> bool {
    matches!(port, OUTBOUND | PLAINTEXT | TUNNEL)
}
