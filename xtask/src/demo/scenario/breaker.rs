//! Of two pods one fails. With a rule it is left out after five failures, tried again, and left out
//! for longer; another client has its own experience.

use super::super::stage::{CLIENT, Picture, Stage, seconds, with_status};
use crate::lab::Line;

/// Failures in a row after which the rule leaves a pod out.
const FAILURES: usize = 5;

/// Requests at one moment: so many may be on their way to the pod when it is left out.
const AT_ONCE: usize = 4;

/// Milliseconds without a failure that end a row of them.
const PAUSE: u64 = 2_000;

/// Milliseconds for which the rule leaves a pod out, the first and the second time.
const FIRST: u64 = 4_000;
const SECOND: u64 = 8_000;

/// How often the agent looks whether the time is over, in milliseconds, and what a slow machine may
/// add.
const INTERVAL: u64 = 1_000;
const SLACK: u64 = 1_500;

/// Milliseconds of a sign in the picture, and signs in a line.
const SIGN: u64 = 500;
const SIGNS: u64 = 60;

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Two pods, of which one fails")?;
    stage.raise("breaker/app.yaml")?;
    let at_once = AT_ONCE.to_string();
    let words = ["--until-eof", "--rate", "40", "--concurrency", &at_once, "http://shop/"];
    let load = stage.load(CLIENT, &words)?;
    let lines = stage.watch(&load, seconds(3.0), picture)?;
    let failed = with_status(&lines, 504);
    stage.claim(
        failed > FAILURES + AT_ONCE,
        format!("without a rule {failed} of {} failed", lines.len()),
    );

    stage.screen.heading("2. A circuit breaker")?;
    stage.rule("breaker/rule.yaml")?;
    let from = load.seen().len();
    let three = |lines: &[Line], _| rows(lines).len() >= 3;
    let lines = stage.watch_from(&load, from, three, picture)?;
    let rows = rows(&lines);
    for (number, row) in (1..).zip(&rows[..2]) {
        // The first ones may have been counted before the rule was known to be in force.
        let (least, most) = (if number == 1 { 1 } else { FAILURES }, FAILURES + AT_ONCE);
        stage.claim(
            (least..=most).contains(&row.len()),
            format!("row {number}: {} failures until the pod was left out", row.len()),
        );
    }
    for (pause, wanted) in rows.windows(2).zip([FIRST, SECOND]) {
        let paused = pause_between(pause);
        stage.claim(
            (wanted.saturating_sub(PAUSE / 4)..=wanted + INTERVAL + SLACK).contains(&paused),
            format!("it was left out for {:.1} s ({} s)", paused as f64 / 1e3, wanted / 1000),
        );
    }
    drop(load.finish()?);

    stage.screen.heading("3. Another client on the same node")?;
    let load = stage.load("default/client2", &["-n", "100", "--rate", "100", "http://shop/"])?;
    let lines = stage.watch_from(&load, 0, |lines, _| lines.len() == 100, picture)?;
    let failed = with_status(&lines, 504);
    stage.claim(
        failed == FAILURES,
        format!("another client has failed {failed} times, once for each that the rule allows"),
    );
    Ok(())
}

/// Times of failures that follow each other without a pause.
fn rows(lines: &[Line]) -> Vec<Vec<u64>> {
    let mut rows: Vec<Vec<u64>> = Vec::new();
    for line in lines.iter().filter(|line| line.status != 200) {
        match rows.last_mut() {
            Some(row) if row.last().is_some_and(|last| line.at.saturating_sub(*last) < PAUSE) => {
                row.push(line.at);
            }
            _ => rows.push(vec![line.at]),
        }
    }
    rows
}

/// From the end of the first row to the beginning of the second.
fn pause_between(rows: &[Vec<u64>]) -> u64 {
    match rows {
        [first, second, ..] => {
            let (from, to) = (first.last().copied(), second.first().copied());
            to.unwrap_or_default().saturating_sub(from.unwrap_or_default())
        }
        _ => 0,
    }
}

/// Time goes to the right: how many answers of each status there were in each half second.
fn picture(lines: &[Line]) -> Picture {
    let end = lines.iter().map(|line| line.at).max().unwrap_or_default();
    let start = lines.iter().map(|line| line.at).min().unwrap_or_default();
    let start = start.max(end.saturating_sub(SIGN * SIGNS));
    let row = |is: fn(u16) -> bool| -> String {
        let within = |from: u64| {
            let times = from..from + SIGN;
            lines.iter().filter(|line| is(line.status) && times.contains(&line.at)).count()
        };
        let starts = (start..=end).step_by(usize::try_from(SIGN).unwrap_or(1));
        starts.map(|from| sign(within(from))).collect()
    };
    let (good, bad) = (with_status(lines, 200), lines.len() - with_status(lines, 200));
    let block = vec![
        format!("    200    {good:>4}  {}", row(|status| status == 200)),
        format!("    failed {bad:>4}  {}", row(|status| status != 200)),
    ];
    (format!("  200 {good:>4}, failed {bad:>3}"), block)
}

fn sign(count: usize) -> char {
    match count {
        0 => '·',
        1..=9 => char::from_digit(u32::try_from(count).unwrap_or_default(), 10).unwrap_or('+'),
        _ => '█',
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::stage::line;
    use super::*;

    #[test]
    fn rows_of_failures_end_with_a_pause() {
        let lines = [(0, 200), (10, 504), (300, 504), (4_400, 504), (4_500, 200), (4_600, 504)];
        let lines: Vec<Line> = lines.iter().map(|(at, status)| line(0, *at, *status)).collect();
        let rows = rows(&lines);
        assert_eq!(rows, [vec![10, 300], vec![4_400, 4_600]]);
        assert_eq!(pause_between(&rows), 4_100);
        let (_, block) = picture(&lines);
        assert_eq!(block[1], "    failed    4  2·······11");
    }
}
