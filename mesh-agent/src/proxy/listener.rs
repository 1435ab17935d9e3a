//! Accepts captured connections of one pod and gives each to a worker.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::spread;
use super::worker::{LoadGuard, Worker};
use crate::capture::Acceptor;
use crate::tunnel::{LocalPod, Permit, reset_tcp};

/// First pause after an `accept` error such as too many open files; doubles up to the second one.
const BACK_OFF: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);

/// How long a listener is kept once it is to stop: its successor is in place, but a connection whose
/// first packet came before that still arrives here when its handshake is over.
const LINGER: Duration = Duration::from_millis(250);

/// Which of a pod's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The application connects to somewhere (15001).
    Outbound,
    /// Somebody outside the mesh connects to the application (15006).
    Plaintext,
    /// A tunnel from another node (15008).
    Tunnel,
}

/// A connection that waits to be served.
pub struct Accepted {
    pub(super) kind: Kind,
    pub(super) pod: Arc<LocalPod>,
    pub(super) stream: StdStream,
    pub(super) peer: SocketAddr,
    /// Held for the life of the connection.
    pub(super) _load: LoadGuard,
    /// Of the pod's quota.
    pub(super) _permit: Permit,
}

/// Accepts until `stop`, and then what is still on its way.
pub(super) async fn accept(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    kind: Kind,
    socket: StdListener,
    stop: CancellationToken,
) {
    let listener = match Acceptor::new(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(pod = %pod.name, ?kind, %error, "listener is unusable");
            return;
        }
    };
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        biased;
        () = stopped => {}
        () = accept_all(&worker, &pod, kind, &listener) => {}
    }
    for (stream, peer) in listener.waiting() {
        give(&worker, &pod, kind, stream, peer);
    }
}

async fn accept_all(worker: &Rc<Worker>, pod: &Arc<LocalPod>, kind: Kind, listener: &Acceptor) {
    let mut back_off = BackOff::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                back_off = BackOff::default();
                give(worker, pod, kind, stream, peer);
            }
            Err(error) if gone_before_accept(&error) => {}
            Err(error) => {
                tracing::warn!(pod = %pod.name, ?kind, %error, "accept failed, pausing");
                tokio::time::sleep(back_off.next()).await;
            }
        }
    }
}

/// Pauses between attempts that fail in a row.
struct BackOff(Duration);

impl Default for BackOff {
    fn default() -> Self {
        Self(BACK_OFF)
    }
}

impl BackOff {
    fn next(&mut self) -> Duration {
        let next = (self.0 * 2).min(BACK_OFF_MAX);
        std::mem::replace(&mut self.0, next)
    }
}

/// accept(2): errors of the connection, not of the listener.
fn gone_before_accept(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

fn give(worker: &Rc<Worker>, pod: &Arc<LocalPod>, kind: Kind, stream: StdStream, peer: SocketAddr) {
    let permit = match kind {
        Kind::Outbound => pod.quota.connection(),
        Kind::Plaintext | Kind::Tunnel => pod.quota.connection_from(peer.ip().to_canonical()),
    };
    let Some(permit) = permit else { return reset_tcp(stream) };
    let handles = worker.handles();
    let loads = handles.iter().map(|handle| handle.load.load(Ordering::Relaxed));
    let chosen = match kind {
        Kind::Tunnel => spread::least(loads, worker.index),
        Kind::Outbound | Kind::Plaintext => spread::choose(loads, worker.index),
    };
    let Some(handle) = handles.get(chosen) else { return };
    handle.accepted.fetch_add(1, Ordering::Relaxed);
    let accepted = Accepted {
        kind,
        pod: pod.clone(),
        stream,
        peer,
        _load: LoadGuard::new(&handle.load),
        _permit: permit,
    };
    if chosen == worker.index {
        worker.serve(accepted);
    } else if let Some(accepted) = handle.adopt(accepted) {
        worker.serve(accepted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second() {
        let mut back_off = BackOff::default();
        let pauses: Vec<u128> = (0..9).map(|_| back_off.next().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
