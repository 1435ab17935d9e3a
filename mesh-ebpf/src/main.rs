//! Malha's kernel programs: they capture the TCP connections of enrolled pods.
//!
//! One file per hook; each entry reads (`ctx`), asks `mesh_common::redirect`, and acts (`maps`,
//! `ctx`). Nothing here knows policy or services. The invariant: sockets of pods that are not
//! enrolled are left exactly as they are. Only UAPI context structs are read, so that no CO-RE
//! relocation is needed.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod ctx;
mod getpeername;
mod getsockname;
mod maps;
mod probe;
mod sk_lookup;
mod sockops;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could come here.
    loop {}
}
