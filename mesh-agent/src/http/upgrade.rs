//! Leaving HTTP (WebSocket, `CONNECT` and others): who may, and the two byte streams that are left,
//! copied until both directions ended.
//!
//! Invariant: nobody leaves who did not ask to, nor to another version of HTTP; a half-close passes
//! through; the record ends with the last byte. Source: RFC 9110 §7.8 and §9.3.6.

use http::header::UPGRADE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::oneshot;

use super::body::Held;
use super::connect::{ByteStream, Prefixed};
use super::headers;
use super::pool::{Place, Upgraded};
use super::serve::HttpVersion;
use crate::telemetry::ResponseFlag;

/// Copy buffer per direction, in bytes.
const BUFFER: usize = 16 * 1024;

/// Whether a request means to leave HTTP, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    No,
    /// `Upgrade` to one of these protocols, answered by 101.
    Upgrade(HeaderValue),
    /// `CONNECT` to a forward proxy outside the mesh, answered by 2xx.
    Connect,
}

/// What the response of an upgrade leaves to the connection that it came on.
pub(super) struct Handover {
    pub(super) upstream: oneshot::Receiver<Upgraded>,
    pub(super) held: Held,
    /// The connection's place among those of a limited upstream: it stays one.
    pub(super) _place: Option<Place>,
}

// === impl Switch ===

impl Switch {
    /// HTTP/1.0 has no upgrade; one with content would need it to be read first (RFC 9110 §7.8).
    pub(super) fn of(version: HttpVersion, parts: &Parts, content: bool) -> Self {
        match version {
            HttpVersion::Http2 => Self::No,
            HttpVersion::Http1 if parts.method == Method::CONNECT => Self::Connect,
            HttpVersion::Http1 if content || parts.version == Version::HTTP_10 => Self::No,
            HttpVersion::Http1 if !headers::asks_upgrade(&parts.headers) => Self::No,
            HttpVersion::Http1 => {
                parts.headers.get(UPGRADE).cloned().map_or(Self::No, Self::Upgrade)
            }
        }
    }

    /// Whether an answer means that bytes follow.
    pub(super) fn happens(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        match self {
            Self::No => false,
            Self::Upgrade(asked) => {
                status == StatusCode::SWITCHING_PROTOCOLS && headers::switches_to(asked, headers)
            }
            Self::Connect => status.is_success(),
        }
    }
}

/// Copies until both sides are done.
pub(super) async fn copy<S: ByteStream>(mut client: Prefixed<S>, handover: Handover) {
    let Handover { upstream, mut held, .. } = handover;
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
