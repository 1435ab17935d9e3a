//! Route tables and requests, chosen by anything (`cargo fuzz run router`).
//!
//! The body, with what must hold, is `mesh_agent::http::fuzz::router`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::http::fuzz::router::run(data));
