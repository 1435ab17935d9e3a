//! Keys and values of the kernel maps, and the maps' names.
//!
//! Every type is `repr(C)` without implicit padding: all bytes that reach a map are written. Maps
//! in the first group below are shared by two agents of different versions while one takes over
//! from the other: their layout is frozen, with reserved bytes to grow into (zero until used).
#![cfg_attr(feature = "user", allow(unsafe_code, reason = "aya::Pod is an unsafe trait"))]

use crate::address::Ip;

/// Frozen: netns cookie -> [`Pod`].
pub const PODS: &str = "PODS";
/// Frozen: socket -> [`OriginalDestination`].
pub const ORIGINS: &str = "ORIGINS";
/// Frozen: socket -> [`Mark`].
pub const MARKS: &str = "MARKS";
/// Frozen: [`TupleKey`] -> [`OriginalDestination`], between SYN and accept.
pub const TUPLES: &str = "TUPLES";
/// Frozen: netns cookie -> number of the pod's entries in [`TUPLES`].
pub const PENDING: &str = "PENDING";
/// Frozen: [`AdmitKey`] -> [`ADMITTED_AGENT`] or [`ADMITTED_DIRECT`].
pub const ADMITTED: &str = "ADMITTED";
/// Frozen: pod address -> [`Inbound`].
pub const INBOUND: &str = "INBOUND";
/// Frozen: [`PortKey`] -> 1.
pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
/// Frozen: [`RangeData`] behind a prefix length -> 1.
pub const EXCLUDED_RANGES: &str = "EXCLUDED_RANGES";
/// Versioned: [`ListenerKey`] -> listening socket.
pub const LISTENERS: &str = "LISTENERS";
/// Versioned: [`crate::counter::Counter`] -> count, per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// Versioned: [`DialKey`] -> end of its entry, in nanoseconds of the monotonic clock.
pub const UNREACHED: &str = "UNREACHED";

/// Not pinned, so each agent has its own: [`ServiceKey`] -> [`DirectService`].
pub const DIRECT: &str = "DIRECT";
/// Not pinned: [`SlotKey`] -> [`Target`].
pub const DIRECT_SLOTS: &str = "DIRECT_SLOTS";
/// Not pinned: [`ServiceKey`] of a pod's address and probed port -> 1.
pub const PROBES: &str = "PROBES";
/// Not pinned: ring of [`Flow`]s.
pub const FLOWS: &str = "FLOWS";

/// Names of the maps with a frozen layout.
pub const FROZEN: [&str; 9] =
    [PODS, ORIGINS, MARKS, TUPLES, PENDING, ADMITTED, INBOUND, EXCLUDED_PORTS, EXCLUDED_RANGES];
/// Names of the maps that change with [`LAYOUT_VERSION`].
pub const VERSIONED: [&str; 3] = [LISTENERS, COUNTERS, UNREACHED];

/// Part of the pin path of the maps in [`VERSIONED`]. Raise it when one of them changes.
pub const LAYOUT_VERSION: &str = "v2";

/// [`Pod::flags`]: the pod has entries in [`EXCLUDED_RANGES`].
pub const HAS_RANGES: u32 = 1;
/// [`Pod::flags`] and [`Inbound::flags`]: the pod has entries in [`EXCLUDED_PORTS`].
pub const HAS_PORTS: u32 = 2;

/// [`Mark::flags`]: `connect` does not capture this socket.
pub const BYPASS: u32 = 1;
/// [`Mark::flags`]: this socket's 4-tuple is in [`ADMITTED`]; it is taken out at its close.
pub const ADMIT: u32 = 2;

/// [`OriginalDestination::kind`]: the application's socket.
pub const CLIENT: u16 = 1;
/// [`OriginalDestination::kind`]: the agent's accepted socket.
pub const ACCEPTED: u16 = 2;
/// [`OriginalDestination::kind`]: the application's socket, connected to a pod of the node.
pub const DIRECT_CLIENT: u16 = 3;

/// [`OriginalDestination::flags`]: the draw among all endpoints fell on one that is not direct.
pub const ELSEWHERE: u32 = 1;

/// Value of [`ADMITTED`]: a connection of the agent's.
pub const ADMITTED_AGENT: u8 = 1;
/// Value of [`ADMITTED`]: an application's connection that goes past the agent.
pub const ADMITTED_DIRECT: u8 = 2;

/// Value of [`ADMITTED`]: a probe of the kubelet's.
pub const ADMITTED_PROBE: u8 = 3;

/// [`Flow::kind`]: the connection is established.
pub const FLOW_OPENED: u16 = 1;
/// [`Flow::kind`]: the connection is over.
pub const FLOW_CLOSED: u16 = 2;

/// Value of [`PODS`]: an enrolled pod, for its outbound side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// The pod's IPv4 address in network byte order, or 0.
    pub ipv4: u32,
    /// [`HAS_RANGES`] | [`HAS_PORTS`].
    pub flags: u32,
    /// The pod's IPv6 address, or zero.
    pub ipv6: Ip,
    /// At most so many of its connections may wait for the agent at one time.
    pub pending_limit: u32,
    /// Zero.
    pub reserved: [u32; 9],
}

/// Value of [`ORIGINS`] and [`TUPLES`]: where the application meant to connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OriginalDestination {
    /// Address.
    pub ip: Ip,
    /// Port, host byte order.
    pub port: u16,
    /// [`CLIENT`], [`ACCEPTED`] or [`DIRECT_CLIENT`].
    pub kind: u16,
    /// [`ELSEWHERE`], or zero.
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

