//! What the demo asks its mesh: pods, routes and peers as the agents know them (`meshctl -o json`),
//! and traffic from a pod (`malha-load`).

use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::lab::server::Served;

/// The pod that makes the requests.
pub(super) const CLIENT: &str = "default/client";

/// What it asks.
pub(super) const SERVICE: &str = "nginx-service";
const URL: &str = "http://nginx-service:8000/";

/// A pod as an agent knows it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ips: Vec<String>,
    pub(super) identity: String,
    pub(super) state: String,
}

/// A connection that an agent has open.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) direction: String,
    pub(super) workload: String,
    pub(super) source: String,
    pub(super) destination: String,
    /// Identity that the peer has proved; empty without a tunnel.
    pub(super) peer: String,
    pub(super) state: String,
}

/// Where requests for the service go.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Routes {
    pub(super) virtual_service: String,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Deserialize)]
struct Rule {
    destinations: Vec<Destination>,
}

#[derive(Clone, Debug, Deserialize)]
struct Destination {
    subset: String,
    weight: u32,
}

#[derive(Deserialize)]
struct Workloads {
    workloads: Vec<Workload>,
}

#[derive(Deserialize)]
struct Connections {
    connections: Vec<Connection>,
}

/// What `malha-load` reports, as far as we look at it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Report {
    requests: u64,
    failed: u64,
    #[serde(default)]
    bodies: Vec<Body>,
    connections: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Body {
    value: String,
    count: u64,
}

/// Answers by version, and everything that was no such answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) failed: u64,
}

/// A load that runs until it is ended.
#[derive(Debug)]
pub(super) struct Steady(Child);

/// Pods by node and name, as the agent of node1 knows them.
pub(super) fn workloads(lab: &Served) -> anyhow::Result<Vec<Workload>> {
    let text = lab.meshctl("node1", &["workloads", "-o", "json"])?;
    let mut workloads = serde_json::from_str::<Workloads>(&text)?.workloads;
    workloads.sort_by(|one, other| (&one.node, &one.name).cmp(&(&other.node, &other.name)));
    Ok(workloads)
}

/// What a node's agent has open.
pub(super) fn connections(lab: &Served, node: &str) -> anyhow::Result<Vec<Connection>> {
    let text = lab.meshctl(node, &["connections", "-o", "json"])?;
    Ok(serde_json::from_str::<Connections>(&text)?.connections)
}

/// Where the client's agent sends requests for the service.
pub(super) fn routes(lab: &Served) -> anyhow::Result<Routes> {
    let text = lab.meshctl("node1", &["routes", SERVICE, "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// Requests one after the other from the client pod, for some seconds.
pub(super) fn batch(lab: &Served, seconds: f64, rate: f64) -> anyhow::Result<Counts> {
    let mut load = load(lab, rate, &["--duration", &seconds.to_string()])?;
    let output = load.stdin(Stdio::null()).output().context("start malha-load")?;
    Ok(report(&output)?.counts())
}

/// Requests from the client pod on one connection, until they are ended.
pub(super) fn steady(lab: &Served, rate: f64) -> anyhow::Result<Steady> {
    let mut load = load(lab, rate, &["--until-eof"])?;
    load.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(Steady(load.spawn().context("start malha-load")?))
}

fn load(lab: &Served, rate: f64, more: &[&str]) -> anyhow::Result<Command> {
    let rate = rate.to_string();
    let command = [&["malha-load", "http", "--rate", &rate], more, &[URL]].concat();
    lab.command_in(CLIENT, &command)
}

fn report(output: &std::process::Output) -> anyhow::Result<Report> {
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "malha-load: {}: {}", output.status, error.trim());
    serde_json::from_slice(&output.stdout).context("malha-load's report")
}

// === impl Workload ===

impl Workload {
    /// `namespace/name`.
    pub(super) fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// === impl Routes ===

impl Routes {
    /// `(subset, weight)` of the first rule.
    pub(super) fn weights(&self) -> Vec<(&str, u32)> {
        let destinations = self.rules.iter().take(1).flat_map(|rule| &rule.destinations);
        destinations.map(|to| (to.subset.as_str(), to.weight)).collect()
    }
}

// === impl Steady ===

impl Steady {
    /// Ends it: what came back, and on how many connections.
    pub(super) fn end(mut self) -> anyhow::Result<(Counts, u64)> {
        drop(self.0.stdin.take());
        let report = report(&self.0.wait_with_output()?)?;
        Ok((report.counts(), report.connections))
    }
}

// === impl Report ===

impl Report {
    /// An answer that is neither version's, such as an error page, has failed.
    fn counts(&self) -> Counts {
        let of = |value: &str| {
            self.bodies.iter().filter(|body| body.value == value).map(|body| body.count).sum()
        };
        let (a, b): (u64, u64) = (of("Full Cycle A"), of("Full Cycle B"));
        Counts { a, b, failed: self.failed.max(self.requests.saturating_sub(a + b)) }
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn total(&self) -> u64 {
        self.a + self.b
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.a += more.a;
        self.b += more.b;
        self.failed += more.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_neither_version_has_failed() {
        let text = r#"{"requests":10,"failed":1,"connections":1,"bodies":[
            {"value":"Full Cycle A","count":6},{"value":"no healthy upstream","count":3}]}"#;
        let report: Report = serde_json::from_str(text).unwrap();
        assert_eq!(report.counts(), Counts { a: 6, b: 0, failed: 4 });
    }
}
