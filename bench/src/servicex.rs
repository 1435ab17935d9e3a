//! `malha-servicex`: the server of a well-known tutorial's circuit breaker, as its image
//! `wesleywillians/circuit-breaker-example-go` behaves. It answers `OK`; told to fail, it takes 0 to
//! 4 whole seconds and then answers 504 without a body.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::{TcpListener, TcpStream};

use crate::wait;

/// Seconds that a failure may take: 0, 1, .. and one less than this.
const SECONDS: u8 = 5;

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;

/// Command line of `malha-servicex`.
#[derive(Clone, Debug, Parser)]
#[command(name = "malha-servicex", version, about = "Answers OK, or is told to fail slowly")]
pub struct Settings {
    /// Where to listen
    #[arg(long, default_value = "[::]:8000")]
    pub listen: SocketAddr,
    /// `yes`: fail
    #[arg(long, env = "error", default_value = "")]
    pub error: String,
}

/// Serves for ever.
///
/// # Errors
/// The port cannot be bound.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.listen).await?;
    let fails = settings.error == "yes";
    crate::accept(listener, MAX_CONNECTIONS, move |stream, _| serve(stream, fails)).await
}

async fn serve(stream: TcpStream, fails: bool) {
    // Small answers must not wait for the client's acknowledgements.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| respond(request, fails));
    // A client that breaks its connection is that client's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(_: Request<Incoming>, fails: bool) -> Result<Response<Full<Bytes>>, Infallible> {
    if !fails {
        return Ok(Response::new(Full::from("OK")));
    }
    wait(pause()).await;
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    Ok(response)
}

/// A random number of seconds.
fn pause() -> Duration {
    let mut draw = [0];
    // Without randomness it fails at once, which it may.
    let _ = SystemRandom::new().fill(&mut draw);
    let [draw] = draw;
    Duration::from_secs(u64::from(draw % SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_takes_up_to_four_seconds() {
        let seen: std::collections::BTreeSet<u64> = (0..1000).map(|_| pause().as_secs()).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
