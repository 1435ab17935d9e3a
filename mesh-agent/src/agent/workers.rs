//! The threads of the data path.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Builder, LocalOptions};

use crate::proxy::{Command, Shared, Worker, WorkerHandle};

/// Running workers; [`Workers::stop`] ends them.
pub(super) struct Workers {
    handles: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, each with its own runtime.
    pub(super) fn start(shared: &Arc<Shared>, count: usize) -> anyhow::Result<Self> {
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let (handle, commands) = WorkerHandle::channel();
            handles.push(handle);
            let shared = shared.clone();
            let runtime = move || {
                let built =
                    Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                match built {
                    Ok(runtime) => runtime.block_on(Worker::run(shared, index, commands)),
                    Err(error) => tracing::error!(index, %error, "worker cannot start"),
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(runtime)
                .context("cannot start a worker thread")?;
            threads.push(thread);
        }
        // Set before any listener is handed out, so every worker sees all of them.
        let _ = shared.workers.set(handles.clone());
        Ok(Self { handles, threads })
    }

    /// The worker that serves a pod's listeners.
    pub(super) fn home(&self, uid: &str) -> Option<&WorkerHandle> {
        self.handles.get(crate::proxy::home(uid, self.handles.len()))
    }

    /// Asks all workers to finish what is open within `limit` and waits for them.
    pub(super) fn stop(self, limit: Duration) {
        for handle in &self.handles {
            handle.send(Command::Drain(limit));
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}
