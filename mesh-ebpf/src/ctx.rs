//! Reads and writes of the kernel's context structs, and the helpers that take them.
//!
//! No decision is made here. Reads are volatile: LLVM merges two neighbouring 32-bit loads into
//! one of 64, which the verifier refuses ("invalid bpf_context access off=24 size=8"). Where a
//! field depends on the family, all are read first and then selected: a load sunk below the
//! choice becomes "dereference of modified ctx ptr".
#![allow(unsafe_code, reason = "the kernel hands out raw pointers")]

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_set_retval,
    bpf_setsockopt, bpf_sk_release, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};
use mesh_common::address::Ip;

/// `AF_INET` of the kernel.
const AF_INET: u16 = 2;
/// `AF_INET6` of the kernel.
const AF_INET6: u16 = 10;
/// `IPPROTO_TCP` of the kernel.
pub const TCP: u32 = 6;
/// `BPF_TCP_TIME_WAIT` and `BPF_TCP_LISTEN` of the kernel's state numbers (net/tcp_states.h).
const TIME_WAIT: u32 = 6;
const LISTEN: u32 = 10;

/// A socket that is live for the program's run. Never null.
pub struct Socket(*mut bpf_sock);

impl Socket {
    /// For the helpers.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        self.0.cast()
    }
}

/// Both ends of a connection, ports in host byte order.
pub struct Ends {
    /// Address of the socket.
    pub local: Ip,
    /// Port of the socket.
    pub local_port: u16,
    /// Address of its peer.
    pub remote: Ip,
    /// Port of its peer.
    pub remote_port: u16,
}

/// A pseudo-random number, uniform.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// The monotonic clock, in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn read<T: Copy>(field: *const T) -> T {
    // SAFETY: callers pass fields of a context that is live for the program's run.
    unsafe { field.read_volatile() }
}

#[inline(always)]
fn read4(field: *const [u32; 4]) -> [u32; 4] {
    let word = field.cast::<u32>();
    // Word by word: the verifier knows no access of 16 bytes.
    [read(word), read(word.wrapping_add(1)), read(word.wrapping_add(2)), read(word.wrapping_add(3))]
}

#[inline(always)]
fn write<T>(field: *mut T, value: T) {
    // SAFETY: callers pass writable fields of a context that is live for the program's run.
    unsafe { field.write_volatile(value) }
}

// === cgroup/connect*, cgroup/getpeername*, cgroup/getsockname* ===

/// Socket of the calling process.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> Socket {
    // SAFETY: the kernel always sets `sk` for these hooks (PTR_TO_SOCKET, not OR_NULL).
    Socket(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk })
}

/// Network namespace of the socket.
#[inline(always)]
pub fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this context.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

/// Whether the socket speaks TCP.
#[inline(always)]
pub fn is_tcp(ctx: &SockAddrContext) -> bool {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw const (*ctx.sock_addr).protocol };
    read(field) == TCP
}

/// The address of a v4 hook.
#[inline(always)]
pub fn address4(ctx: &SockAddrContext) -> (Ip, u16) {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw const (*ctx.sock_addr).user_ip4 };
    (Ip::from_v4(read(field)), port(ctx.sock_addr))
}

/// The address of a v6 hook; IPv4-mapped ones come out as IPv4.
#[inline(always)]
pub fn address6(ctx: &SockAddrContext) -> (Ip, u16) {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw const (*ctx.sock_addr).user_ip6 };
    (Ip(read4(field)), port(ctx.sock_addr))
}

#[inline(always)]
fn port(sock_addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw const (*sock_addr).user_port };
    // The kernel keeps the 16 bits in network byte order in the low half.
    u16::from_be(read(field) as u16)
}

/// Replaces the address of a v4 hook.
#[inline(always)]
pub fn set_address4(ctx: &SockAddrContext, ip: &Ip, port: u16) {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw mut (*ctx.sock_addr).user_ip4 };
    write(field, ip.0[3]);
    set_port(ctx, port);
}

/// Replaces the address of a v6 hook.
#[inline(always)]
pub fn set_address6(ctx: &SockAddrContext, ip: &Ip, port: u16) {
    // SAFETY: address of a field, nothing is read.
    let word = unsafe { &raw mut (*ctx.sock_addr).user_ip6 }.cast::<u32>();
    write(word, ip.0[0]);
    write(word.wrapping_add(1), ip.0[1]);
    write(word.wrapping_add(2), ip.0[2]);
    write(word.wrapping_add(3), ip.0[3]);
    set_port(ctx, port);
}

