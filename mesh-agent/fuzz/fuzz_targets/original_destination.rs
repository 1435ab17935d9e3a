//! The kernel programs' records, read from anything (`cargo fuzz run original_destination`).
//!
//! The body, with what must hold, is `mesh_agent::capture::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::capture::fuzz::run(data));
