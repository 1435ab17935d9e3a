//! TCP callbacks of the kubelet: they announce its probes to the pod, as the agent announces its own
//! connections.
//!
//! A pod that takes nothing but mutual TLS must stay alive. No address tells a probe: whatever comes
//! in by a NodePort has the node's too. So the program is attached to the kubelet's cgroup, which no
//! pod is in, and lets through only what the pod declares to be probed.

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::maps::ServiceKey;

use crate::sockops::{admit_key, watch_close};
use crate::{ctx, maps};

/// All callbacks of sockets in the kubelet's cgroup.
#[sock_ops]
pub fn probe_callback(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => before_syn(&ctx),
        // Of any socket: its four numbers are its own, whoever asked for the callback.
        BPF_SOCK_OPS_STATE_CB if ctx::ops_new_state(&ctx) == BPF_TCP_CLOSE => {
            maps::forget_admitted(&admit_key(&ctx::ops_ends(&ctx)));
        }
        _ => {}
    }
    // No callback used here takes an answer.
    0
}

#[inline(always)]
fn before_syn(ctx: &SockOpsContext) {
    let ends = ctx::ops_ends(ctx);
    if !maps::is_probe(&ServiceKey { ip: ends.remote, port: ends.remote_port.into() }) {
        return;
    }
    watch_close(ctx);
    if maps::admit_probe(&admit_key(&ends)).is_err() {
        maps::count(Counter::AdmittedFull);
    }
}
