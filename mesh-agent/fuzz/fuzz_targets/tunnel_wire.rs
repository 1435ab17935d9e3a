//! The tunnel's framing layer, fed with anything (`cargo fuzz run tunnel_wire`).
//!
//! The body, with what must hold, is `mesh_agent::tunnel::wire::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::tunnel::wire::fuzz::run(data));
