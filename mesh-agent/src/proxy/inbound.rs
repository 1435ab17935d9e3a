//! Connections that arrive at a pod of this node: tunnels from other nodes, and plaintext from
//! outside the mesh where `PeerAuthentication` lets it in.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::ports;
use tokio::net::TcpStream;

use super::copy::{self, Broken};
use super::listener::Accepted;
use super::worker::{Worker, peer_identity};
use crate::model::{MtlsMode, Workload};
use crate::telemetry::{ConnectionRecord, ConnectionStart, Layer, Reporter, ResponseFlag};
use crate::tunnel::{self, Incoming, LocalPod, Quota, ServerSettings, TunnelStream, reset_tcp};

/// Time that the application gets to take a connection from its own node.
const APPLICATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Status to the far agent when the application cannot be reached (ztunnel answers the same).
const UNREACHABLE: u16 = 503;
/// Status when the destination is not this pod or not to be reached from outside.
const REFUSED: u16 = 400;

/// Serves one plaintext connection.
pub(super) async fn serve_plaintext(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted { pod, stream, peer, _load, _permit, .. } = accepted;
    let Ok(mut client) = TcpStream::from_std(stream) else { return };
    // sk_lookup steers without rewriting: the local address is the one that was dialled.
    let Ok(target) = client.local_addr().map(unmapped) else { return };
    let peer = unmapped(peer);
    let live = worker.shared.live.load_full();
    let workload = live.snapshot.workloads_by_uid.get(&pod.uid).cloned();
    let mut record =
        open_record(worker, live.snapshot.workloads_by_ip.get(&peer.ip()), peer, target);
    // Without configuration for the pod nothing says that plaintext may come in: fail closed.
    let mode = workload
        .as_ref()
        .map_or(MtlsMode::Strict, |workload| workload.peer_policy.mode_of(target.port()));
    // Pods of other nodes that have left before cannot speak otherwise.
    let is_refused = mode == MtlsMode::Strict && !worker.shared.capture.is_leaving();
    if is_refused || ports::is_mesh(target.port()) {
        tracing::info!(pod = %pod.name, %peer, %target,
            "connection closed due to policy rejection");
        return reset_tcp(client);
    }
    let Some(_end) = pod.quota.socket_for_others() else {
        record.flag(ResponseFlag::UpstreamOverflow);
        return reset_tcp(client);
    };
    let dialled = worker
        .shared
        .capture
        .dial_into_pod(&pod.net, peer.ip(), target, APPLICATION_CONNECT_TIMEOUT)
        .await;
    let mut application = match dialled {
        Ok(application) => application,
        Err(error) => {
            tracing::debug!(pod = %pod.name, %target, %error, "application refused a connection");
            record.flag(ResponseFlag::UpstreamConnectFailure);
            return reset_tcp(client);
        }
    };
    record.established(workload, None);
    let progress = |received, sent| count(&record, received, sent);
    let copied = copy::bidirectional(&mut client, &mut application, &[], &pod.quota, progress);
    match copied.await.1 {
        Ok(()) => {}
        Err(Broken::Client) => reset_tcp(application),
        Err(Broken::Upstream) => reset_tcp(client),
    }
}

/// Serves one tunnel: every stream in it is a connection to the pod.
pub(super) async fn serve_tunnel(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted { pod, stream, peer, _load, _permit, .. } = accepted;
    let Ok(socket) = TcpStream::from_std(stream) else { return };
    let peer = unmapped(peer);
    let Some(credentials) = worker.shared.identities.current(&pod.identity) else {
        tracing::warn!(pod = %pod.name, "no certificate for a pod, tunnel refused");
        return reset_tcp(socket);
    };
    let Some(handshake) = pod.quota.handshake() else { return reset_tcp(socket) };
    let Some(address) = socket.local_addr().ok().map(|address| unmapped(address).ip()) else {
        return;
    };
    let handler = {
        let worker = worker.clone();
        let pod = pod.clone();
        move |incoming: Incoming| {
            let task = serve_stream(worker.clone(), pod.clone(), peer.ip(), incoming);
            worker.serving.spawn_local(task);
        }
    };
    let settings = ServerSettings {
        tls: credentials.server().clone(),
        address,
        peer_identity,
        shutdown: worker.drain.clone(),
        handshake,
    };
    if let Err(error) = tunnel::serve(socket, settings, handler).await {
        tracing::info!(pod = %pod.name, %peer, %error, "tunnel refused or broken");
    }
}

async fn serve_stream(worker: Rc<Worker>, pod: Arc<LocalPod>, client: IpAddr, incoming: Incoming) {
    let _load = worker.load();
    let target = incoming.authority;
    let identity = incoming.peer.clone();
    let live = worker.shared.live.load_full();
    let source = live.snapshot.workloads_by_ip.get(&client);
    let mut record = open_record(&worker, source, SocketAddr::new(client, 0), target);
    if ports::is_mesh(target.port()) {
        return incoming.refuse(REFUSED);
    }
    // The stream, and the socket to the application.
    let (Some(_permit), Some(_end)) =
        (pod.quota.stream_from(client), pod.quota.socket_for_others())
    else {
        record.flag(ResponseFlag::UpstreamOverflow);
        return incoming.refuse(UNREACHABLE);
    };
    let dialled = worker
        .shared
        .capture
        .dial_into_pod(&pod.net, client, target, APPLICATION_CONNECT_TIMEOUT)
        .await;
    match dialled {
        Ok(application) => {
            record
                .established(live.snapshot.workloads_by_uid.get(&pod.uid).cloned(), Some(identity));
            drop(live);
            let stream = incoming.accept();
            let progress = |received, sent| count(&record, received, sent);
            join(stream, application, &pod.quota, progress).await;
        }
        Err(error) => {
            tracing::debug!(pod = %pod.name, %target, %error, "application refused a connection");
            record.flag(ResponseFlag::UpstreamConnectFailure);
            incoming.refuse(UNREACHABLE);
        }
    }
}

async fn join(
    mut stream: TunnelStream,
    mut application: TcpStream,
    quota: &Arc<Quota>,
    progress: impl Fn(u64, u64),
) {
    match copy::bidirectional(&mut stream, &mut application, &[], quota, progress).await.1 {
        Ok(()) => {}
        Err(Broken::Client) => reset_tcp(application),
        Err(Broken::Upstream) => stream.reset(),
    }
}

fn open_record(
    worker: &Rc<Worker>,
    source: Option<&Arc<Workload>>,
    peer: SocketAddr,
    target: SocketAddr,
) -> ConnectionRecord {
    worker.telemetry.connection(ConnectionStart {
        reporter: Reporter::Destination,
        source: source.cloned(),
        source_address: peer,
        destination_address: target,
        service: None,
        layer: Layer::Tcp,
        direct: false,
    })
}

/// Counts what a copy moved: from the client, and to the client.
pub(super) fn count(record: &ConnectionRecord, received: u64, sent: u64) {
    record.received(received);
    record.sent(sent);
}

/// Listeners of the IPv6 kind see IPv4 peers as mapped addresses (RFC 4291 section 2.5.5.2).
pub(super) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
