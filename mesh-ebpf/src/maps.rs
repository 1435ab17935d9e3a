//! All maps, and the operations on them that the programs need.
//!
//! No decision is made here. Sizes are defaults: the agent sets its own at load time. The
//! invariant: hash maps are never LRU, which would evict another pod's entry without a word; a
//! full map fails the operation. Only hints may get lost (`UNREACHED`).
#![allow(unsafe_code, reason = "map values are reached through the kernel's raw pointers")]

use core::arch::asm;

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use aya_ebpf::programs::SkLookupContext;
use mesh_common::address::Ip;
use mesh_common::counter::Counter;
use mesh_common::maps::{
    ADMITTED_DIRECT, ADMITTED_PROBE, AdmitKey, DialKey, DirectService, Flow, Inbound, ListenerKey,
    Mark, OriginalDestination, Pod, PortKey, RangeData, ServiceKey, SlotKey, Target, TupleKey,
    UNREACHED_NS,
};

use crate::ctx::Socket;

/// Lets the kernel offer us the helpers that it reserves for GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Enrolled pods. Written by the agent; read by connect and sockops. One per pod of the node.
#[map]
static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(1024, 0);

/// Where a captured socket meant to connect. Written by connect (client) and sockops (accepted);
/// read by getpeername and, by fd, by the agent. Lives and dies with the socket.
#[btf_map]
static ORIGINS: SkStorage<OriginalDestination> = SkStorage::new();

/// Marks of the agent's own sockets. Written by the agent only; read by connect and sockops.
#[btf_map]
static MARKS: SkStorage<Mark> = SkStorage::new();

/// Original destinations between SYN and accept. Written and emptied by sockops. Full: the
/// connection has no origin and the agent closes it.
#[map]
static TUPLES: HashMap<TupleKey, OriginalDestination> = HashMap::with_max_entries(65_536, 0);

/// Number of each pod's entries in `TUPLES`. Made by the agent; counted by sockops; read by
/// connect. One per pod of the node.
#[map]
static PENDING: HashMap<u64, i64> = HashMap::with_max_entries(1024, 0);

/// Connections that may reach an application. Written by the agent before it connects, and by
/// sockops for direct ones; emptied by sockops at close; read by sk_lookup. Full: the agent's dial
/// fails, a direct one is steered to the agent.
#[map]
static ADMITTED: HashMap<AdmitKey, u8> = HashMap::with_max_entries(262_144, 0);

/// Addresses of enrolled pods. Written by the agent; read by sk_lookup, which has no netns
/// cookie. Two per pod of the node.
#[map]
static INBOUND: HashMap<Ip, Inbound> = HashMap::with_max_entries(2048, 0);

/// Ports left alone. Written by the agent; read by connect and sk_lookup.
#[map]
static EXCLUDED_PORTS: HashMap<PortKey, u8> = HashMap::with_max_entries(16_384, 0);

/// Ranges left alone. Written by the agent; read by connect.
#[map]
static EXCLUDED_RANGES: LpmTrie<RangeData, u8> = LpmTrie::with_max_entries(16_384, 0);

/// The agent's inbound listeners. Written by the agent; read by sk_lookup; the kernel takes a
/// closed listener out by itself. Four per pod of the node.
#[map]
static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(4096, 0);

/// Destinations outside the mesh that the agent could not reach, and until when it leaves them to
/// the kernel. Written by the agent; prolonged by connect; emptied by sockops. LRU, since an entry
/// that is lost costs its pod one more reset.
#[map]
static UNREACHED: LruHashMap<DialKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// Direct services. Written by the agent; read by connect. Full: the service is not direct.
#[map]
static DIRECT: HashMap<ServiceKey, DirectService> = HashMap::with_max_entries(4096, 0);

/// Their pods on this node. Written by the agent; read by connect. Full: as `DIRECT`.
#[map]
static DIRECT_SLOTS: HashMap<SlotKey, Target> = HashMap::with_max_entries(16_384, 0);

