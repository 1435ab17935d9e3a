//! A well-known tutorial of Istio after its installation: the same manifests and fortio's load, and
//! what it shows of weights, balancing, sticky users, faults and a circuit breaker, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Fortio, assert_share, statuses};

const FORTIO: &str = include_str!("../../../deploy/samples/tutorial/fortio-deploy.yaml");
const NGINX: &str = include_str!("../../../deploy/samples/tutorial/deployment.yaml");
const RULE: &str = include_str!("../../../deploy/samples/tutorial/dr.yaml");
const LEAST_CONN: &str = include_str!("../../../deploy/samples/tutorial/dr-least-conn.yaml");
const ROUTE: &str = include_str!("../../../deploy/samples/tutorial/vs.yaml");
const STICKY: &str = include_str!("../../../deploy/samples/tutorial/consistent-hash.yaml");
const DELAY: &str = include_str!("../../../deploy/samples/tutorial/fault-injection.yaml");
const ABORT: &str = include_str!("../../../deploy/samples/tutorial/fault-abort.yaml");
const SERVICEX: &str = include_str!("../../../deploy/samples/tutorial/servicex.yaml");
const BREAKER: &str = include_str!("../../../deploy/samples/tutorial/circuit-breaker.yaml");

/// The namespace, in the mesh by Istio's label.
const GROUND: &str = r#"
kind: Namespace
apiVersion: v1
metadata: { name: default, labels: { istio-injection: enabled } }
"#;

const WEB: &str = "http://nginx-service:8000";
const BREAKABLE: &str = "http://servicex-service";

/// The tutorial's application, and its pod of fortio.
fn up(application: &str) -> Option<(Lab, Pod)> {
    Some(up_in(support::lab(2)?, application))
}

fn up_in(lab: Lab, application: &str) -> (Lab, Pod) {
    let manifests = [GROUND, FORTIO, application].join("\n---\n");
    lab.apply(&manifests).expect("the manifests are applied");
    traffic::enrolled(&lab);
    let fortio = lab.wait_ready("fortio-deploy").expect("the pod runs");
    (lab, fortio)
}

/// Its text with something else in one place.
fn with(manifest: &str, from: &str, to: &str) -> String {
    assert_eq!(manifest.matches(from).count(), 1, "{from}");
    manifest.replace(from, to)
}

/// Requests that each pod of a Deployment has answered since it started.
fn answered(lab: &Lab, deployment: &str) -> Vec<usize> {
    let pods = lab.pods_of(deployment);
    let count = |pod: &Pod| pod.log().expect("a log").matches("\"GET / HTTP").count();
    pods.iter().map(count).collect()
}

/// The tutorial's load: what each pod of each version has answered of it.
fn load(lab: &Lab, fortio: &Pod, threads: &str, requests: usize) -> [Vec<usize>; 2] {
    let both = || ["nginx", "nginx-b"].map(|deployment| answered(lab, deployment));
    let before = both();
    let seen =
        Fortio::load(fortio, &["-c", threads, "-qps", "0", "-n", &requests.to_string(), WEB]);
    assert_eq!(seen.count(200), requests as u64, "{seen:?}");
    let all = |counts: &[Vec<usize>; 2]| counts.iter().flatten().sum::<usize>();
    support::eventually("the servers' logs are complete", || {
        (all(&both()) == all(&before) + requests).then_some(())
    });
    let mut after = both();
    for (after, before) in after.iter_mut().flatten().zip(before.iter().flatten()) {
        *after -= before;
    }
    after
}

#[test]
fn weights_move_traffic_and_subsets_balance_as_they_say() {
    let Some((lab, fortio)) = up(NGINX) else { return };
    traffic::apply(&lab, RULE);
    let mut last = (0, 0);
    for (a, b) in [(90, 10), (75, 25), (20, 80), (100, 0), (90, 10)] {
        let route = with(ROUTE, "weight: 10", &format!("weight: {b}"));
        let route = with(&route, "weight: 90", &format!("weight: {a}"));
        assert_ne!((a, b), last);
        last = (a, b);
        traffic::apply(&lab, &route);
        let [_, b_answered] = load(&lab, &fortio, "2", 1000);
        let count = b_answered.iter().sum();
        println!("{a}/{b}: {count} of 1000 to B");
        assert_share(count, 1000, f64::from(b) / 100.0);
    }
    lab.scale("nginx", 3).unwrap();
    lab.scale("nginx-b", 3).unwrap();
    traffic::enrolled(&lab);
    traffic::apply(&lab, LEAST_CONN);
    let route = with(ROUTE, "weight: 10", "weight: 50");
    let route = with(&route, "weight: 90", "weight: 50");
    traffic::apply(&lab, &route);
    let [a, b] = load(&lab, &fortio, "2", 900);
    println!("LEAST_CONN: {a:?}, ROUND_ROBIN: {b:?}");
    let spread = |counts: &[usize]| {
        counts.iter().max().copied().unwrap_or(0) - counts.iter().min().copied().unwrap_or(0)
    };
    assert_eq!((a.len(), b.len()), (3, 3));
    assert!(spread(&b) <= 1, "in turn: {b:?}");
    assert!(a.iter().all(|count| *count > 50), "nobody is left out: {a:?}");
}

#[test]
fn a_hundred_users_keep_their_pods() {
    let Some((lab, fortio)) = up(NGINX) else { return };
    traffic::apply(&lab, STICKY);
    let words = ["-n", "500", "--concurrency", "4", "--new-connections", "--vary", "x-user=100"];
    let lines = traffic::lines(&fortio, &[&words[..], &[WEB]].concat());
    let mut pages: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for line in lines {
        pages.entry(line.number % 100).or_default().insert(line.body);
    }
    assert!(pages.values().all(|pages| pages.len() == 1), "{pages:?}");
    let used: BTreeSet<&String> = pages.values().flatten().collect();
    assert_eq!(used.len(), 2, "{used:?}");
}

