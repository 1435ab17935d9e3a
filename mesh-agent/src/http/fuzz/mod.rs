//! The bodies of the engine's fuzz targets; their corpora also run as plain tests.
//!
//! Each asserts what must hold for any input, not only that nothing panics.

pub mod detect;

#[cfg(test)]
mod tests;
