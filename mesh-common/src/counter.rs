//! What the kernel programs count. Indexes into the per-CPU array `COUNTERS`.

/// One counter of the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Outbound connections handed to the agent.
    OutboundCaptured,
    /// Outbound connections of an enrolled pod left alone (loopback, exclusions, no address).
    OutboundPassed,
    /// Outbound connections to a pod of the node that go there without the agent.
    OutboundDirect,
    /// Outbound connections refused because they name one of the mesh's own ports.
    OutboundRefusedMeshPort,
    /// Outbound connections refused because the pod has too many unanswered ones.
    OutboundRefusedPending,
    /// Outbound connections refused because the kernel had no memory for the socket's storage.
    OutboundRefusedStorage,
    /// Captured connections whose original destination was lost because `TUPLES` was full.
    TuplesFull,
    /// Connections that reached the outbound listener without an original destination.
    OriginMissing,
    /// Inbound connections handed to the plaintext listener.
    InboundPlaintext,
    /// Inbound connections handed to the tunnel listener.
    InboundTunnel,
    /// Inbound connections let through to the application: the agent's own.
    InboundAdmitted,
    /// Inbound connections let through to an excluded port.
    InboundExcluded,
    /// Inbound connections refused because they name the port of another listener of the mesh.
    InboundRefusedMeshPort,
    /// Inbound connections refused because the local address is not one of the pod's.
    InboundRefusedAddress,
    /// Inbound connections refused because the agent does not listen.
    InboundRefusedListener,
    /// The agent's own dials refused because the source port is in use by the client itself.
    AdmitPortInUse,
    /// Direct connections that could not be announced to their pod: they are steered to the agent.
    AdmittedFull,
    /// Reports of direct connections that were lost, because the agent reads too slowly.
    FlowsLost,
}

impl Counter {
    /// All counters with the names under which they are shown, in index order.
    pub const ALL: [(Self, &'static str); 18] = [
        (Self::OutboundCaptured, "outbound_captured"),
        (Self::OutboundPassed, "outbound_passed"),
        (Self::OutboundDirect, "outbound_direct"),
        (Self::OutboundRefusedMeshPort, "outbound_refused_mesh_port"),
        (Self::OutboundRefusedPending, "outbound_refused_pending"),
        (Self::OutboundRefusedStorage, "outbound_refused_storage"),
        (Self::TuplesFull, "tuples_full"),
        (Self::OriginMissing, "origin_missing"),
        (Self::InboundPlaintext, "inbound_plaintext"),
        (Self::InboundTunnel, "inbound_tunnel"),
        (Self::InboundAdmitted, "inbound_admitted"),
        (Self::InboundExcluded, "inbound_excluded"),
        (Self::InboundRefusedMeshPort, "inbound_refused_mesh_port"),
        (Self::InboundRefusedAddress, "inbound_refused_address"),
        (Self::InboundRefusedListener, "inbound_refused_listener"),
        (Self::AdmitPortInUse, "admit_port_in_use"),
        (Self::AdmittedFull, "admitted_full"),
        (Self::FlowsLost, "flows_lost"),
    ];

    /// Number of counters.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn names_stand_at_their_index() {
        for (index, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
