//! Wiring: builds every part, owns every task and thread, knows the order of start and drain.

mod direct;
mod enroll;
mod limits;
mod node;
mod older;
mod options;
mod state;
mod workers;

pub use node::run as node;
pub use options::{CaOptions, CleanupOptions, LogFormat, NodeOptions, Options, Role};
