//! Bookinfo's routing samples, through its own chain of services: by a header that the services pass
//! on, by share, with faults for one user, and with a mirror.

use std::collections::BTreeMap;

use serde_json::Value;
use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Answer, assert_share, curl};

const APPLICATION: &str = include_str!("../../../deploy/samples/bookinfo/bookinfo.yaml");
const SUBSETS: &str = include_str!("../../../deploy/samples/bookinfo/subsets.yaml");
const BY_USER: &str = include_str!("../../../deploy/samples/bookinfo/by-user.yaml");
const HALF_HALF: &str = include_str!("../../../deploy/samples/bookinfo/half-half.yaml");
const DELAY: &str = include_str!("../../../deploy/samples/bookinfo/delay.yaml");
const ABORT: &str = include_str!("../../../deploy/samples/bookinfo/abort.yaml");
const MIRROR: &str = include_str!("../../../deploy/samples/bookinfo/mirror.yaml");

const GROUND: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: default, labels: { istio.io/dataplane-mode: malha } }
---
kind: Pod
apiVersion: v1
metadata: { name: client, labels: { app: client } }
spec:
  containers: [{ name: main, image: curlimages/curl, command: [sleep, infinity] }]
"#;

fn up() -> Option<(Lab, Pod)> {
    let lab = support::lab(2)?;
    lab.apply(&[GROUND, APPLICATION].join("\n---\n")).expect("the application is applied");
    traffic::enrolled(&lab);
    traffic::apply(&lab, SUBSETS);
    let client = lab.pod("client").unwrap();
    Some((lab, client))
}

/// The page as a user gets it; nobody's if empty.
fn page(client: &Pod, user: &str) -> Answer {
    let header = format!("end-user: {user}");
    let own: &[&str] = if user.is_empty() { &[] } else { &["-H", &header] };
    curl(client, &[own, &["http://productpage:9080/productpage"]].concat())
}

/// What the one who was asked at this URL answered, at any depth.
fn called<'a>(answer: &'a Value, host: &str) -> Option<&'a Value> {
    let calls = answer["calls"].as_array()?;
    calls.iter().find_map(|call| {
        let url = call["url"].as_str().unwrap_or_default();
        if url.contains(host) { Some(call) } else { called(&call["answer"], host) }
    })
}

fn reviewer(answer: &Value) -> &str {
    let reviews = called(answer, "//reviews").expect("reviews are asked");
    reviews["answer"]["version"].as_str().expect("they answer")
}

#[test]
fn users_shares_faults_and_mirrors_are_as_bookinfo_says() {
    let Some((lab, client)) = up() else { return };
    let mut versions = BTreeMap::<String, usize>::new();
    for _ in 0..60 {
        *versions.entry(reviewer(&page(&client, "").json()).to_owned()).or_default() += 1;
    }
    assert_eq!(versions.len(), 3, "without a rule all are asked: {versions:?}");
    by_user(&lab, &client);
    faults(&lab, &client);
    half_half(&lab, &client);
    mirror(&lab, &client);
}

fn by_user(lab: &Lab, client: &Pod) {
    traffic::apply(lab, BY_USER);
    for _ in 0..20 {
        assert_eq!(reviewer(&page(client, "jason").json()), "v2");
        assert_eq!(reviewer(&page(client, "jane").json()), "v1");
        assert_eq!(reviewer(&page(client, "").json()), "v1");
    }
}

/// Only version 2, and so only jason, asks for ratings.
fn faults(lab: &Lab, client: &Pod) {
    traffic::apply(lab, DELAY);
    let late = page(client, "jason");
    assert_eq!(late.status, 200);
    let waited = called(&late.json(), "//ratings").expect("ratings are asked")["milliseconds"]
        .as_u64()
        .expect("a number");
    assert!((7_000..15_000).contains(&waited), "{waited} ms");
    assert!(page(client, "jane").took.as_secs() < 7);
    traffic::apply(lab, ABORT);
    for _ in 0..10 {
        let page = page(client, "jason");
        assert_eq!(page.status, 500, "a failure is passed on");
        let page = page.json();
        let ratings = called(&page, "//ratings").expect("ratings are asked");
        assert_eq!(ratings["answer"], "fault filter abort");
    }
    assert_eq!(page(client, "jane").status, 200);
    // Version 3 asks too, for others.
    traffic::apply(lab, HALF_HALF);
    for _ in 0..20 {
        assert_eq!(page(client, "jane").status, 200);
    }
    traffic::delete(lab, ABORT);
}

fn half_half(lab: &Lab, client: &Pod) {
    let load = ["-n", "600", "--count-header", "x-echo-version", "--concurrency", "4"];
    let load = [&load[..], &["http://reviews:9080/reviews/0"]].concat();
    let lines = traffic::lines(client, &load);
    let counts = traffic::by_header(&lines);
    assert_eq!(counts.keys().collect::<Vec<_>>(), [&"v1", &"v3"]);
    assert_share(counts["v3"], 600, 0.5);
    traffic::delete(lab, HALF_HALF);
}

fn mirror(lab: &Lab, client: &Pod) {
    let seen = |version: &str| {
        let pod = lab.wait_ready(&format!("reviews-{version}")).unwrap();
        let asked = traffic::logged(&pod);
        asked.iter().filter(|seen| seen["path"] == "/mirrored").count()
    };
    traffic::apply(lab, MIRROR);
    let load = ["-n", "100", "--count-header", "x-echo-version", "http://reviews:9080/mirrored"];
    let lines = traffic::lines(client, &load);
    assert_eq!(traffic::by_header(&lines), BTreeMap::from([("v1", 100)]));
    support::eventually("a hundred copies", || (seen("v3") == 100).then_some(()));
    assert_eq!((seen("v1"), seen("v2")), (100, 0));
}
