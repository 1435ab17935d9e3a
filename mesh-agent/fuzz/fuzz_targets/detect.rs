//! Detection of what a client speaks, fed with anything (`cargo fuzz run detect`).
//!
//! The body, with what must hold, is `mesh_agent::http::fuzz::detect`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::http::fuzz::detect::run(data));
