//! Every limit of the framing layer, each with what happens at it.
//!
//! The `h2` crate has the same kinds of limits; where its number is known to serve, it is used.

/// Streams that may be open on one connection. Announced; a peer that opens more gets
/// `REFUSED_STREAM`, and our own pool opens another connection when this or the peer's number is
/// reached.
pub const MAX_STREAMS: u32 = 256;

/// Streams that we open before the peer's SETTINGS have said how many it takes.
pub(super) const STREAMS_BEFORE_SETTINGS: u32 = 100;

/// Octets of one stream that the peer may send before the reader here has read anything. A peer
/// that sends more ends the stream with `FLOW_CONTROL_ERROR`. Not less than the default: a client
/// may send that much before it has seen our SETTINGS (RFC 9113 section 6.9.2).
pub const STREAM_WINDOW: u32 = DEFAULT_WINDOW;

/// The window of a stream whose reader reads, as long as its pod's memory has room; without, it
/// stays at [`STREAM_WINDOW`] and is slower.
pub const GROWN_WINDOW: u32 = 256 * 1024;

/// The connection's window: as large as it can be, and given back on receipt, so that only a
/// stream's own window ever holds a stream. A peer that overruns it loses the connection.
pub(super) const CONNECTION_WINDOW: u32 = MAX_WINDOW;

/// Received octets after which the connection's window is given back.
pub(super) const CONNECTION_CREDIT: u32 = 1024 * 1024;

/// The largest window there is (RFC 9113 section 6.9.1); to exceed it is `FLOW_CONTROL_ERROR`.
pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What RFC 9113 section 6.9.2 lets either side send before any SETTINGS.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// Octets of one stream that wait here to be sent. At it, writing is pending; a pending writer is
/// woken when half of it has left: not for every frame.
pub const SEND_BUFFER: usize = 128 * 1024;

/// The same while the pod's memory has no room for more.
pub const SMALL_SEND_BUFFER: usize = 16 * 1024;

/// What a stream that moves octets sets aside of its pod's memory beyond the little that each may
/// hold.
pub(super) const GROWTH: usize =
    (GROWN_WINDOW - STREAM_WINDOW) as usize + SEND_BUFFER - SMALL_SEND_BUFFER;

/// The longest frame that a peer may send: HTTP/2's default; longer is `FRAME_SIZE_ERROR`.
pub(super) const MAX_FRAME: u32 = 16_384;

/// The payload of a DATA frame that we send: with the frame's head exactly one TLS record.
pub const MAX_DATA: usize = 16_375;

/// Octets of one header block as sent, over all its frames; more is `ENHANCE_YOUR_CALM`.
pub(super) const MAX_BLOCK: usize = 16 * 1024;

/// CONTINUATION frames of one block, empty ones too; more is `ENHANCE_YOUR_CALM`.
pub(super) const MAX_CONTINUATIONS: u32 = 16;

/// Octets of a header list, decoded, as RFC 9113 section 6.5.2 counts them. Announced; above it
/// the stream ends with `PROTOCOL_ERROR`.
pub(super) const MAX_HEADER_LIST: usize = 16 * 1024;

/// Frames that carry nothing (SETTINGS, PING, PRIORITY, empty DATA, unknown kinds, frames for
/// closed streams) that a peer may send at once; beyond it `ENHANCE_YOUR_CALM`.
pub(super) const IDLE_FRAMES: u32 = 4_000;

/// How many of those come back per second.
pub(super) const IDLE_FRAMES_PER_SECOND: u32 = 1_000;

/// Streams that a peer may reset before it was answered, make us reset by breaking a rule on them,
/// or open above the announced number, at once ("rapid reset", CVE-2023-44487, and "made you
/// reset", CVE-2025-8671); beyond it `ENHANCE_YOUR_CALM`.
pub(super) const EARLY_RESETS: u32 = 2_000;

/// How many of those come back per second.
pub(super) const EARLY_RESETS_PER_SECOND: u32 = 500;

/// Octets of replies that wait to be sent; above it the driver reads no more from the socket
/// until they have left, so that a peer that only asks cannot fill our memory.
pub const MAX_CONTROL: usize = 64 * 1024;

/// A tunnel's authority, `ip:port`; a longer one is answered 400.
pub(super) const MAX_AUTHORITY: usize = 255;

/// `baggage` and `traceparent`: longer values are dropped, as W3C Baggage allows (8192 octets).
pub(super) const MAX_CONTEXT: usize = 8192;
