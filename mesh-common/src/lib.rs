//! What the kernel programs and the agent agree on: map layouts, ports, and the capture decision.
//!
//! Pure and `no_std`: no map, no socket, no clock. `mesh-ebpf` links it as it is; the agent links
//! it with the feature `user`. The invariant: both sides take every layout from here, so that a
//! change of one is a change of the other.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod counter;
pub mod flow;
pub mod maps;
pub mod ports;
pub mod redirect;
