//! A asks B, B asks C, and C has become slow: without rules even those requests wait that need no
//! C. With a time-out, a circuit breaker and a retry budget A is fast, and says why it has nothing.

use serde_json::Value;

use super::super::stage::{CLIENT, Picture, Stage, count, median, seconds, with_status};
use crate::lab::{Line, Load};

/// From so many milliseconds on a user calls it slow.
const SLOW: u64 = 1_000;

/// Milliseconds for the last part of what was seen, which the picture shows.
const LATELY: u64 = 2_000;

/// Both kinds of requests.
struct Loads {
    whole: Load,
    alone: Load,
}

/// What A passes on once all endpoints of C are left out.
const EJECTED: &str = "no healthy upstream";

/// How often A is asked why until it says so, and how long between.
const LOOKS: usize = 60;
const LOOK: std::time::Duration = std::time::Duration::from_millis(250);

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. A asks B, B asks C")?;
    stage.raise("cascade/app.yaml")?;
    let (whole, alone) = phase(stage, 3.0)?;
    stage.claim(
        with_status(&whole, 200) == whole.len() && median(&whole) < SLOW && median(&alone) < SLOW,
        format!("C is well: A takes {} ms", median(&whole)),
    );

    stage.screen.heading("2. C becomes slow; there are no rules")?;
    stage.replace("cascade/c-slow.yaml", "c")?;
    let (whole, alone) = phase(stage, 12.0)?;
    stage.claim(
        median(&whole) >= SLOW,
        format!("without rules A takes {} ms for what needs C", median(&whole)),
    );
    stage.claim(
        median(&alone) >= SLOW,
        format!("and {} ms for what does not: its threads all wait", median(&alone)),
    );

    stage.screen.heading("3. Rules for C: time-out, circuit breaker, retry budget")?;
    stage.rule("cascade/rules.yaml")?;
    drop(phase(stage, 3.0)?);
    // First those that have waited since before go on, more than B may send to C at one moment.
    let mut why = reason(stage)?;
    for _ in 0..LOOKS {
        if why == EJECTED {
            break;
        }
        std::thread::park_timeout(LOOK);
        why = reason(stage)?;
    }
    stage.screen.line(&format!("  A says why: C has answered \"{why}\""))?;
    let (whole, alone) = phase(stage, 3.0)?;
    stage.claim(
        median(&whole) < SLOW && median(&alone) < SLOW && whole.len() > 20,
        format!("with rules A takes {} ms, {} ms without C", median(&whole), median(&alone)),
    );
    stage.claim(
        why == EJECTED && with_status(&whole, 503) == whole.len(),
        format!("and says why it has nothing: {why}"),
    );

    stage.screen.heading("4. C is well again")?;
    stage.replace("cascade/c-well.yaml", "c")?;
    let (whole, _) = phase(stage, 3.0)?;
    stage.claim(
        with_status(&whole, 200) == whole.len() && median(&whole) < SLOW,
        format!("C is well again: A takes {} ms", median(&whole)),
    );
    Ok(())
}

/// Both kinds of requests for some seconds.
fn phase(stage: &mut Stage, length: f64) -> anyhow::Result<(Vec<Line>, Vec<Line>)> {
    let load = |words: &[&str]| stage.load(CLIENT, &[&["--until-eof"], words].concat());
    let loads = Loads {
        whole: load(&["--rate", "20", "--concurrency", "64", "http://a/"])?,
        alone: load(&["--rate", "5", "--concurrency", "32", "http://a/?alone"])?,
    };
    stage.watch_from(&loads.whole, 0, seconds(length), |whole| picture(whole, &loads.alone))?;
    Ok((loads.whole.stop()?, loads.alone.stop()?))
}

/// What C has answered, as A passes it on.
fn reason(stage: &Stage) -> anyhow::Result<String> {
    let text = stage.output(CLIENT, &["curl", "-sS", "--max-time", "20", "http://a/"])?;
    let answer: Value = serde_json::from_str(&text)?;
    let c = &answer["calls"][0]["answer"]["calls"][0];
    Ok(c["answer"].as_str().map_or_else(|| format!("status {}", c["status"]), str::to_owned))
}

fn picture(whole: &[Line], alone: &Load) -> Picture {
    let alone = alone.seen();
    let end = whole.iter().chain(&alone).map(|line| line.at).max().unwrap_or_default();
    let row = |name: &str, lines: &[Line]| {
        let lately: Vec<Line> =
            lines.iter().filter(|line| line.at + LATELY > end).cloned().collect();
        let (good, bad) = (with_status(&lately, 200), count(&lately, |line| line.status != 200));
        match lately.len() {
            0 => format!("{name}: no answer"),
            _ => format!("{name}: 200 {good:>3}, others {bad:>3}, {:>5} ms", median(&lately)),
        }
    };
    let rows = [row("A, B and C", whole), row("A alone   ", &alone)];
    let block = rows.iter().map(|row| format!("    {row}")).collect();
    (format!("  {}", rows.join(" | ")), block)
}