#[inline(always)]
fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw mut (*ctx.sock_addr).user_port };
    write(field, u32::from(port.to_be()));
}

/// Frees the socket from an interface it is bound to: the agent is reached through `lo`.
#[inline(always)]
pub fn clear_device(ctx: &SockAddrContext, socket: &Socket) {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    // SAFETY: address of a field, nothing is read.
    let field = unsafe { &raw const (*socket.0).bound_dev_if };
    if read(field) == 0 {
        return;
    }
    let mut none = [0_u8; 4];
    // SAFETY: the helper takes this context; the option is as long as said.
    let _ = unsafe {
        bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET,
            SO_BINDTODEVICE,
            none.as_mut_ptr().cast(),
            none.len() as i32,
        )
    };
}

#[repr(C)]
struct SockAddr4 {
    family: u16,
    port: u16,
    ip: u32,
    zero: [u32; 2],
}

#[repr(C)]
struct SockAddr6 {
    family: u16,
    port: u16,
    flow: u32,
    ip: [u32; 4],
    scope: u32,
}

/// Gives the socket the source address it would have uncaptured, port still open.
///
/// Fails if the application has bound it already, which is as good.
#[inline(always)]
pub fn bind4(ctx: &SockAddrContext, ip: u32) {
    let mut addr = SockAddr4 { family: AF_INET, port: 0, ip, zero: [0; 2] };
    // SAFETY: the helper takes this context; the address is as long as said.
    let _ =
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut addr).cast(), size_of::<SockAddr4>() as i32) };
}

/// [`bind4`] for an IPv6 socket; an IPv4 address is bound mapped.
#[inline(always)]
pub fn bind6(ctx: &SockAddrContext, ip: &Ip) {
    let mut addr = SockAddr6 { family: AF_INET6, port: 0, flow: 0, ip: ip.0, scope: 0 };
    // SAFETY: the helper takes this context; the address is as long as said.
    let _ =
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut addr).cast(), size_of::<SockAddr6>() as i32) };
}

/// Sets the error that the system call returns (negative errno).
#[inline(always)]
pub fn set_error(errno: i32) {
    // SAFETY: no pointer is passed.
    let _ = unsafe { bpf_set_retval(-errno) };
}

/// Whether the reply path of a connection about to be made from a bound socket to
/// `destination` in the same namespace is taken: a live connection of the real client's has the
/// same four numbers.
#[inline(always)]
pub fn is_taken4(ctx: &SockAddrContext, socket: &Socket, destination: &Ip, port: u16) -> bool {
    // SAFETY: addresses of fields, nothing is read.
    let (ip, source) = unsafe { (&raw const (*socket.0).src_ip4, &raw const (*socket.0).src_port) };
    let mut tuple = Tuple4 {
        source: read(ip),
        destination: destination.0[3],
        source_port: (read(source) as u16).to_be(),
        destination_port: port.to_be(),
    };
    is_taken(ctx, (&raw mut tuple).cast(), size_of::<Tuple4>() as u32)
}

/// [`is_taken4`] for IPv6.
#[inline(always)]
pub fn is_taken6(ctx: &SockAddrContext, socket: &Socket, destination: &Ip, port: u16) -> bool {
    // SAFETY: addresses of fields, nothing is read.
    let (ip, source) = unsafe { (&raw const (*socket.0).src_ip6, &raw const (*socket.0).src_port) };
    let mut tuple = Tuple6 {
        source: read4(ip),
        destination: destination.0,
        source_port: (read(source) as u16).to_be(),
        destination_port: port.to_be(),
    };
    is_taken(ctx, (&raw mut tuple).cast(), size_of::<Tuple6>() as u32)
}

#[repr(C)]
struct Tuple4 {
    source: u32,
    destination: u32,
    source_port: u16,
    destination_port: u16,
}

#[repr(C)]
struct Tuple6 {
    source: [u32; 4],
    destination: [u32; 4],
    source_port: u16,
    destination_port: u16,
}

#[inline(always)]
fn is_taken(ctx: &SockAddrContext, tuple: *mut bpf_sock_tuple, size: u32) -> bool {
    /// `BPF_F_CURRENT_NETNS`: the socket's own.
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: the helper takes this context; the tuple is as long as said.
    let found = unsafe { bpf_skc_lookup_tcp(ctx.sock_addr.cast(), tuple, size, CURRENT_NETNS, 0) };
    if found.is_null() {
        return false;
    }
    // SAFETY: address of a field of a socket that we hold.
    let state = read(unsafe { &raw const (*found).state });
    // SAFETY: the reference that the lookup gave us, returned once.
    let _ = unsafe { bpf_sk_release(found.cast()) };
    // TIME_WAIT takes a new SYN (RFC 6191), as it would from the client itself.
    state != LISTEN && state != TIME_WAIT
}

