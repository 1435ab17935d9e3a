//! The agent's parts against real Kubernetes: an API server alone, or a cluster with nodes.
//!
//! Without the programs of Kubernetes (see `xtask::kube`) every test says `SKIPPED (privileged)` and
//! passes; CI counts such a line as a failure.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

mod authority;
mod away;
mod cluster;
mod config;
mod crds;
mod install;
mod nri;
mod support;
mod tutorial;
mod webhook;
mod wire;
