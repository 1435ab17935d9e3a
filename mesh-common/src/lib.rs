//! What the kernel programs and the agent agree on.
#![no_std]