// === sockops ===

/// Socket of a callback, where there is a full one.
#[inline(always)]
pub fn ops_socket(ctx: &SockOpsContext) -> Option<Socket> {
    // SAFETY: a field of a context that is live for the program's run.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(Socket(sk)) }
}

/// Network namespace of the socket.
#[inline(always)]
pub fn ops_netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this context.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

/// Port of the socket, host byte order.
#[inline(always)]
pub fn ops_local_port(ctx: &SockOpsContext) -> u16 {
    // SAFETY: address of a field, nothing is read.
    read(unsafe { &raw const (*ctx.ops).local_port }) as u16
}

/// Port of the peer, host byte order. The kernel keeps it in the upper half, network byte order.
#[inline(always)]
pub fn ops_remote_port(ctx: &SockOpsContext) -> u16 {
    // SAFETY: address of a field, nothing is read.
    u32::from_be(read(unsafe { &raw const (*ctx.ops).remote_port })) as u16
}

/// Both ends of the connection.
#[inline(always)]
pub fn ops_ends(ctx: &SockOpsContext) -> Ends {
    let ops = ctx.ops;
    // SAFETY: addresses of fields, nothing is read.
    let (family, local4, remote4, local6, remote6) = unsafe {
        (
            &raw const (*ops).family,
            &raw const (*ops).local_ip4,
            &raw const (*ops).remote_ip4,
            &raw const (*ops).local_ip6,
            &raw const (*ops).remote_ip6,
        )
    };
    let (local4, remote4) = (Ip::from_v4(read(local4)), Ip::from_v4(read(remote4)));
    let (local6, remote6) = (Ip(read4(local6)), Ip(read4(remote6)));
    let v4 = read(family) == u32::from(AF_INET);
    Ends {
        local: if v4 { local4 } else { local6 },
        local_port: ops_local_port(ctx),
        remote: if v4 { remote4 } else { remote6 },
        remote_port: ops_remote_port(ctx),
    }
}

/// Argument of the callback (`BPF_SOCK_OPS_STATE_CB`: 0 is the old state, 1 the new).
#[inline(always)]
pub fn ops_new_state(ctx: &SockOpsContext) -> u32 {
    // SAFETY: address of a field, nothing is read.
    let args = unsafe { &raw const (*ctx.ops).__bindgen_anon_1 }.cast::<u32>();
    read(args.wrapping_add(1))
}

/// The state that a state callback tells of having been left.
#[inline(always)]
pub fn ops_old_state(ctx: &SockOpsContext) -> u32 {
    // SAFETY: address of a field, nothing is read.
    let args = unsafe { &raw const (*ctx.ops).__bindgen_anon_1 }.cast::<u32>();
    read(args)
}

/// Bytes that the peer has acknowledged, and bytes that it has sent.
#[inline(always)]
pub fn ops_bytes(ctx: &SockOpsContext) -> (u64, u64) {
    // SAFETY: addresses of fields, nothing is read.
    let (acked, received) =
        unsafe { (&raw const (*ctx.ops).bytes_acked, &raw const (*ctx.ops).bytes_received) };
    (read(acked), read(received))
}

// === sk_lookup ===

/// Both ends of a connection that a SYN asks for; `None` if it is not TCP.
#[inline(always)]
pub fn lookup_ends(ctx: &SkLookupContext) -> Option<Ends> {
    let lookup = ctx.lookup;
    // SAFETY: addresses of fields, nothing is read.
    let (family, protocol, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            &raw const (*lookup).family,
            &raw const (*lookup).protocol,
            &raw const (*lookup).local_ip4,
            &raw const (*lookup).remote_ip4,
            &raw const (*lookup).local_ip6,
            &raw const (*lookup).remote_ip6,
            &raw const (*lookup).local_port,
            &raw const (*lookup).remote_port,
        )
    };
    let (local4, remote4) = (Ip::from_v4(read(local4)), Ip::from_v4(read(remote4)));
    let (local6, remote6) = (Ip(read4(local6)), Ip(read4(remote6)));
    let (local_port, remote_port) = (read(local_port) as u16, u16::from_be(read(remote_port)));
    let v4 = read(family) == u32::from(AF_INET);
    if read(protocol) != TCP {
        return None;
    }
    Some(Ends {
        local: if v4 { local4 } else { local6 },
        local_port,
        remote: if v4 { remote4 } else { remote6 },
        remote_port,
    })
}
