//! Hands the kernel programs to `include_bytes_aligned!`.
//!
//! It does not build them: another compiler does, for another target, through `cargo xtask build`.
//! The object always lies at the same place, whatever `CARGO_TARGET_DIR` says, so that every
//! build of the agent finds the one that was built last.

use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets the folder"));
    let workspace = manifest.parent().expect("the crate is a member of the workspace");
    let object = workspace.join("target/ebpf/bpfel-unknown-none/release/mesh-ebpf");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(error) = std::fs::copy(&object, out.join("mesh-ebpf")) {
        panic!(
            "the kernel programs are not built ({}: {error}): run `cargo xtask build`, \
             which builds them and then this crate",
            object.display()
        );
    }
}
