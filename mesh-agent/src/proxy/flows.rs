//! Records of direct connections, which go past the agent, from the kernel's reports.
//!
//! Invariant: a connection that goes on when this agent ends is not reported as ended.

use std::net::SocketAddr;
use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::inbound::unmapped;
use super::worker::Worker;
use crate::capture::{DirectEvent, DirectFlow, DirectFlows};
use crate::telemetry::{ConnectionRecord, ConnectionStart, Layer, Reporter};

/// Records of open connections, by client and endpoint. The kernel's limit of sockets bounds them.
type Open = FxHashMap<(SocketAddr, SocketAddr), ConnectionRecord>;

/// Follows the reports until the worker drains.
pub(super) async fn follow(worker: Rc<Worker>, mut flows: DirectFlows) {
    let mut open = Open::default();
    loop {
        let flow = tokio::select! {
            () = worker.drain.cancelled() => break,
            flow = flows.next() => flow,
        };
        match flow {
            Ok(flow) => handle(&worker, &mut open, flow),
            Err(error) => {
                tracing::error!(%error, "no more reports of direct connections");
                break;
            }
        }
    }
    open.into_values().for_each(ConnectionRecord::hand_over);
}

fn handle(worker: &Worker, open: &mut Open, flow: DirectFlow) {
    let key = (flow.client, flow.endpoint);
    match flow.event {
        DirectEvent::Opened => {
            open.insert(key, record(worker, &flow));
        }
        DirectEvent::Closed { sent, received } => {
            // One that another agent saw open has its record now.
            let record = open.remove(&key).unwrap_or_else(|| record(worker, &flow));
            // Seen from the agent: what the client sends is received.
            record.received(sent);
            record.sent(received);
        }
    }
}

fn record(worker: &Worker, flow: &DirectFlow) -> ConnectionRecord {
    let live = worker.shared.live.load();
    let snapshot = &live.snapshot;
    let [client, service, endpoint] = [flow.client, flow.service, flow.endpoint].map(unmapped);
    let pod = |address: SocketAddr| snapshot.workloads_by_ip.get(&address.ip()).cloned();
    let mut record = worker.telemetry.connection(ConnectionStart {
        reporter: Reporter::Source,
        source: pod(client),
        source_address: client,
        destination_address: service,
        service: snapshot.service_at(service).map(|(service, _)| service.clone()),
        layer: Layer::Tcp,
        direct: true,
    });
    let destination = pod(endpoint);
    let peer = destination.as_ref().map(|pod| pod.identity.clone());
    record.established(destination, peer);
    record
}
