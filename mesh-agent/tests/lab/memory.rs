//! A thousand slow uploads at once, with retries and a mirror that hangs: memory stays within what a
//! request may take, and all come through.

use crate::support;
use crate::traffic;

/// Uploads at one moment.
const STREAMS: u64 = 1_000;

/// What a request may take (`LIMITS.md`), and as much again for its copy.
const EACH_KIB: u64 = 2 * 640;

/// The server begins to read after so many milliseconds.
const SLOW: &[&str] = &["--default", "delay-ms=5000"];

const RULE: &str = "
route: [{ destination: { host: web } }]
retries: { attempts: 2, retryOn: 5xx }
mirror: { host: copies }
";

#[test]
fn a_thousand_slow_uploads_fit() {
    let servers = [
        traffic::service("web"),
        traffic::server("web", "node2", ("web", "one"), SLOW),
        traffic::service("copies"),
        traffic::server("copies", "node2", ("copies", "two"), &["--default", "delay-ms=600000"]),
    ];
    let Some(lab) = traffic::shop(2, &servers) else { return };
    let client = lab.pod("shop/client").unwrap();
    traffic::apply(&lab, &traffic::route("web", RULE));
    let idle: Vec<u64> = lab.nodes().iter().map(|node| lab.agent_memory_kib(node)).collect();
    let (count, size) = (STREAMS.to_string(), (2_u64 << 20).to_string());
    let load = ["malha-load", "http", "-n", &count, "--concurrency", &count];
    let load = [&load[..], &["--body-size", &size, "--timeout-ms", "120000", "http://web/"]];
    let mut running = client.spawn(&load.concat()).expect("the load starts");
    let mut most = idle.clone();
    support::eventually("all have ended", || {
        for (most, node) in most.iter_mut().zip(lab.nodes()) {
            *most = (*most).max(lab.agent_memory_kib(&node));
        }
        running.try_wait().expect("the load runs").map(drop)
    });
    let output = running.wait_with_output().expect("the load ends");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["statuses"]["200"], STREAMS, "{report}");
    println!("KiB at each node: {idle:?} idle, {most:?} at most");
    for (idle, most) in idle.iter().zip(&most) {
        assert!(most - idle < STREAMS * EACH_KIB, "{idle} KiB idle, {most} KiB at most");
    }
}
