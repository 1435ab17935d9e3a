//! `getpeername(2)`: a captured application sees the address it dialled, not the agent's.
//!
//! Sockets without a record, the agent's own among them, are answered by the kernel as ever.
//! Kernel: cgroup/getpeername4 since 5.8.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::redirect;

use crate::{ctx, maps};

/// The hook has no other answer.
const ALLOW: i32 = 1;

/// `getpeername` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(origin) = maps::origin(&ctx::socket(&ctx)) {
        let (ip, port) = ctx::address4(&ctx);
        if redirect::hides_peer(&origin, &ip, port) {
            ctx::set_address4(&ctx, &origin.ip, origin.port);
        }
    }
    ALLOW
}

/// `getpeername` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(origin) = maps::origin(&ctx::socket(&ctx)) {
        let (ip, port) = ctx::address6(&ctx);
        if redirect::hides_peer(&origin, &ip, port) {
            ctx::set_address6(&ctx, &origin.ip, origin.port);
        }
    }
    ALLOW
}
