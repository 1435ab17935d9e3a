//! One worker's engine: what all of its connections share.
//!
//! Invariant: everything in here stays on the worker's thread; the only things shared with other
//! workers are the snapshot, the upstreams' numbers and the metrics.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::connect::Connect;
use super::mirror::Count;
use super::pool::SWEEP;
use crate::balance::{Draws, LiveHandle};
use crate::model::Workload;
use crate::telemetry::Telemetry;
use crate::tunnel::Quota;

/// The facts of a captured connection that hold for all of its requests.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The client's pod.
    pub source: Arc<Workload>,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that the client dialled.
    pub destination: SocketAddr,
    /// What the client's pod may hold.
    pub quota: Arc<Quota>,
}

/// The HTTP engine of one worker; clones share it.
pub struct Engine<C: Connect> {
    pub(super) shared: Rc<Inner<C>>,
}

pub(super) struct Inner<C: Connect> {
    pub(super) live: LiveHandle,
    pub(super) telemetry: Telemetry,
    pub(super) client: Client<C>,
    pub(super) draws: Draws,
    pub(super) tasks: TaskTracker,
    /// Copies for mirrors under way, by the source's UID.
    copies: RefCell<FxHashMap<Arc<str>, Count>>,
}

impl<C: Connect> Inner<C> {
    /// The count of a source's copies.
    pub(super) fn copies(&self, source: &Arc<str>) -> Count {
        self.copies.borrow_mut().entry(Arc::clone(source)).or_default().clone()
    }
}

impl<C: Connect> Engine<C> {
    /// An engine that reaches endpoints by `connect`. The tasks of its connections are spawned on
    /// `tasks`, on the current `LocalSet`; none is started here.
    pub fn new(
        live: LiveHandle,
        telemetry: Telemetry,
        connect: C,
        draws: Draws,
        tasks: TaskTracker,
    ) -> Self {
        let client = Client::new(connect, tasks.clone());
        let copies = RefCell::default();
        Self { shared: Rc::new(Inner { live, telemetry, client, draws, tasks, copies }) }
    }

    /// Closes pooled connections that idle too long, for ever. The owner of the worker runs it once.
    pub async fn maintain(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            let now = ticks.tick().await;
            self.shared.client.pool().sweep(now);
            self.shared.copies.borrow_mut().retain(|_, count| count.is_used());
        }
    }
}

impl<C: Connect> Clone for Engine<C> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}
