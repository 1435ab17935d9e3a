//! `connect(2)`: outbound connections of enrolled pods go to the agent.
//!
//! The agent listens inside the pod's own network namespace. Connections to a direct service go to
//! one of its pods on the node instead, if the draw falls on one. What the application meant is kept
//! in the socket's storage; `sockops` carries it to the agent. Kernel: cgroup/connect4 since
//! 4.17, `bpf_set_retval` since 5.18.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::address::Ip;
use mesh_common::counter::Counter;
use mesh_common::maps::{
    ADMIT, CLIENT, DIRECT_CLIENT, DialKey, HAS_PORTS, HAS_RANGES, Mark, OUTBOUND,
    OriginalDestination, Pod, PortKey, ServiceKey, Target,
};
use mesh_common::ports;
use mesh_common::redirect::{self, Draw, Outbound};

use crate::ctx::Socket;
use crate::{ctx, maps};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;

/// `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    if !ctx::is_tcp(&ctx) {
        return ALLOW;
    }
    let socket = ctx::socket(&ctx);
    let (ip, port) = ctx::address4(&ctx);
    if let Some(mark) = maps::mark(&socket) {
        return own(&mark, || ctx::is_taken4(&ctx, &socket, &ip, port));
    }
    let netns = ctx::netns(&ctx);
    let Some(pod) = maps::pod(netns) else { return ALLOW };
    match decide(&socket, netns, pod, &ip, port) {
        Step::Done(answer) => answer,
        Step::Redirect(to) => {
            ctx::clear_device(&ctx, &socket);
            ctx::bind4(&ctx, pod.ipv4);
            ctx::set_address4(&ctx, &to, ports::OUTBOUND);
            ALLOW
        }
        Step::Replace(to) => {
            ctx::set_address4(&ctx, &to.ip, to.port as u16);
            ALLOW
        }
    }
}

/// `connect` on an IPv6 socket, also to IPv4-mapped addresses.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if !ctx::is_tcp(&ctx) {
        return ALLOW;
    }
    let socket = ctx::socket(&ctx);
    let (ip, port) = ctx::address6(&ctx);
    if let Some(mark) = maps::mark(&socket) {
        return own(&mark, || ctx::is_taken6(&ctx, &socket, &ip, port));
    }
    let netns = ctx::netns(&ctx);
    let Some(pod) = maps::pod(netns) else { return ALLOW };
    match decide(&socket, netns, pod, &ip, port) {
        Step::Done(answer) => answer,
        Step::Redirect(to) => {
            ctx::clear_device(&ctx, &socket);
            let source = if ip.is_v4() { Ip::from_v4(pod.ipv4) } else { pod.ipv6 };
            ctx::bind6(&ctx, &source);
            ctx::set_address6(&ctx, &to, ports::OUTBOUND);
            ALLOW
        }
        Step::Replace(to) => {
            ctx::set_address6(&ctx, &to.ip, to.port as u16);
            ALLOW
        }
    }
}

/// What the hook still has to do.
enum Step {
    /// Nothing: this is its return value.
    Done(i32),
    /// Rewrite the destination: the agent.
    Redirect(Ip),
    /// Rewrite the destination: a pod of the node.
    Replace(Target),
}

/// The agent's own socket: never captured. One that borrows a client's address must not take the
/// four numbers of a live connection of that client's, or its SYN ends in that connection.
#[inline(always)]
fn own(mark: &Mark, is_taken: impl FnOnce() -> bool) -> i32 {
    if mark.flags & ADMIT != 0 && is_taken() {
        maps::count(Counter::AdmitPortInUse);
        ctx::set_error(EADDRINUSE);
        return REFUSE;
    }
    ALLOW
}

#[inline(always)]
fn decide(socket: &Socket, netns: u64, pod: &Pod, ip: &Ip, port: u16) -> Step {
    let excluded = || {
        let key = PortKey { netns, port, direction: OUTBOUND, reserved: 0 };
        (pod.flags & HAS_PORTS != 0 && maps::is_excluded_port(&key))
            || (pod.flags & HAS_RANGES != 0 && maps::is_excluded_range(netns, ip))
            || maps::is_unreached(&DialKey::new(netns, *ip, port), ctx::now())
    };
    let direct = || {
        let key = ServiceKey { ip: *ip, port: u32::from(port) };
        match maps::direct(&key) {
            Some(service) => {
                redirect::draw(&service, ctx::random(), |slot| maps::direct_slot(&key, slot))
            }
            None => Draw::None,
        }
    };
    match redirect::outbound(pod, ip, port, excluded, direct, || maps::pending(netns)) {
        Outbound::Pass => {
            // The socket may have been captured before and disconnected since.
            maps::clear_origin(socket);
            maps::count(Counter::OutboundPassed);
            Step::Done(ALLOW)
        }
        Outbound::Refuse(reason) => refuse(reason),
        Outbound::Capture { to, flags } => {
            if remember(socket, ip, port, CLIENT, flags).is_err() {
                return refuse(Counter::OutboundRefusedStorage);
            }
            maps::count(Counter::OutboundCaptured);
            Step::Redirect(to)
        }
        Outbound::Direct(to) => {
            if remember(socket, ip, port, DIRECT_CLIENT, 0).is_err() {
                return refuse(Counter::OutboundRefusedStorage);
            }
            maps::count(Counter::OutboundDirect);
            Step::Replace(to)
        }
    }
}

#[inline(always)]
fn remember(socket: &Socket, ip: &Ip, port: u16, kind: u16, flags: u32) -> Result<(), ()> {
    let origin = OriginalDestination { ip: *ip, port, kind, flags, reserved: [0; 2] };
    maps::set_origin(socket, &origin)
}

#[inline(always)]
fn refuse(reason: Counter) -> Step {
    maps::count(reason);
    ctx::set_error(ECONNREFUSED);
    Step::Done(REFUSE)
}
