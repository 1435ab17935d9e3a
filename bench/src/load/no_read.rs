//! A client that asks and does not read: what a slow or stuck application does to its neighbours.
//!
//! Two lines of JSON: when all answers have begun, and when they have been held long enough.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::client::{Link, Target};
use super::{NoReadArgs, print, seconds};

#[derive(Serialize)]
struct Step {
    state: &'static str,
    /// Answers whose head has come and whose body is left unread.
    unread: usize,
    /// Requests whose head did not come in time.
    failed: usize,
    connections: u64,
}

pub(super) async fn run(args: NoReadArgs) -> anyhow::Result<()> {
    let target = Target::new(&args.target)?;
    let shared: Vec<Link> = (0..args.connections.max(1)).map(|_| target.link()).collect();
    let mut links = Vec::new();
    let mut answers = Vec::new();
    let mut connections = 0;
    let limit = Duration::from_millis(args.timeout_ms);
    for shared in shared.iter().cycle().take(args.requests) {
        let mut link = shared.share();
        let request = target.request(Method::GET, Bytes::new());
        let sent = timeout(limit, link.send(&target, || request.clone(), &mut connections)).await;
        if let Ok(Ok(answer)) = sent {
            answers.push(answer);
            links.push(link);
        }
    }
    let (unread, failed) = (answers.len(), args.requests - answers.len());
    print(&Step { state: "holding", unread, failed, connections })?;
    sleep(seconds(args.hold)?).await;
    print(&Step { state: "done", unread, failed, connections })
}
