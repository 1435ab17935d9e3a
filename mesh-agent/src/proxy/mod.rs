//! Captured connections: accept, find out what they are, and serve them.
//!
//! Knows sockets and workers; what a request means is `http`'s, how a stream reaches its endpoint
//! is `tunnel`'s. Invariant: a connection and its upstream stay on the worker they were given to.

mod connect;
mod copy;
mod first_bytes;
mod flows;
mod inbound;
mod listener;
mod outbound;
mod sni;
mod spread;
mod target;
mod worker;

pub use spread::home;
pub use worker::{Command, Shared, Worker, WorkerHandle};
