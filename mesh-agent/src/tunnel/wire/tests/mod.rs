//! Tests of the framing layer: two of our own ends, hostile input, and the `h2` crate as peer.

mod corpus;
mod hostile;
mod interop;
mod pair;
