//! Issue 8, line 8: sixty clients that do not read, on one pair of pods: another request on the same
//! pair is as fast as before, and memory stays bounded.

use std::time::Duration;

use xtask::lab::Pod;

use crate::support::{self, SHOP, SHOP_PODS};

/// Resident memory that sixty stalled streams may cost an agent: each holds at most a stream window
/// on either side of the tunnel and what the copies keep.
const MEMORY_BOUND_KIB: u64 = 160 * 1024;

/// Opens sixty connections whose answers (64 MiB each) nobody reads, and keeps them until its
/// standard input closes.
const STALLED: &str = r#"
import socket, sys
held = []
for i in range(60):
    s = socket.create_connection(("far.shop", int(sys.argv[1])), 20)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    s.sendall(b"GET /?size=67108864 HTTP/1.1\r\nhost: far.shop\r\n\r\n")
    s.recv(1)
    held.append(s)
print("held", flush=True)
sys.stdin.readline()
"#;

/// Median time of a small request, in milliseconds.
fn median(client: &Pod) -> f64 {
    let report = support::json(
        client,
        &["malha-load", "http", "--requests", "200", "--concurrency", "1", "http://far.shop/"],
    );
    assert_eq!(report["statuses"]["200"], 200, "{report}");
    report["latency_us"]["p50"].as_f64().expect("a median") / 1000.0
}

#[test]
fn sixty_clients_that_do_not_read_hold_up_nobody() {
    let Some(lab) = support::lab(2) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let before = median(&client);
    let memory: Vec<u64> = lab.nodes().iter().map(|node| lab.agent_memory_kib(node)).collect();
    let mut stalled = client.converse(&["python3", "-c", STALLED, "80"]).unwrap();
    assert_eq!(stalled.line().unwrap(), "held");
    #[expect(clippy::disallowed_methods, reason = "lets every buffer on the way fill up")]
    std::thread::sleep(Duration::from_secs(2));
    let beside = median(&client);
    // A blocked neighbour would wait for ever; the allowance is for a busy machine.
    assert!(beside < before * 10.0 + 20.0, "{before} ms before, {beside} ms beside");
    for (node, idle) in lab.nodes().iter().zip(memory) {
        let now = lab.agent_memory_kib(node);
        assert!(now < idle + MEMORY_BOUND_KIB, "{node}: {idle} KiB idle, {now} KiB now");
    }
}
