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
/// Frozen: [`AdmitKey`] -> 1.
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

/// Names of the maps with a frozen layout.
pub const FROZEN: [&str; 9] =
    [PODS, ORIGINS, MARKS, TUPLES, PENDING, ADMITTED, INBOUND, EXCLUDED_PORTS, EXCLUDED_RANGES];
/// Names of the maps that change with [`LAYOUT_VERSION`].
pub const VERSIONED: [&str; 3] = [LISTENERS, COUNTERS, UNREACHED];

/// Part of the pin path of the maps in [`VERSIONED`]. Raise it when one of them changes.
pub const LAYOUT_VERSION: &str = "v1";

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
    /// [`CLIENT`] or [`ACCEPTED`].
    pub kind: u16,
    /// Zero.
    pub reserved: [u32; 3],
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
}