/// Ports of enrolled pods that the kubelet probes. Written by the agent; read by probe. Full: the
/// probes of the last pods go to the agent, which refuses them where mutual TLS is asked for.
#[map]
static PROBES: HashMap<ServiceKey, u8> = HashMap::with_max_entries(16_384, 0);

/// Reports of direct connections. Written by sockops; read by the agent. Full: counted.
#[map]
static FLOWS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What happened, for people. Written by all programs; read by the agent. Fixed size.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a slot of this CPU; cgroup and lookup programs are not preempted by their kind.
        unsafe { *value += 1 }
    }
}

/// The enrolled pod of a network namespace.
#[inline(always)]
pub fn pod(netns: u64) -> Option<&'static Pod> {
    // SAFETY: the agent replaces values whole; a reader sees an old or a new one.
    unsafe { PODS.get(netns) }
}

/// Settings of the pod that owns an address.
#[inline(always)]
pub fn inbound(ip: &Ip) -> Option<Inbound> {
    // SAFETY: as in `pod`.
    unsafe { INBOUND.get(ip) }.copied()
}

/// Whether the agent announced this connection.
#[inline(always)]
pub fn is_admitted(key: &AdmitKey) -> bool {
    ADMITTED.get_ptr(key).is_some()
}

/// Announces an application's own connection.
#[inline(always)]
pub fn admit_direct(key: &AdmitKey) -> Result<(), i32> {
    ADMITTED.insert(key, ADMITTED_DIRECT, 0)
}

/// Announces a probe of the kubelet's.
#[inline(always)]
pub fn admit_probe(key: &AdmitKey) -> Result<(), i32> {
    ADMITTED.insert(key, ADMITTED_PROBE, 0)
}

/// Whether the kubelet probes this port of a pod.
#[inline(always)]
pub fn is_probe(key: &ServiceKey) -> bool {
    PROBES.get_ptr(key).is_some()
}

/// A direct service.
#[inline(always)]
pub fn direct(key: &ServiceKey) -> Option<DirectService> {
    // SAFETY: as in `pod`.
    unsafe { DIRECT.get(key) }.copied()
}

/// One of its pods on this node.
#[inline(always)]
pub fn direct_slot(service: &ServiceKey, slot: u32) -> Option<Target> {
    // SAFETY: as in `pod`.
    unsafe { DIRECT_SLOTS.get(SlotKey { service: *service, slot }) }.copied()
}

/// Reports a direct connection to the agent.
#[inline(always)]
pub fn report(flow: &Flow) -> Result<(), i32> {
    FLOWS.output::<Flow>(flow, 0)
}

/// Takes back an announcement.
#[inline(always)]
pub fn forget_admitted(key: &AdmitKey) {
    // Absent if the agent took it back itself.
    let _ = ADMITTED.remove(key);
}

/// Whether a port of a pod is excluded.
#[inline(always)]
pub fn is_excluded_port(key: &PortKey) -> bool {
    EXCLUDED_PORTS.get_ptr(key).is_some()
}

/// Whether a destination is in an excluded range of the pod.
#[inline(always)]
pub fn is_excluded_range(netns: u64, ip: &Ip) -> bool {
    EXCLUDED_RANGES.get(Key::new(RangeData::BITS, RangeData::new(netns, *ip))).is_some()
}

/// Whether the agent could not reach this destination lately. If so it stays like that for a
/// while, so that a client that goes on trying sees the kernel's own answer each time.
#[inline(always)]
pub fn is_unreached(key: &DialKey, now: u64) -> bool {
    let Some(until) = UNREACHED.get_ptr_mut(key) else { return false };
    // SAFETY: a live map value, aligned to 8; writers race for the same few seconds' difference.
    unsafe {
        if until.read_volatile() < now {
            return false;
        }
        until.write_volatile(now + UNREACHED_NS);
    }
    true
}

/// The destination has answered.
#[inline(always)]
pub fn forget_unreached(key: &DialKey) {
    // Looked up first, since only that takes no lock.
    if UNREACHED.get_ptr(key).is_some() {
        let _ = UNREACHED.remove(key);
    }
}