/// Value of [`MARKS`], set by the agent on its own sockets only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mark {
    /// [`BYPASS`] | [`ADMIT`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of [`TUPLES`], as the client sees its connection to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TupleKey {
    /// Network namespace of both ends.
    pub netns: u64,
    /// The client's address.
    pub local: Ip,
    /// The capture address.
    pub remote: Ip,
    /// The client's port, host byte order.
    pub local_port: u16,
    /// The agent's port, host byte order.
    pub remote_port: u16,
    /// Zero.
    pub reserved: u32,
}

/// Key of [`ADMITTED`]: a connection of the agent's to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AdmitKey {
    /// The client's address, which the agent binds.
    pub source: Ip,
    /// The application's address.
    pub destination: Ip,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
}

/// Value of [`INBOUND`]: an enrolled pod, for its inbound side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inbound {
    /// Network namespace of the pod.
    pub netns: u64,
    /// [`HAS_PORTS`].
    pub flags: u32,
    /// Zero.
    pub reserved: [u32; 5],
}

/// Key of [`EXCLUDED_PORTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PortKey {
    /// Network namespace of the pod.
    pub netns: u64,
    /// Host byte order.
    pub port: u16,
    /// [`OUTBOUND`] or [`INBOUND_PORT`].
    pub direction: u16,
    /// Zero.
    pub reserved: u32,
}

/// [`PortKey::direction`]: destination ports of the pod's own connections.
pub const OUTBOUND: u16 = 0;
/// [`PortKey::direction`]: ports of the pod.
pub const INBOUND_PORT: u16 = 1;

/// Data of a key of [`EXCLUDED_RANGES`]; the prefix counts from the first bit of `netns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RangeData {
    /// Network namespace of the pod, always matched whole.
    pub netns: [u32; 2],
    /// Destination.
    pub ip: Ip,
}

/// Length of `netns` in bits: to be added to the prefix length of an IPv6 (or mapped) range.
pub const RANGE_PREFIX: u32 = 64;

impl RangeData {
    /// Longest prefix: an exact address.
    pub const BITS: u32 = RANGE_PREFIX + 128;

    /// Data for an address of a pod.
    #[inline(always)]
    pub const fn new(netns: u64, ip: Ip) -> Self {
        Self { netns: [(netns >> 32) as u32, netns as u32], ip }
    }
}

/// Key of [`LISTENERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListenerKey {
    /// The pod's address.
    pub ip: Ip,
    /// [`crate::ports::PLAINTEXT`] or [`crate::ports::TUNNEL`].
    pub port: u32,
}

/// Key of [`DIRECT`]: what clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// Virtual address.
    pub ip: Ip,
    /// Service port, host byte order.
    pub port: u32,
}

/// Value of [`DIRECT`]: endpoints in use of one service port and family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DirectService {
    /// All of them; at least 1.
    pub endpoints: u32,
    /// Those that are pods of this node, in the mesh: they have the slots 0 to `local` - 1.
    pub local: u32,
}

/// Key of [`DIRECT_SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The service port.
    pub service: ServiceKey,
    /// Below [`DirectService::local`].
    pub slot: u32,
}

/// Value of [`DIRECT_SLOTS`]: where an application listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// The pod's address.
    pub ip: Ip,
    /// The application's port, host byte order.
    pub port: u32,
}

/// What the kernel tells of a direct connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Bytes that the client has sent, and the server's side acknowledged; at the end only.
    pub sent: u64,
    /// Bytes that the client's side has received; at the end only.
    pub received: u64,
    /// The client's address.
    pub client: Ip,
    /// What it dialled.
    pub service: Ip,
    /// Where it went.
    pub endpoint: Ip,
    /// Port of `client`.
    pub client_port: u16,
    /// Port of `service`.
    pub service_port: u16,
    /// Port of `endpoint`.
    pub endpoint_port: u16,
    /// [`FLOW_OPENED`] or [`FLOW_CLOSED`].
    pub kind: u16,
}

/// Key of [`UNREACHED`]: a destination outside the mesh, as seen from one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DialKey {
    /// Network namespace of the pod.
    pub netns: u64,
    /// Destination.
    pub ip: Ip,
    /// Its port, host byte order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

impl DialKey {
    /// Key of a pod's destination.
    #[inline(always)]
    pub const fn new(netns: u64, ip: Ip, port: u16) -> Self {
        Self { netns, ip, port, reserved: [0; 3] }
    }
}

/// How long an entry of [`UNREACHED`] lives after its last use, in nanoseconds. A connection that is
/// established ends it at once.
pub const UNREACHED_NS: u64 = 300_000_000_000;

const _: () = {
    assert!(size_of::<Ip>() == 16);
    assert!(size_of::<Pod>() == 64);
    assert!(size_of::<OriginalDestination>() == 32);
    assert!(size_of::<Mark>() == 8);
    assert!(size_of::<TupleKey>() == 48);
    assert!(size_of::<AdmitKey>() == 36);
    assert!(size_of::<Inbound>() == 32);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<RangeData>() == 24);
    assert!(size_of::<ListenerKey>() == 20);
    assert!(size_of::<DialKey>() == 32);
    assert!(size_of::<ServiceKey>() == 20);
    assert!(size_of::<DirectService>() == 8);
    assert!(size_of::<SlotKey>() == 24);
    assert!(size_of::<Target>() == 20);
    assert!(size_of::<Flow>() == 72);
};

#[cfg(feature = "user")]
mod pod {
    use super::*;

    // SAFETY: `repr(transparent)`-like array of integers; every bit pattern is a valid value.
    unsafe impl aya::Pod for Ip {}
    // SAFETY: repr(C), integers only, no implicit padding (sizes asserted above).
    unsafe impl aya::Pod for Pod {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for OriginalDestination {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Mark {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for TupleKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for AdmitKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Inbound {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for PortKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for RangeData {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for ListenerKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for DialKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for ServiceKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for DirectService {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for SlotKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Target {}
}
