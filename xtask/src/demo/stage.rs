//! What the scenarios share: a mesh, manifests that are shown as they are applied, loads that are
//! watched while they run, and claims.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::screen::Screen;
use super::{Claim, sample};
use crate::lab::server::Served;
use crate::lab::{Line, Load, wait_for};

/// The pod that makes the requests.
pub(super) const CLIENT: &str = "default/client";

/// Nodes of every scenario's mesh.
pub(super) const NODES: [&str; 2] = ["node1", "node2"];

/// How long pods and rules may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a load.
const LOOK: Duration = Duration::from_millis(500);

/// How far a count may be from its share, in standard deviations of as many draws.
const SIGMAS: f64 = 5.0;

/// The mesh and its audience.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Served,
    pub(super) screen: Screen,
    pub(super) claims: Vec<Claim>,
}

/// A picture of what was seen so far: as one line, and as a block.
pub(super) type Picture = (String, Vec<String>);

// === impl Stage: manifests ===

impl Stage {
    /// Applies an application, and waits until all pods are in the mesh.
    pub(super) fn raise(&mut self, file: &str) -> anyhow::Result<()> {
        self.application(file)?;
        self.lab.wait_enrolled()
    }

    /// Applies another version of a Deployment, and waits until its old pods are gone.
    pub(super) fn replace(&mut self, file: &str, deployment: &str) -> anyhow::Result<()> {
        let old = self.pods_of(deployment)?;
        self.application(file)?;
        wait_for(PATIENCE, &format!("the old pods of {deployment} to go"), || {
            let now = self.pods_of(deployment)?;
            Ok((!old.iter().any(|pod| now.contains(pod))).then_some(()))
        })?;
        self.lab.wait_enrolled()
    }

    /// Applies manifests of which only what they say about themselves is shown.
    fn application(&mut self, file: &str) -> anyhow::Result<()> {
        self.told(file, "")?;
        let text = sample(file)?;
        let about = text.lines().take_while(|line| line.starts_with('#'));
        about.map(|line| format!("    {line}")).try_for_each(|line| self.screen.line(&line))?;
        self.lab.apply(&text)
    }

    /// Pods of a Deployment, `namespace/name`.
    pub(super) fn pods_of(&self, deployment: &str) -> anyhow::Result<Vec<String>> {
        let prefix = format!("default/{deployment}-");
        let pods = self.lab.pods()?.into_iter().map(|pod| pod.name);
        Ok(pods.filter(|name| name.starts_with(&prefix)).collect())
    }

    /// Shows rules, applies them, and waits until every agent has them.
    pub(super) fn rule(&mut self, file: &str) -> anyhow::Result<()> {
        let text = sample(file)?;
        self.told(file, "")?;
        let shown = text.lines().map(|line| format!("    {line}"));
        shown
            .map(|line| line.trim_end().to_owned())
            .try_for_each(|line| self.screen.line(&line))?;
        self.in_force(|lab| lab.apply(&text))
    }

    /// The same with other words in some places, which are all that is shown.
    pub(super) fn edited(&mut self, file: &str, changes: &[(&str, String)]) -> anyhow::Result<()> {
        let mut text = sample(file)?;
        for (from, to) in changes {
            ensure!(text.matches(from).count() == 1, "{file}: `{from}` is not there once");
            text = text.replace(from, to);
        }
        let told = changes.iter().filter(|(from, to)| from != to);
        let told: Vec<String> = told.map(|(from, to)| format!("{from} -> {to}")).collect();
        let how = if told.is_empty() { String::new() } else { format!(", {}", told.join(", ")) };
        self.told(file, &how)?;
        self.in_force(|lab| lab.apply(&text))
    }

    /// Deletes an object, and waits until every agent has forgotten it.
    pub(super) fn delete(&mut self, kind: &str, name: &str) -> anyhow::Result<()> {
        self.screen.line(&format!("  delete {kind} {name}"))?;
        self.in_force(|lab| lab.delete(kind, "default", name))
    }

    fn told(&mut self, file: &str, how: &str) -> anyhow::Result<()> {
        self.screen.line(&format!("  apply deploy/samples/{file}{how}"))
    }

    fn in_force(
        &mut self,
        change: impl FnOnce(&Served) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let before = self.generations()?;
        let start = Instant::now();
        change(&self.lab)?;
        wait_for(PATIENCE, "the rules to be in force", || {
            let now = self.generations()?;
            Ok(before.iter().zip(now).all(|(before, now)| now > *before).then_some(()))
        })?;
        let millis = start.elapsed().as_millis();
        self.screen.line(&format!("  In force at both nodes after {millis} ms."))
    }

