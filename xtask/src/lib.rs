//! The lab, and what sets up, builds, checks and measures this repository.
//!
//! The commands of `cargo xtask` are thin; what they do is here, so that tests can use it.

pub mod bench;
pub mod build;
pub mod corpus;
pub mod demo;
pub mod fuzz;
pub mod image;
pub mod kube;
pub mod lab;
pub mod manifest;
pub mod oci;
pub mod peers;
pub mod setup;
pub mod test;
pub mod tidy;
pub mod tool;
pub mod vm;
