//! Delays for half of the requests, aborts for a fifth that no retry hides, and a fault for one
//! user alone; without the rule all is as before.

use super::super::screen::bar;
use super::super::stage::{CLIENT, Picture, Stage, allowed, count, near, requests, with_status};
use crate::lab::Line;

/// Requests of a step.
const REQUESTS: usize = 400;

/// Milliseconds from which a request was delayed: the fault's second.
const DELAYED: u64 = 1_000;

/// Users who ask in turn, and the one with a fault.
const USERS: u64 = 20;
const CHOSEN: u64 = 7;

/// Body of an answer that is a fault.
const ABORTED: &str = "fault filter abort";

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Without a rule")?;
    stage.raise("nginx-ab.yaml")?;
    let lines = ask(stage)?;
    let bad = count(&lines, |line| line.status != 200 || line.took >= DELAYED);
    stage.claim(bad == 0, format!("without a rule {bad} of {REQUESTS} were late or failed"));

    stage.screen.heading("2. A delay for half of them")?;
    stage.rule("faults/delay.yaml")?;
    let lines = ask(stage)?;
    let late = count(&lines, |line| line.took >= DELAYED);
    stage.claim(
        near(late, REQUESTS, 0.5, 0) && with_status(&lines, 200) == REQUESTS,
        told("were a second late", late, 0.5),
    );

    stage.screen.heading("3. An abort for a fifth of them")?;
    stage.rule("faults/abort.yaml")?;
    let lines = ask(stage)?;
    let aborted = count(&lines, |line| line.status == 503 && line.body == ABORTED);
    stage.claim(
        near(aborted, REQUESTS, 0.2, 0) && with_status(&lines, 200) == REQUESTS - aborted,
        told("were aborted, in spite of retries", aborted, 0.2),
    );

    stage.screen.heading("4. A fault for user-7")?;
    stage.rule("faults/one-user.yaml")?;
    let lines = ask(stage)?;
    let wrong = count(&lines, |line| {
        (line.number % USERS == CHOSEN) != (line.status == 500 && line.body == ABORTED)
    });
    let hit = with_status(&lines, 500);
    stage.claim(
        wrong == 0 && hit == REQUESTS / 20,
        format!("all {hit} requests of user-7 failed, and {wrong} of others"),
    );

    stage.screen.heading("5. The rule is deleted")?;
    stage.delete("VirtualService", "nginx")?;
    let lines = ask(stage)?;
    let bad = count(&lines, |line| line.status != 200 || line.took >= DELAYED);
    stage.claim(bad == 0, format!("then {bad} of {REQUESTS} were late or failed"));
    Ok(())
}

/// All requests of a step, twenty users in turn.
fn ask(stage: &mut Stage) -> anyhow::Result<Vec<Line>> {
    let (total, vary) = (REQUESTS.to_string(), format!("x-user={USERS}"));
    let words = ["-n", &total, "--rate", "200", "--concurrency", "250", "--vary", &vary];
    let load = stage.load(CLIENT, &[&words[..], &["http://nginx-service:8000/"]].concat())?;
    stage.watch_from(&load, 0, requests(REQUESTS), picture)?;
    load.finish()
}

fn told(what: &str, found: usize, share: f64) -> String {
    format!(
        "{found} of {REQUESTS} {what} ({:.0} ± {:.0})",
        share * REQUESTS as f64,
        allowed(REQUESTS, share, 0)
    )
}

fn picture(lines: &[Line]) -> Picture {
    let at_once = count(lines, |line| line.status == 200 && line.took < DELAYED);
    let late = count(lines, |line| line.status == 200 && line.took >= DELAYED);
    let others = lines.len() - at_once - late;
    let total = lines.len() as u64;
    let block = vec![
        format!("    200 at once     {}", bar(at_once as u64, total)),
        format!("    200 a second on {}", bar(late as u64, total)),
        format!("    others          {}", bar(others as u64, total)),
    ];
    (format!("  at once {at_once:>3}, a second late {late:>3}, others {others:>3}"), block)
}
