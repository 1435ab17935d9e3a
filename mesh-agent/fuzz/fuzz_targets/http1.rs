//! The HTTP engine behind an HTTP/1 client that writes anything (`cargo fuzz run http1`).
//!
//! The body, with what must hold, is `mesh_agent::http::fuzz::http1`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::http::fuzz::http1::run(data));
