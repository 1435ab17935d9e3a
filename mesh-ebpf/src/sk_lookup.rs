//! Inbound: a SYN for a pod's address goes to the agent's listener in the pod.
//!
//! Attached to the network namespace of each enrolled pod. Connections that exist are not asked
//! about, so nothing is added per packet. The accepted socket's `getsockname` is the original
//! destination. Kernel: sk_lookup since 5.9.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::counter::Counter;
use mesh_common::maps::{AdmitKey, HAS_PORTS, INBOUND_PORT, Inbound, ListenerKey, PortKey};
use mesh_common::ports;
use mesh_common::redirect::{self, Arrival};

use crate::ctx::Ends;
use crate::{ctx, maps};

/// Looks for the listener of a SYN.
#[sk_lookup]
pub fn steer_inbound(ctx: SkLookupContext) -> u32 {
    let Some(ends) = ctx::lookup_ends(&ctx) else { return SK_PASS };
    match decide(&ends) {
        Arrival::Pass => SK_PASS,
        Arrival::PassCounted(counter) => {
            maps::count(counter);
            SK_PASS
        }
        Arrival::Refuse(reason) => {
            maps::count(reason);
            SK_DROP
        }
        Arrival::Steer(port) => steer(&ctx, &ends, port),
    }
}

#[inline(always)]
fn decide(ends: &Ends) -> Arrival {
    let admitted = || {
        maps::is_admitted(&AdmitKey {
            source: ends.remote,
            destination: ends.local,
            source_port: ends.remote_port,
            destination_port: ends.local_port,
        })
    };
    let excluded = |pod: &Inbound| {
        let port = ends.local_port;
        let key = PortKey { netns: pod.netns, port, direction: INBOUND_PORT, reserved: 0 };
        pod.flags & HAS_PORTS != 0 && maps::is_excluded_port(&key)
    };
    let settings = || maps::inbound(&ends.local);
    redirect::inbound(&ends.local, ends.local_port, &ends.remote, admitted, settings, excluded)
}

#[inline(always)]
fn steer(ctx: &SkLookupContext, ends: &Ends, port: u16) -> u32 {
    let key = ListenerKey { ip: ends.local, port: u32::from(port) };
    if maps::steer(ctx, &key).is_err() {
        // The agent is gone: closed, not open.
        maps::count(Counter::InboundRefusedListener);
        return SK_DROP;
    }
    let steered =
        if port == ports::TUNNEL { Counter::InboundTunnel } else { Counter::InboundPlaintext };
    maps::count(steered);
    SK_PASS
}
