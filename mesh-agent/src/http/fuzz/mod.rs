//! The bodies of the engine's fuzz targets; their corpora also run as plain tests.
//!
//! Each asserts what must hold for any input, not only that nothing panics.

mod bytes;
pub mod detect;
mod endpoint;
pub mod http1;
mod message;
mod objects;
mod reference;
pub mod router;
mod table;

#[cfg(test)]
mod tests;
