//! Tools that make and answer traffic: the parts of `malha-echo`, `malha-load` and
//! `malha-servicex`.
//!
//! They know nothing of the mesh: they must see what an ordinary application sees.
//! Scenarios and results: `RESULTS.md`.

pub mod echo;
pub mod load;
pub mod servicex;

mod digest;
mod websocket;

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Waits; not at all if `duration` is zero, where Tokio's timer would wait for its next tick.
async fn wait(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

/// Serves every connection to `listener`, for ever, at most `most` at once.
async fn accept<F>(
    listener: TcpListener,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < most => {
                // A client that gave up while it was queued is no reason to stop.
                let Ok((stream, remote)) = accepted else { continue };
                connections.spawn(serve(stream, remote));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Runs a tool to its end on `threads` threads; an error becomes one line and a failed exit.
pub fn main(threads: usize, tool: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(tool),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
