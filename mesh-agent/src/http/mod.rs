//! The HTTP engine: requests of a captured connection, routed one by one at the client's node.
//!
//! `serve` reads requests from a connection, `outbound` alone holds the order of phases, `attempts`
//! the one of an attempt and the next; `mirror` sends copies; `client` and `pool` hold the connections
//! to endpoints, `request_body`, `replay` and `body` what streams over them. `plan`, `router`, `rewrite`,
//! `form`, `headers`, `redirect`, `reply`, `fault`, `cors`, `sticky`, `retry`, `strict` and `detect` are
//! pure leaves; `HTTP.md` says which rules of HTTP are kept, and where. Not here: how an endpoint is
//! reached (the [`Connect`] trait; the tunnel or plain TCP), which endpoint is chosen, limits and
//! ejections (`balance`).
//!
//! Invariants: a request loads `Live` once; bodies stream both ways and are never collected, but for
//! the bounded part that a further attempt may need; what one source workload's requests hold
//! (connections, streams) is never used for another's.
//!
//! Limits: header names are sent in lower case, `CONNECT` on an HTTP/2 connection (RFC 8441 too) is
//! refused. An HTTP/1 client that goes away is noticed at once, but not while bytes of it wait here that
//! nobody reads yet: of its next request, or of a body that its endpoint does not take.

mod attempts;
mod body;
mod client;
mod connect;
mod cors;
mod detect;
mod early;
mod engine;
mod error;
mod fault;
mod form;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod headers;
mod http2;
mod incoming;
mod mirror;
mod outbound;
mod plan;
mod pool;
mod rate;
mod redirect;
mod replay;
mod reply;
mod request_body;
mod retry;
mod rewrite;
mod router;
mod serve;
mod sticky;
mod strict;
mod upgrade;

#[cfg(test)]
mod tests;

pub use connect::{ByteStream, Connect, ConnectError, Prefixed};
pub use detect::{Detected, PREFIX_LIMIT, detect, detect_version};
pub use engine::{ConnectionFacts, Engine};
pub use http2::REQUEST_MEMORY;
pub use router::{Head, Route, VirtualHost, route, virtual_host};
pub use serve::{HttpVersion, ServeError, serve};
pub use sticky::hash_of_ip;
