//! Issue 8, lines 2 and 7: weights over many requests, with two and with four workers, changes
//! without a failed request, and a hot pod's connections on every worker.

use std::time::Duration;

use xtask::lab::{Lab, Pod};

use crate::support::{self, SHOP, SHOP_PODS};

/// Ninety per cent to the far pod.
fn split(near: u32, far: u32) -> String {
    format!(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: echo, namespace: shop }}
spec:
  hosts: [echo]
  http:
  - route:
    - {{ destination: {{ host: echo, subset: near }}, weight: {near} }}
    - {{ destination: {{ host: echo, subset: far }}, weight: {far} }}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: echo, namespace: shop }}
spec:
  host: echo
  subsets:
  - {{ name: near, labels: {{ version: near }} }}
  - {{ name: far, labels: {{ version: far }} }}
"#
    )
}

/// How many requests each pod answered; all must succeed.
fn load(client: &Pod, requests: u32, extra: &[&str]) -> (u64, u64) {
    let count = requests.to_string();
    let mut command = vec![
        "malha-load",
        "http",
        "--requests",
        &count,
        "--concurrency",
        "16",
        "--count-header",
        "x-echo-pod",
    ];
    command.extend_from_slice(extra);
    command.push("http://echo.shop/");
    let report = support::json(client, &command);
    assert_eq!(report["statuses"]["200"], u64::from(requests), "{report}");
    (answered_by(&report, "near"), answered_by(&report, "far"))
}

/// Requests that a pod answered, by its header.
fn answered_by(report: &serde_json::Value, pod: &str) -> u64 {
    let rows = report["headers"].as_array().expect("counts by header");
    rows.iter().filter(|row| row["value"] == pod).filter_map(|row| row["count"].as_u64()).sum()
}

/// Five standard deviations of a binomial with this share: a fair split misses it once in 1.7
/// million runs.
fn assert_share(count: u64, total: u64, share: f64) {
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let (count, total) = (count as f64, total as f64);
    let bound = 5.0 * (total * share * (1.0 - share)).sqrt();
    assert!((count - total * share).abs() <= bound, "{count} of {total}, expected {share}");
}

fn wait_for_share(client: &Pod, nonzero: bool) {
    support::eventually("the rule is in force", || {
        let (near, _) = load(client, 50, &[]);
        ((near < 15) == nonzero).then_some(())
    });
}

fn ninety_ten(workers: usize) -> Option<(Lab, Pod)> {
    let lab = support::lab(workers)?;
    support::apply(&lab, SHOP, SHOP_PODS);
    lab.apply(&split(10, 90)).unwrap();
    let client = lab.pod("shop/client").unwrap();
    wait_for_share(&client, true);
    Some((lab, client))
}

#[test]
fn ninety_ten_holds_over_ten_thousand_requests() {
    let Some((_lab, client)) = ninety_ten(2) else { return };
    let (near, far) = load(&client, 10_000, &[]);
    assert_eq!(near + far, 10_000);
    assert_share(near, 10_000, 0.1);
    let (near, far) = load(&client, 10_000, &["--new-connections"]);
    assert_eq!(near + far, 10_000);
    assert_share(near, 10_000, 0.1);
}

#[test]
fn a_change_of_weights_fails_no_request() {
    let Some((lab, client)) = ninety_ten(2) else { return };
    let running = client
        .spawn(&[
            "malha-load",
            "http",
            "--duration",
            "6",
            "--rate",
            "400",
            "--concurrency",
            "8",
            "http://echo.shop/",
        ])
        .unwrap();
    for (near, far) in [(90, 10), (0, 100), (50, 50), (100, 0)] {
        lab.apply(&split(near, far)).unwrap();
        #[expect(clippy::disallowed_methods, reason = "lets traffic flow under each rule")]
        std::thread::sleep(Duration::from_secs(1));
    }
    let output = running.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let statuses = report["statuses"].as_object().unwrap();
    assert_eq!(statuses.keys().collect::<Vec<_>>(), ["200"], "{report}");
    assert_eq!(report["errors"].as_object().map_or(0, serde_json::Map::len), 0, "{report}");
    let (near, far) = load(&client, 200, &[]);
    assert_eq!((near, far), (200, 0), "the last rule holds for every request after it");
}

#[test]
fn four_workers_and_two_clients_behave_as_one() {
    let Some((lab, client)) = ninety_ten(4) else { return };
    support::apply(&lab, &support::client("client2", "node1"), &["shop/client2"]);
    let client2 = lab.pod("shop/client2").unwrap();
    let other = client2
        .spawn(&[
            "malha-load",
            "http",
            "--requests",
            "5000",
            "--concurrency",
            "64",
            "--count-header",
            "x-echo-pod",
            "http://echo.shop/",
        ])
        .unwrap();
    let (near, far) = load(&client, 5_000, &[]);
    assert_eq!(near + far, 5_000);
    assert_share(near, 5_000, 0.1);
    let output = other.wait_with_output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["statuses"]["200"], 5_000, "{report}");
    assert_share(answered_by(&report, "near"), 5_000, 0.1);
    // 64 connections of one pod were on more than its home worker.
    let served = served(&lab, "node1");
    assert!(served.iter().all(|accepted| *accepted >= 5), "{served:?}");
}

#[test]
fn a_hot_pod_is_on_every_worker_at_both_ends() {
    let Some(lab) = support::lab(4) else { return };
    support::apply(&lab, SHOP, SHOP_PODS);
    let client = lab.pod("shop/client").unwrap();
    let load = ["malha-load", "http", "--requests", "5000", "--concurrency", "64"];
    let report = support::json(&client, &[&load[..], &["http://far.shop/"]].concat());
    assert_eq!(report["statuses"]["200"], 5_000, "{report}");
    let near = served(&lab, "node1");
    assert!(near.iter().all(|accepted| *accepted >= 5), "{near:?}");
    // A tunnel for each worker of the client's agent: few, but each with many connections inside.
    let far = served(&lab, "node2");
    assert!(far.iter().all(|accepted| *accepted >= 1), "{far:?}");
}

/// Connections that each of a node's four workers has served.
fn served(lab: &Lab, node: &str) -> Vec<u64> {
    let status: serde_json::Value =
        serde_json::from_str(&lab.meshctl(node, &["-o", "json", "status"]).unwrap()).unwrap();
    let counter = |worker| &status["capture"]["counters"][format!("worker_{worker}_accepted")];
    (0..4).map(|worker| counter(worker).as_u64().expect("a counter")).collect()
}
