//! Whole meshes in the lab, one file per capability, with the shipped binary.
//!
//! Needs root and eBPF. Without them every test says `SKIPPED (privileged)` and passes; CI counts
//! such a line as a failure.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod applications;
mod bad_wire;
mod config_errors;
mod direct;
mod enrolment;
mod envoy;
mod greedy;
mod hostile_http;
mod hostile_peers;
mod http2;
mod http_protocols;
mod identity;
mod outside;
mod peer_authentication;
mod quota;
mod reach;
mod restart;
mod rollout;
mod sockets;
mod stalled;
mod streams;
mod support;
mod teardown;
mod unreachable;
mod weights;
