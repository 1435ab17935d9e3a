//! What happened: one record per request or connection, opened once, finished once (on drop at the
//! latest), feeding metrics, the access log and the list of open connections.
//!
//! Not here: an HTTP endpoint that serves the metrics (`admin`), tracing spans. Names, labels and
//! buckets are Istio's (istio-surface 3), so that its dashboards work.
//!
//! Invariant: [`Metrics`] is shared by all threads, a [`Telemetry`] belongs to one worker; a record
//! never blocks on anything but an uncontended lock.

mod connection;
mod ejections;
mod flags;
mod labels;
mod metrics;
mod request;

pub use connection::{ConnectionRecord, ConnectionStart, ConnectionView, Layer};
pub use ejections::{EjectionRow, register_ejections};
pub use flags::{ResponseFlag, ResponseFlags};
pub use labels::Reporter;
pub use metrics::{Metrics, Telemetry};
pub use request::{RequestRecord, RequestStart};
