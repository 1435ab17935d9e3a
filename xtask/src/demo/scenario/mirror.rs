//! Version 2 gets a copy of each request of version 1, streamed bodies too; when it hangs, nobody
//! notices.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use super::super::screen::bar;
use super::super::stage::{CLIENT, Picture, Stage, count, median, requests, with_status};
use crate::lab::{Line, wait_for};

/// Requests of a step.
const REQUESTS: usize = 400;

/// How long copies may take after their requests.
const PATIENCE: Duration = Duration::from_secs(20);

/// From so many milliseconds on a request is not as without a mirror.
const SLOW: u64 = 1_000;

/// Sends a body of 8 MiB whose length is not told before.
const UPLOAD: &str =
    "head -c 8388608 /dev/urandom | curl -sS --max-time 30 -X POST -T - http://shop/upload";

pub(super) fn play(stage: &mut Stage) -> anyhow::Result<()> {
    stage.screen.heading("1. Two versions; the second one gets copies")?;
    stage.raise("mirror/app.yaml")?;
    stage.rule("mirror/rule.yaml")?;
    let lines = ask(stage)?;
    claim_served(stage, "with copies", &lines);
    let copies = wait_for(PATIENCE, "the copies", || {
        let seen = seen(stage, "shop-v2", "/")?;
        Ok((seen.len() >= REQUESTS).then_some(seen.len()))
    })?;
    let own = seen(stage, "shop-v1", "/")?.len();
    stage.screen.line(&format!("    version 1 has seen {own}, version 2 {copies}"))?;
    stage.claim(
        own == REQUESTS && copies == REQUESTS,
        format!("version 1 has seen {own} requests, version 2 {copies} copies"),
    );

    stage.screen.heading("2. A body of 8 MiB, as a stream")?;
    stage.screen.line(&format!("  $ {UPLOAD}"))?;
    let answer: Value = serde_json::from_str(&stage.output(CLIENT, &["sh", "-c", UPLOAD])?)?;
    let copy = wait_for(PATIENCE, "the copy", || Ok(seen(stage, "shop-v2", "/upload")?.pop()))?;
    for (version, seen) in [("1", &answer), ("2", &copy)] {
        stage.screen.line(&format!(
            "    version {version}: {} bytes, SHA-256 {}",
            seen["body_length"],
            seen["body_sha256"].as_str().unwrap_or_default()
        ))?;
    }
    stage.claim(
        answer["body_length"] == 8_388_608 && copy["body_sha256"] == answer["body_sha256"],
        "of a streamed body the copy is whole",
    );

    stage.screen.heading("3. Version 2 hangs")?;
    stage.replace("mirror/v2-hangs.yaml", "shop-v2")?;
    let lines = ask(stage)?;
    claim_served(stage, "while version 2 hangs", &lines);
    let answer: Value = serde_json::from_str(&stage.output(CLIENT, &["sh", "-c", UPLOAD])?)?;
    stage.claim(answer["body_length"] == 8_388_608, "a streamed body arrives, too");
    Ok(())
}

fn ask(stage: &mut Stage) -> anyhow::Result<Vec<Line>> {
    let total = REQUESTS.to_string();
    let words = ["-n", &total, "--rate", "200", "--concurrency", "16"];
    let words = [&words[..], &["--count-header", "x-echo-version", "http://shop/"]].concat();
    let load = stage.load(CLIENT, &words)?;
    stage.watch_from(&load, 0, requests(REQUESTS), picture)?;
    load.finish()
}

fn claim_served(stage: &mut Stage, when: &str, lines: &[Line]) {
    let good = count(lines, |line| line.status == 200 && line.header == "v1");
    let slowest = lines.iter().map(|line| line.took).max().unwrap_or_default();
    stage.claim(
        good == REQUESTS && slowest < SLOW,
        format!("{when} version 1 has answered {good} of {REQUESTS}, the slowest in {slowest} ms"),
    );
}

/// Requests for a path that the pod of a Deployment has logged.
fn seen(stage: &Stage, deployment: &str, path: &str) -> anyhow::Result<Vec<Value>> {
    let pods = stage.pods_of(deployment)?;
    let log = stage.lab.log(pods.first().context("no pod")?)?;
    let seen = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(seen.filter(|seen| seen["path"] == path).collect())
}

fn picture(lines: &[Line]) -> Picture {
    let good = with_status(lines, 200);
    let line = format!("  200 {good:>4}, others {:>3}", lines.len() - good);
    let block = vec![
        format!("    200 from version 1 {}", bar(good as u64, lines.len() as u64)),
        format!("    half of them within {} ms", median(lines)),
    ];
    (line, block)
}
