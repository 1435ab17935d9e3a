//! Whole meshes in the lab, one file per capability, with the shipped binary.
//!
//! Needs root and eBPF. Without them every test says `SKIPPED (privileged)` and passes; CI counts
//! such a line as a failure.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod applications;
mod bad_wire;
mod bookinfo;
mod breaker;
mod cascade;
mod config_errors;
mod cors;
mod direct;
mod enrolment;
mod envoy;
mod external;
mod faults;
mod greedy;
mod hostile_http;
mod hostile_peers;
mod http2;
mod http_protocols;
mod identity;
mod l4_routes;
mod limits;
mod locality;
mod memory;
mod mirror;
mod origination;
mod outside;
mod peer_authentication;
mod quota;
mod ratelimit;
mod reach;
mod restart;
mod retries;
mod rollout;
mod sockets;
mod stalled;
mod sticky;
mod streams;
mod support;
mod teardown;
mod traffic;
mod tutorial;
mod unreachable;
mod weights;