#[test]
fn delays_and_aborts_are_what_fortio_sees() {
    let Some((lab, fortio)) = up(NGINX) else { return };
    let all = "value: 100";
    traffic::apply(&lab, DELAY);
    let ask = |count: &str| {
        let words = ["-c", count, "-qps", "0", "-n", count, "-timeout", "11s", WEB];
        let seen = Fortio::load(&fortio, &words);
        assert_eq!(seen.count(200).to_string(), count, "{seen:?}");
        seen.row("Aggregated Function Time")
    };
    let took = ask("4");
    assert!(took.min >= 10.0 && took.max < 11.0, "{took:?}");
    traffic::apply(&lab, &with(DELAY, all, "value: 50"));
    let took = ask("60");
    let delayed = (took.average * 60.0 / 10.0).round();
    assert!(took.max >= 10.0 && took.min < 5.0, "{took:?}");
    // Five standard deviations of sixty draws are 19.
    assert!((11.0..=49.0).contains(&delayed), "about {delayed} of 60 were delayed");
    traffic::apply(&lab, &with(DELAY, all, "value: 0"));
    let took = ask("60");
    assert!(took.max < 10.0, "{took:?}");
    traffic::apply(&lab, ABORT);
    let all_answered =
        || ["nginx", "nginx-b"].map(|name| answered(&lab, name).iter().sum::<usize>());
    let before = all_answered();
    let seen = Fortio::load(&fortio, &["-c", "2", "-qps", "0", "-n", "200", WEB]);
    assert_eq!(seen.count(500), 200, "{seen:?}");
    let size = seen.row("Response Body/Total Sizes");
    assert_eq!((size.min, size.max), (154.0, 154.0), "{seen:?}");
    assert_eq!(all_answered(), before, "no server was asked");
}

#[test]
fn the_circuit_breaker_opens_after_five() {
    let Some(lab) = support::lab_logged("info,access=debug") else { return };
    let (lab, fortio) = up_in(lab, SERVICEX);
    let seen = Fortio::load(&fortio, &["-c", "2", "-qps", "0", "-n", "20", BREAKABLE]);
    println!("without a rule: {:?}", seen.codes);
    // What took three seconds or more, fortio has given up itself.
    let bad = seen.count(504) + seen.count(-1);
    assert!(bad >= 1 && seen.count(200) == 20 - bad, "{seen:?}");
    // Fortio begins each run with calls that it does not count: the agent's log has them all.
    let logged = |words: &[&str]| {
        let of = |node: &String| traffic::access(&lab, node, words).len();
        lab.nodes().iter().map(of).sum::<usize>()
    };
    let failed = || logged(&["response_code=504 ", "response_flags=- "]);
    let given_up = || logged(&["response_code=0 ", "response_flags=DC "]);
    let before = (failed(), given_up());
    traffic::apply(&lab, BREAKER);
    let load = || Fortio::load(&fortio, &["-c", "2", "-qps", "0", "-n", "200", BREAKABLE]);
    // While the bad pod has a request, for seconds, all others go to the good one, which is less busy:
    // so few of a run's come to it that five take several runs.
    let is_left_out = || {
        let of = |node: &String| lab.meshctl(node, &["ejections"]).unwrap().contains("servicex");
        lab.nodes().iter().any(of)
    };
    let start = Instant::now();
    while !is_left_out() {
        let seen = load();
        assert_eq!(seen.count(200), 200 - seen.count(504) - seen.count(-1), "{seen:?}");
        assert!(start.elapsed() < Duration::from_secs(180), "{} in three minutes", failed());
    }
    let (failed, given_up) = (failed() - before.0, given_up() - before.1);
    println!("with one: {failed}, and {given_up} given up, in {:?}", start.elapsed());
    assert!((5..=6).contains(&failed), "five, and one that was in flight: {failed}");
    assert_eq!(load().codes, BTreeMap::from([(200, 200)]));
}

/// Ten in place of five, with an ejection that outlasts the test.
fn ten() -> String {
    let ten = with(BREAKER, "consecutiveGatewayErrors: 5", "consecutiveGatewayErrors: 10");
    with(&ten, "baseEjectionTime: 30s", "baseEjectionTime: 300s")
}

#[test]
fn a_circuit_breaker_counts_from_when_it_is_applied() {
    let Some((lab, fortio)) = up(SERVICEX) else { return };
    const AT_ONCE: usize = 8;
    let words = ["--rate", "50", "--concurrency", &AT_ONCE.to_string(), BREAKABLE];
    let running = traffic::watched(&fortio, &words);
    let failed = || statuses(&running.seen()).get(&504).copied().unwrap_or(0);
    support::eventually("it fails without a rule", || (failed() >= 3).then_some(()));
    traffic::apply(&lab, &ten());
    let before = failed();
    // All 5xx count as well, of which five in a row are enough unless the rule says otherwise.
    support::eventually("the breaker has seen five", || (failed() >= before + 5).then_some(()));
    let lines = running.finish().unwrap();
    let after = statuses(&lines)[&504] - before;
    println!("{before} before it was in force, {after} after");
    assert!(after <= 10 + AT_ONCE, "ten, and those in flight");
    let seen = Fortio::load(&fortio, &["-c", "2", "-qps", "0", "-n", "200", BREAKABLE]);
    assert_eq!(seen.codes, BTreeMap::from([(200, 200)]));
}
