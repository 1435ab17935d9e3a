//! TCP callbacks: they carry the original destination from the client's socket to the agent's,
//! announce direct connections to their pod and report them, and take tuples out when a socket
//! closes.
//!
//! `connect` cannot write the tuple, since the source port is chosen after it; the callback
//! before the SYN can. An accepted socket has its record before `accept` can return it, so there
//! is no race. Callbacks of an accepted socket follow the cgroup of the process that made the
//! listener. Kernel: netns cookie in sock_ops since 5.15.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::maps::{
    ACCEPTED, ADMIT, AdmitKey, CLIENT, DIRECT_CLIENT, DialKey, FLOW_CLOSED, FLOW_OPENED, Flow,
    OriginalDestination, TupleKey,
};
use mesh_common::{flow, ports};

use crate::ctx::{Ends, Socket};
use crate::{ctx, maps};

// The name must not be that of its section, "sockops".
/// All callbacks of sockets below the agent's cgroup.
#[sock_ops]
pub fn tcp_callback(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => before_syn(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => reached(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx::ops_new_state(&ctx) == BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    // No callback used here takes an answer.
    0
}

#[inline(always)]
fn before_syn(ctx: &SockOpsContext) {
    let Some(socket) = ctx::ops_socket(ctx) else { return };
    if let Some(origin) = captured(ctx, &socket) {
        watch_close(ctx);
        let key = tuple_key(ctx::ops_netns(ctx), &ctx::ops_ends(ctx));
        if maps::remember_tuple(&key, &origin).is_err() {
            maps::count(Counter::TuplesFull);
        }
    } else if direct(&socket).is_some() {
        watch_close(ctx);
        if maps::admit_direct(&admit_key(&ctx::ops_ends(ctx))).is_err() {
            maps::count(Counter::AdmittedFull);
        }
    } else if is_admit(&socket) {
        watch_close(ctx);
    }
}

/// A destination that the agent could not reach before goes through the agent again.
#[inline(always)]
fn reached(ctx: &SockOpsContext) {
    let ends = ctx::ops_ends(ctx);
    if ends.remote_port == ports::OUTBOUND {
        return;
    }
    maps::forget_unreached(&DialKey::new(ctx::ops_netns(ctx), ends.remote, ends.remote_port));
    if let Some(origin) = ctx::ops_socket(ctx).and_then(|socket| direct(&socket)) {
        report(&ends, &origin, FLOW_OPENED, (0, 0));
    }
}

#[inline(always)]
fn report(ends: &Ends, origin: &OriginalDestination, kind: u16, (sent, received): (u64, u64)) {
    let flow = Flow {
        sent,
        received,
        client: ends.local,
        service: origin.ip,
        endpoint: ends.remote,
        client_port: ends.local_port,
        service_port: origin.port,
        endpoint_port: ends.remote_port,
        kind,
    };
    if maps::report(&flow).is_err() {
        maps::count(Counter::FlowsLost);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    if ctx::ops_local_port(ctx) != ports::OUTBOUND {
        return;
    }
    let netns = ctx::ops_netns(ctx);
    let Some(socket) = ctx::ops_socket(ctx) else { return };
    let here = ctx::ops_ends(ctx);
    // The client's view of the same connection.
    let there = Ends {
        local: here.remote,
        local_port: here.remote_port,
        remote: here.local,
        remote_port: here.local_port,
    };
    let Some(origin) = maps::take_tuple(&tuple_key(netns, &there)) else {
        // In other pods the port is an application's own. The tuple decides, not the enrolment:
        // the pod may have been withdrawn since the SYN.
        if maps::pod(netns).is_some() {
            maps::count(Counter::OriginMissing);
        }
        return;
    };
    if maps::set_origin(&socket, &OriginalDestination { kind: ACCEPTED, ..origin }).is_err() {
        maps::count(Counter::OriginMissing);
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(socket) = ctx::ops_socket(ctx) else { return };
    if captured(ctx, &socket).is_some() {
        // Gone already unless the agent never completed the handshake.
        let _ = maps::take_tuple(&tuple_key(ctx::ops_netns(ctx), &ctx::ops_ends(ctx)));
    } else if let Some(origin) = direct(&socket) {
        let ends = ctx::ops_ends(ctx);
        maps::forget_admitted(&admit_key(&ends));
        let state = ctx::ops_old_state(ctx);
        if state != BPF_TCP_SYN_SENT {
            let (acked, received) = ctx::ops_bytes(ctx);
            report(&ends, &origin, FLOW_CLOSED, flow::payload(state, acked, received));
        }
    } else if is_admit(&socket) {
        maps::forget_admitted(&admit_key(&ctx::ops_ends(ctx)));
    }
}

/// The key of a connection of this socket's to an application.
#[inline(always)]
pub fn admit_key(ends: &Ends) -> AdmitKey {
    AdmitKey {
        source: ends.local,
        destination: ends.remote,
        source_port: ends.local_port,
        destination_port: ends.remote_port,
    }
}

/// The record of an application's socket that goes past the agent.
#[inline(always)]
fn direct(socket: &Socket) -> Option<OriginalDestination> {
    maps::origin(socket).filter(|origin| origin.kind == DIRECT_CLIENT)
}

/// The record of an application's socket that is connected to the agent.
#[inline(always)]
fn captured(ctx: &SockOpsContext, socket: &Socket) -> Option<OriginalDestination> {
    if ctx::ops_remote_port(ctx) != ports::OUTBOUND {
        return None;
    }
    maps::origin(socket).filter(|origin| origin.kind == CLIENT)
}

#[inline(always)]
fn is_admit(socket: &Socket) -> bool {
    maps::mark(socket).is_some_and(|mark| mark.flags & ADMIT != 0)
}

#[inline(always)]
fn tuple_key(netns: u64, ends: &Ends) -> TupleKey {
    TupleKey {
        netns,
        local: ends.local,
        remote: ends.remote,
        local_port: ends.local_port,
        remote_port: ends.remote_port,
        reserved: 0,
    }
}

/// Asks for callbacks on changes of state, beside those that other programs asked for.
#[inline(always)]
pub fn watch_close(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}