    fn generations(&self) -> anyhow::Result<Vec<u64>> {
        let generation = |node: &&str| {
            let status = self.lab.meshctl(node, &["-o", "json", "status"])?;
            let status: Value = serde_json::from_str(&status)?;
            status["generation"].as_u64().context("an agent without a generation")
        };
        NODES.iter().map(generation).collect()
    }
}

// === impl Stage: traffic ===

impl Stage {
    /// Starts `malha-load http WORDS` in a pod.
    pub(super) fn load(&self, pod: &str, words: &[&str]) -> anyhow::Result<Load> {
        let fixed = ["malha-load", "http", "--lines"];
        Load::start(&mut self.lab.command_in(pod, &[&fixed, words].concat())?)
    }

    /// What a command in a pod writes.
    pub(super) fn output(&self, pod: &str, words: &[&str]) -> anyhow::Result<String> {
        let mut command = self.lab.command_in(pod, words)?;
        let output = command.stdin(Stdio::null()).output().context("start a command in a pod")?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Draws what a load sees from now on, until `enough`; those requests.
    pub(super) fn watch(
        &mut self,
        load: &Load,
        enough: impl Fn(&[Line], Duration) -> bool,
        picture: impl Fn(&[Line]) -> Picture,
    ) -> anyhow::Result<Vec<Line>> {
        let from = load.seen().len();
        self.watch_from(load, from, enough, picture)
    }

    /// The same of all requests but the first `from`.
    pub(super) fn watch_from(
        &mut self,
        load: &Load,
        from: usize,
        enough: impl Fn(&[Line], Duration) -> bool,
        picture: impl Fn(&[Line]) -> Picture,
    ) -> anyhow::Result<Vec<Line>> {
        let start = Instant::now();
        loop {
            std::thread::park_timeout(LOOK);
            let lines = load.seen().split_off(from);
            let (line, block) = picture(&lines);
            if enough(&lines, start.elapsed()) {
                self.screen.settle(&block)?;
                return Ok(lines);
            }
            ensure!(start.elapsed() < PATIENCE, "not seen in {} s: {line}", PATIENCE.as_secs());
            self.screen.progress(&line, &block)?;
        }
    }

    /// Something that was checked.
    pub(super) fn claim(&mut self, good: bool, text: impl Into<String>) {
        self.claims.push((good, text.into()));
    }
}

// === counting ===

/// For [`Stage::watch`]: so many seconds.
pub(super) fn seconds(count: f64) -> impl Fn(&[Line], Duration) -> bool {
    move |_, passed| passed.as_secs_f64() >= count
}

/// For [`Stage::watch`]: so many requests.
pub(super) fn requests(count: usize) -> impl Fn(&[Line], Duration) -> bool {
    move |lines, _| lines.len() >= count
}

/// Requests of which something is so.
pub(super) fn count(lines: &[Line], is: impl Fn(&Line) -> bool) -> usize {
    lines.iter().filter(|line| is(line)).count()
}

/// Requests with this status; 0: not answered.
pub(super) fn with_status(lines: &[Line], status: u16) -> usize {
    count(lines, |line| line.status == status)
}

/// How far a count of so many draws may be from its share, besides those in flight at a change.
pub(super) fn allowed(total: usize, share: f64, in_flight: usize) -> f64 {
    SIGMAS * (total as f64 * share * (1.0 - share)).sqrt() + in_flight as f64
}

/// Whether a count is as near to its share as chance lets it.
pub(super) fn near(found: usize, total: usize, share: f64, in_flight: usize) -> bool {
    (found as f64 - total as f64 * share).abs() <= allowed(total, share, in_flight)
}

/// The time in milliseconds that half of these took at most.
pub(super) fn median(lines: &[Line]) -> u64 {
    let mut took: Vec<u64> = lines.iter().map(|line| line.took).collect();
    took.sort_unstable();
    took.get(took.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
pub(super) fn line(number: u64, at: u64, status: u16) -> Line {
    Line {
        number,
        at,
        took: at,
        status,
        header: String::new(),
        body: String::new(),
        error: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_not_followed_is_noticed() {
        assert!(near(100, 1000, 0.1, 0) && near(60, 1000, 0.1, 0));
        assert!(!near(150, 1000, 0.1, 0) && !near(250, 1000, 0.1, 4));
        assert!(near(4, 1000, 0.0, 4) && !near(5, 1000, 0.0, 4));
    }

    #[test]
    fn half_take_the_median_at_most() {
        let lines: Vec<Line> = [9, 1, 500].iter().map(|took| line(0, *took, 200)).collect();
        assert_eq!((median(&lines), median(&[])), (9, 0));
        assert_eq!((with_status(&lines, 200), with_status(&lines, 503)), (3, 0));
    }
}
