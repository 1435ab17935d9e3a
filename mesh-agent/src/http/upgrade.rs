//! After an upgrade (WebSocket and others): two byte streams, copied until both directions ended.
//!
//! Invariant: a half-close passes through; the record ends with the last byte.

use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::oneshot;

use super::body::Held;
use super::connect::{ByteStream, Prefixed};
use super::pool::Upgraded;
use crate::telemetry::ResponseFlag;

/// Copy buffer per direction, in bytes.
const BUFFER: usize = 16 * 1024;

/// What the response of an upgrade leaves to the connection that it came on.
pub(super) struct Handover {
    pub(super) upstream: oneshot::Receiver<Upgraded>,
    pub(super) held: Held,
}

/// Copies until both sides are done.
pub(super) async fn copy<S: ByteStream>(mut client: Prefixed<S>, handover: Handover) {
    let Handover { upstream, mut held } = handover;
    let Ok(upgraded) = upstream.await else {
        held.record.flag(ResponseFlag::UpstreamClosed);
        held.record.finish();
        return;
    };
    let mut upstream = Prefixed::new(upgraded.read, upgraded.io);
    let copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
    match copied {
        Ok((received, sent)) => {
            held.record.received(received);
            held.record.sent(sent);
        }
        Err(error) => tracing::debug!(%error, "upgraded connection was reset"),
    }
    held.record.finish();
}
