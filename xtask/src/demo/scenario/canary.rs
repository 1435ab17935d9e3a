//! Weights are moved step by step while requests flow; none of them fails.

use super::super::screen::bar;
use super::super::stage::{CLIENT, Picture, Stage, allowed, count, near, seconds, with_status};
use crate::lab::Line;

const RULE: &str = "nginx-90-10.yaml";

/// Weights of version A and B, one after the other; the first are the rule's own.
const STEPS: [(u32, u32); 5] = [(90, 10), (75, 25), (20, 80), (0, 100), (90, 10)];

/// How long each is watched.
const SECONDS: f64 = 4.0;

/// Requests at one moment: so many may still follow the rule before.
const AT_ONCE: usize = 4;

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Two versions of one application, and a rule")?;
    stage.raise("nginx-ab.yaml")?;
    stage.rule(RULE)?;
    let at_once = AT_ONCE.to_string();
    let words = ["--until-eof", "--rate", "200", "--concurrency", &at_once];
    let load = stage.load(CLIENT, &[&words[..], &["http://nginx-service:8000/"]].concat())?;
    for (number, (a, b)) in (1..).zip(STEPS) {
        if number > 1 {
            stage.screen.heading(&format!("{number}. While requests flow: {a}/{b}"))?;
            let to = |weight: u32| format!("weight: {weight}");
            stage.edited(RULE, &[("weight: 10", to(b)), ("weight: 90", to(a))])?;
        }
        let lines = stage.watch(&load, seconds(SECONDS), picture)?;
        let share = f64::from(b) / 100.0;
        let found = versions(&lines).1;
        stage.claim(
            lines.len() > 100 && near(found, lines.len(), share, AT_ONCE),
            format!(
                "weights {a}/{b}: {found} of {} requests to B ({:.0} ± {:.0})",
                lines.len(),
                share * lines.len() as f64,
                allowed(lines.len(), share, AT_ONCE)
            ),
        );
    }
    let all = load.finish()?;
    let failed = all.len() - with_status(&all, 200);
    stage
        .claim(failed == 0, format!("of {} requests over all changes, {failed} failed", all.len()));
    Ok(())
}

fn versions(lines: &[Line]) -> (usize, usize) {
    let of = |page| count(lines, |line| line.body == page);
    (of("Full Cycle A"), of("Full Cycle B"))
}

fn picture(lines: &[Line]) -> Picture {
    let (a, b) = versions(lines);
    let total = (a + b) as u64;
    let line = format!("  A {a:>4}, B {b:>4}, others {}", lines.len() - a - b);
    let block = vec![
        format!("    A {}", bar(a as u64, total)),
        format!("    B {}", bar(b as u64, total)),
        format!("    others {}", lines.len() - a - b),
    ];
    (line, block)
}