/// Number of the pod's connections that wait for the agent.
#[inline(always)]
pub fn pending(netns: u64) -> i64 {
    match PENDING.get_ptr_mut(netns) {
        // An aligned 64-bit load is one instruction; LLVM cannot select an atomic one for BPF.
        // SAFETY: a live map value, aligned to 8.
        Some(value) => unsafe { value.read_volatile() },
        None => 0,
    }
}

/// Remembers a destination from the SYN to the accept.
#[inline(always)]
pub fn remember_tuple(key: &TupleKey, origin: &OriginalDestination) -> Result<(), i32> {
    TUPLES.insert(key, origin, 0)?;
    add_pending(key.netns, 1);
    Ok(())
}

/// Takes the destination of a connection out again.
#[inline(always)]
pub fn take_tuple(key: &TupleKey) -> Option<OriginalDestination> {
    // SAFETY: a key is one connection's: nobody writes this value between here and `remove`.
    let origin = unsafe { TUPLES.get(key) }.copied()?;
    // Whoever really removed it, accept or close, counts it down.
    if TUPLES.remove(key).is_ok() {
        add_pending(key.netns, -1);
    }
    Some(origin)
}

#[inline(always)]
fn add_pending(netns: u64, delta: i64) {
    if let Some(value) = PENDING.get_ptr_mut(netns) {
        // `AtomicU64::fetch_add` does not exist for this target, which lacks compare-and-swap;
        // the instruction does (BPF_ATOMIC | BPF_ADD, since the first kernels with eBPF).
        // SAFETY: as in `pending`; the instruction touches the value and nothing else.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) value, in(reg) delta) }
    }
}

/// Hands the packet to a listener of the agent.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext, key: &ListenerKey) -> Result<(), i32> {
    /// A pod's root process can join a SO_REUSEPORT group; this names one socket exactly.
    const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 2;
    // `Borrow` for a reference to the context is not there, so it is made anew.
    LISTENERS.redirect_sk_lookup(
        SkLookupContext::new(ctx.lookup),
        key,
        BPF_SK_LOOKUP_F_NO_REUSEPORT,
    )
}

/// The original destination of a socket.
#[inline(always)]
pub fn origin(socket: &Socket) -> Option<OriginalDestination> {
    let value = storage::<OriginalDestination>((&raw const ORIGINS).cast_mut().cast(), socket);
    // SAFETY: the kernel returned a live value of this map.
    unsafe { value.as_ref() }.copied()
}

/// Remembers the original destination of a socket.
#[inline(always)]
pub fn set_origin(socket: &Socket, origin: &OriginalDestination) -> Result<(), ()> {
    let map = (&raw const ORIGINS).cast_mut().cast();
    let mut initial = *origin;
    // SAFETY: the socket is live for the program's run; `initial` is as large as the map's value.
    let value = unsafe {
        bpf_sk_storage_get(
            map,
            socket.as_ptr(),
            (&raw mut initial).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    }
    .cast::<OriginalDestination>();
    // SAFETY: the kernel returned a live value of this map, or null.
    let value = unsafe { value.as_mut() }.ok_or(())?;
    // It may have been there: a socket may be disconnected and connected again.
    *value = initial;
    Ok(())
}

/// Forgets the original destination of a socket, if it had one.
#[inline(always)]
pub fn clear_origin(socket: &Socket) {
    let map = (&raw const ORIGINS).cast_mut().cast();
    // SAFETY: the socket is live for the program's run.
    let _ = unsafe { bpf_sk_storage_delete(map, socket.as_ptr()) };
}

/// The agent's mark on a socket.
#[inline(always)]
pub fn mark(socket: &Socket) -> Option<Mark> {
    let value = storage::<Mark>((&raw const MARKS).cast_mut().cast(), socket);
    // SAFETY: the kernel returned a live value of this map, or null.
    unsafe { value.as_ref() }.copied()
}

#[inline(always)]
fn storage<V>(map: *mut core::ffi::c_void, socket: &Socket) -> *const V {
    // SAFETY: the socket is live for the program's run; without CREATE no value is read.
    unsafe { bpf_sk_storage_get(map, socket.as_ptr(), core::ptr::null_mut(), 0) }.cast::<V>()
}
