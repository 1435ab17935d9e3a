//! The authority's listener: TLS under its own certificate, HTTP/2, gRPC.
//!
//! Anybody in the cluster can connect. Invariant: what one address may hold is bounded, so that it
//! cannot keep the others out, and a peer that says nothing is cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Authority;
use super::places::{BoxError, Places, accept, bounded, held, secured};
use crate::api::istio_ca::answer;

/// Connections in all; at the limit a further one is closed at once, and its client comes again.
const CONNECTIONS: usize = 4096;
/// Connections of one address: an agent that starts opens one per service account.
const CONNECTIONS_PER_ADDRESS: usize = 256;
/// Requests at a time on one connection.
const STREAMS: u32 = 32;
/// Header block of a request: a token has 1 to 2 KiB.
const HEADERS: u32 = 16 << 10;
/// A peer that does not answer a ping within this time is gone.
const PING: Duration = Duration::from_secs(20);
/// Time for what is under way on a connection that takes no new requests.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// Serves until dropped.
pub(super) async fn serve(authority: &Arc<Authority>, listener: TcpListener) {
    let places = Arc::new(Places::new(CONNECTIONS_PER_ADDRESS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = accept(&listener).await;
        let place = places.take(peer.ip()).filter(|_| connections.len() < CONNECTIONS);
        let Some(place) = place else {
            tracing::debug!(%peer, "too many connections, one is closed");
            continue;
        };
        connections.spawn(held(place, connection(Arc::clone(authority), stream, peer)));
    }
}

async fn connection(
    authority: Arc<Authority>,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<(), BoxError> {
    let root = authority.root.current().ok_or("there is no certificate yet")?;
    let stream = secured(&root.tls, stream).await?;
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        let authority = Arc::clone(&authority);
        async move { Ok::<_, Infallible>(answer(authority, request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    bounded(connection, |open| open.graceful_shutdown(), LAST_REQUESTS).await
}
