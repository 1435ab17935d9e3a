//! Mirrors: copies of requests go to another server, whole; whatever becomes of them, the client's
//! own request is as without them.

use std::time::Duration;

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, assert_share, curl, statuses};

/// Of a hanging mirror: it takes connections and reads no body.
const HANGS: &[&str] = &["--default", "delay-ms=600000"];

/// A server, and one for copies with these arguments.
fn two(copies: &[&str]) -> Option<(Lab, Pod)> {
    let servers = [
        traffic::service("web"),
        traffic::server("web", "node1", ("web", "one"), &[]),
        traffic::service("copies"),
        traffic::server("copies", "node2", ("copies", "two"), copies),
    ];
    let lab = traffic::shop(2, &servers)?;
    let client = lab.pod("shop/client").unwrap();
    Some((lab, client))
}

fn mirrored(mirror: &str) -> String {
    traffic::route("web", &format!("route: [{{ destination: {{ host: web }} }}]\n{mirror}"))
}

/// Waits until the copies' server has seen so many requests.
fn copies(lab: &Lab, count: usize) -> Vec<Value> {
    let pod = lab.pod("shop/copies").unwrap();
    support::eventually(&format!("{count} copies"), || {
        let seen = traffic::logged(&pod);
        assert!(seen.len() <= count, "{} copies, not {count}", seen.len());
        (seen.len() == count).then_some(seen)
    })
}

#[test]
fn copies_are_like_their_requests() {
    let Some((lab, client)) = two(&["--default", "status=500"]) else { return };
    traffic::apply(&lab, &mirrored("mirror: { host: copies }"));
    let load = ["-n", "50", "--body-size", "3000", "-H", "x-mine: yes"];
    let load = [&load[..], &["http://web/a/b?c=d"]].concat();
    assert_eq!(statuses(&traffic::lines(&client, &load))[&200], 50, "whatever the copy's answer");
    let originals = traffic::logged(&lab.pod("shop/web").unwrap());
    assert_eq!(originals.len(), 50);
    let seen = copies(&lab, 50);
    for copy in &seen {
        for field in ["method", "path", "query", "body_length", "body_sha256"] {
            assert_eq!(copy[field], originals[0][field], "{field}");
        }
        assert_eq!(copy["headers"]["x-mine"][0], "yes");
        assert_eq!(copy["headers"]["host"], originals[0]["headers"]["host"]);
    }
    // Get a copy of a request without a body too.
    assert_eq!(curl(&client, &["http://web/"]).status, 200);
    assert_eq!(copies(&lab, 51)[50]["method"], "GET");
}

#[test]
fn a_share_is_copied() {
    let Some((lab, client)) = two(&[]) else { return };
    let ask = || {
        let lines = traffic::lines(&client, &["-n", "1000", "--concurrency", "8", "http://web/"]);
        assert_eq!(statuses(&lines)[&200], 1000);
    };
    let none = "mirror: { host: copies }\nmirrorPercentage: { value: 0 }";
    traffic::apply(&lab, &mirrored(none));
    ask();
    let half = "mirrors: [{ destination: { host: copies }, percentage: { value: 50 } }]";
    traffic::apply(&lab, &mirrored(half));
    ask();
    // All copies are on their way before the next thing is: one that is known comes last.
    traffic::apply(&lab, &mirrored("mirror: { host: copies }"));
    curl(&client, &["http://web/last"]);
    let pod = lab.pod("shop/copies").unwrap();
    support::eventually("the last copy", || {
        traffic::logged(&pod).iter().any(|seen| seen["path"] == "/last").then_some(())
    });
    let mut count = 0;
    support::eventually("no more copies come", || {
        let before = std::mem::replace(&mut count, traffic::logged(&pod).len());
        (before == count).then_some(())
    });
    assert_share(count - 1, 1000, 0.5);
}

#[test]
fn a_streamed_body_is_copied_whole() {
    let Some((lab, client)) = two(&[]) else { return };
    traffic::apply(&lab, &mirrored("mirror: { host: copies }"));
    let script = "head -c 8388608 /dev/urandom | curl -sS -m 60 -X POST -T - http://web/upload";
    let answer: Value =
        serde_json::from_str(&support::ok(&client, &["sh", "-c", script])).expect("JSON");
    assert_eq!(answer["body_length"], 8_388_608);
    assert_eq!(answer["headers"]["transfer-encoding"][0], "chunked");
    let copy = &copies(&lab, 1)[0];
    assert_eq!(copy["body_length"], 8_388_608);
    assert_eq!(copy["body_sha256"], answer["body_sha256"]);
}

#[test]
fn a_mirror_that_hangs_or_is_not_there_is_not_noticed() {
    let Some((lab, client)) = two(HANGS) else { return };
    let ask = || {
        let load = ["-n", "200", "--concurrency", "4", "--body-size", "200000", "http://web/"];
        let lines = traffic::lines(&client, &load);
        assert_eq!(statuses(&lines)[&200], 200);
        lines.iter().map(|line| line.took).max().unwrap_or_default()
    };
    let without = ask();
    let stream = |bytes: u64| {
        let script = format!(
            "head -c {bytes} /dev/zero | curl -sS -m 60 -X POST -T - http://web/ -w '%{{http_code}}' \
             -o /dev/null"
        );
        support::ok(&client, &["sh", "-c", &script])
    };
    for mirror in ["mirror: { host: copies }", "mirror: { host: copies, port: { number: 9000 } }"] {
        traffic::apply(&lab, &mirrored(mirror));
        let slowest = ask();
        println!("slowest of 200: {without} ms without, {slowest} ms with {mirror}");
        // A request that waited for its copy would take as long as the copy.
        assert!(slowest < 10_000, "{slowest} ms with {mirror}");
        assert_eq!(stream(50_000_000), "200", "{mirror}");
    }
    traffic::delete(&lab, &traffic::server("copies", "node2", ("copies", "two"), HANGS));
    assert!(ask() < 10_000, "without a server for copies");
    assert_eq!(stream(50_000_000), "200");
    // It is an ordinary request again once the rule is gone.
    traffic::delete(&lab, &mirrored(""));
    let answer = curl(&client, &["http://web/"]);
    assert!(answer.took < Duration::from_secs(10) && answer.status == 200);
}

#[test]
fn a_client_that_goes_away_takes_its_copy_with_it_or_not_but_nothing_stays() {
    let Some((lab, client)) = two(HANGS) else { return };
    traffic::apply(&lab, &mirrored("mirror: { host: copies }"));
    let load = ["malha-load", "http", "-n", "300", "--concurrency", "30", "--timeout-ms", "200"];
    let load = [&load[..], &["http://web/?delay-ms=5000"]].concat();
    let report = support::json(&client, &load);
    assert_eq!(report["errors"]["timeout"], 300, "{report}");
    traffic::delete(&lab, &mirrored(""));
    assert_eq!(curl(&client, &["http://web/"]).status, 200);
    // Copies that hang are given up in time, as requests are.
    support::eventually("all requests have ended", || {
        let status = lab.meshctl("node1", &["-o", "json", "status"]).expect("meshctl answers");
        let status: Value = serde_json::from_str(&status).expect("JSON");
        (status["capture"]["counters"]["requests"] == 0).then_some(())
    });
}
