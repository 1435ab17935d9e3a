//! Wiring: builds every part, owns every task and thread, knows the order of start and drain.

mod authority;
mod cleanup;
mod direct;
mod enroll;
mod held;
mod limits;
mod node;
mod older;
mod options;
mod probes;
mod sandboxes;
mod state;
mod workers;

pub use authority::run as authority;
pub use cleanup::run as cleanup;
pub use node::run as node;
pub use options::{
    AuthorityOptions, CaOptions, CleanupOptions, LogFormat, LogOptions, NodeOptions, Options, Role,
};
