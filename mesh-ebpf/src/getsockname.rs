//! `getsockname(2)`: a captured application that bound a port, but no address, sees its pod's address.
//!
//! The kernel binds a socket once only, so `connect` cannot give it the address, and would name the
//! one that leads to the agent. Kernel: cgroup/getsockname4 since 5.8.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::address::Ip;
use mesh_common::redirect;

use crate::{ctx, maps};

/// The hook has no other answer.
const ALLOW: i32 = 1;

/// `getsockname` on an IPv4 socket.
#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    let (ip, port) = ctx::address4(&ctx);
    if let Some(own) = own(&ctx, &ip) {
        ctx::set_address4(&ctx, &own, port);
    }
    ALLOW
}

/// `getsockname` on an IPv6 socket.
#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    let (ip, port) = ctx::address6(&ctx);
    if let Some(own) = own(&ctx, &ip) {
        ctx::set_address6(&ctx, &own, port);
    }
    ALLOW
}

/// What to report instead of `reported`.
#[inline(always)]
fn own(ctx: &SockAddrContext, reported: &Ip) -> Option<Ip> {
    let origin = maps::origin(&ctx::socket(ctx))?;
    if !redirect::hides_loopback(&origin, reported) {
        return None;
    }
    let pod = maps::pod(ctx::netns(ctx))?;
    Some(if reported.is_v4() { Ip::from_v4(pod.ipv4) } else { pod.ipv6 })
}
