//! A caller of low priority is held to its rate, at once and on its own node; another one is not.

use super::super::screen::bar;
use super::super::stage::{Picture, Stage, count, median, requests, with_status};
use crate::lab::Line;

/// Requests a second of each caller, and for how long.
const RATE: usize = 500;
const SECONDS: usize = 4;

/// What the rule lets in a second, and at once after a pause.
const LIMIT: usize = 200;
const BURST: usize = 50;

/// Body of an answer that is a refusal.
const REFUSED: &str = "local_rate_limited";

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Without a rule")?;
    stage.raise("ratelimit/pods.yaml")?;
    let lines = ask(stage, "default/batch")?;
    let failed = lines.len() - with_status(&lines, 200);
    stage.claim(failed == 0, format!("without a rule {failed} of {} failed", lines.len()));

    stage.screen.heading("2. 200 requests a second for callers of the tier `low`")?;
    stage.rule("ratelimit/limit.yaml")?;
    let lines = ask(stage, "default/batch")?;
    let (passed, refused) = (with_status(&lines, 200), with_status(&lines, 429));
    // What passes follows from the time that the load took, which on a busy machine is longer.
    let took = lines.iter().map(|line| line.at).max().unwrap_or(0) as usize;
    let most = BURST + LIMIT * took / 1000 + 1;
    let least = LIMIT * (SECONDS - 1);
    stage.claim(
        (least..=most).contains(&passed) && passed + refused == lines.len(),
        format!("{passed} of {} passed (at most {most} may), {refused} got 429", lines.len()),
    );
    let said = count(&lines, |line| line.status == 429 && line.body == REFUSED);
    let refusals: Vec<Line> = lines.iter().filter(|line| line.status == 429).cloned().collect();
    let median = median(&refusals);
    stage.claim(said == refused && median < 100, format!("refused in {median} ms: {REFUSED}"));

    stage.screen.heading("3. Another caller")?;
    let lines = ask(stage, "default/shop")?;
    let failed = lines.len() - with_status(&lines, 200);
    stage.claim(failed == 0, format!("of the caller without a limit {failed} failed"));
    Ok(())
}

fn ask(stage: &mut Stage, pod: &str) -> anyhow::Result<Vec<Line>> {
    let (rate, total) = (RATE.to_string(), (RATE * SECONDS).to_string());
    let words = ["-n", &total, "--rate", &rate, "--concurrency", "64", "http://b/"];
    let load = stage.load(pod, &words)?;
    stage.watch_from(&load, 0, requests(RATE * SECONDS), picture)?;
    load.finish()
}

fn picture(lines: &[Line]) -> Picture {
    let (passed, refused) = (with_status(lines, 200), with_status(lines, 429));
    let total = lines.len() as u64;
    let block = vec![
        format!("    200 {}", bar(passed as u64, total)),
        format!("    429 {}", bar(refused as u64, total)),
    ];
    (format!("  200 {passed:>4}, 429 {refused:>4}"), block)
}
