//! A file of manifests, whatever is in it (`cargo fuzz run yaml_compile`).
//!
//! The body, with what must hold, is `mesh_agent::config::fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::config::fuzz::run(data));
