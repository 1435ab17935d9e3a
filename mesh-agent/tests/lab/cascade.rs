//! A asks B and B asks C, which has become slow. Without rules both that wait pile up, even for
//! requests that need no C; with a time-out, a circuit breaker and a retry budget A stays fast and
//! says why it has nothing.

use xtask::lab::{Lab, Pod};

use crate::support;
use crate::traffic::{self, Line, curl};

const APPLICATION: &str = include_str!("../../../deploy/samples/cascade/app.yaml");
const SLOW: &str = include_str!("../../../deploy/samples/cascade/c-slow.yaml");
const WELL: &str = include_str!("../../../deploy/samples/cascade/c-well.yaml");
const RULES: &str = include_str!("../../../deploy/samples/cascade/rules.yaml");

/// Replaces the pods of C, and waits until nobody is asked but the new ones.
fn replace(lab: &Lab, manifest: &str) {
    let old = lab.pods_of("c");
    lab.apply(manifest).expect("the manifest is applied");
    old.iter().for_each(|pod| lab.wait_gone(pod).expect("the old pods go"));
    traffic::enrolled(lab);
}

/// Requests that need all three, and others that only A answers, until forty and ten have ended: the
/// median of each in milliseconds, and those that need C.
fn ask(client: &Pod) -> (u64, u64, Vec<Line>) {
    let whole = ["--rate", "20", "--concurrency", "64", "http://a/"];
    let whole = traffic::watched(client, &whole);
    let alone = ["--rate", "5", "--concurrency", "32", "http://a/?alone"];
    let alone = traffic::watched(client, &alone);
    support::eventually("requests have ended", || {
        (whole.seen().len() >= 40 && alone.seen().len() >= 10).then_some(())
    });
    let (whole, alone) = (whole.stop().unwrap(), alone.stop().unwrap());
    (median(&whole), median(&alone), whole)
}

fn median(lines: &[Line]) -> u64 {
    let mut took: Vec<u64> = lines.iter().map(|line| line.took).collect();
    took.sort_unstable();
    took[took.len() / 2]
}

#[test]
fn one_slow_service_does_not_hold_up_those_before_it() {
    let Some(lab) = support::lab(2) else { return };
    lab.apply(APPLICATION).expect("the application is applied");
    traffic::enrolled(&lab);
    let client = lab.pod("client").unwrap();
    let (whole, alone, lines) = ask(&client);
    println!("C is well: {whole} ms, without C {alone} ms");
    assert!(whole < 1_000 && alone < 1_000);
    assert!(lines.iter().all(|line| line.status == 200));

    replace(&lab, SLOW);
    let (whole, alone, _) = ask(&client);
    println!("C is slow: {whole} ms, without C {alone} ms");
    assert!(whole >= 5_000, "each waits for C");
    assert!(alone >= 2_000, "those that need no C wait for A, whose threads all wait");

    traffic::apply(&lab, RULES);
    // B has seen enough of C once nothing of it is asked any more.
    support::eventually("A says why", || {
        curl(&client, &["http://a/"]).body.contains("no healthy upstream").then_some(())
    });
    let (whole, alone, lines) = ask(&client);
    println!("C is slow, with rules: {whole} ms, without C {alone} ms");
    assert!(whole < 1_000 && alone < 1_000);
    assert!(lines.iter().all(|line| line.status == 503), "{lines:?}");

    replace(&lab, WELL);
    support::eventually("C is asked again", || {
        (curl(&client, &["http://a/"]).status == 200).then_some(())
    });
    let (whole, alone, lines) = ask(&client);
    println!("C is well, with rules: {whole} ms, without C {alone} ms");
    assert!(whole < 1_000 && alone < 1_000);
    assert!(lines.iter().all(|line| line.status == 200), "{lines:?}");
}
