//! `meshctl check`: what would keep the mesh from working on a cluster, what keeps it from working, and how
//! to mend either.
//!
//! `facts` asks the API server; `cluster`, `policies` and `mesh` judge, purely; `node` looks at the machine
//! that it runs on. Invariant: a finding that is not well says what to do.

mod cluster;
mod facts;
mod mesh;
mod node;
mod policies;
mod selection;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::cluster::{Access, Cluster};
use super::settings::Settings;
use crate::cli::{Format, table};
use facts::Facts;

/// `meshctl check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Which cluster.
    #[command(flatten)]
    pub access: Access,
    /// Only what an installation needs, also where the mesh is there already.
    #[arg(long, conflicts_with = "node")]
    pub pre: bool,
    /// Look at the machine that this runs on, not at the cluster: `kubectl exec -n malha-system
    /// ds/malha-agent -- meshctl check --node`.
    #[arg(long)]
    pub node: bool,
    /// With --node, root of the cgroup v2 hierarchy [default: /host/cgroup in an agent's pod, else
    /// /sys/fs/cgroup].
    #[arg(long, value_name = "PATH", requires = "node")]
    pub cgroup: Option<PathBuf>,
    /// With --node, where BPF file systems are mounted [default: /host/bpf in an agent's pod, else
    /// /sys/fs/bpf].
    #[arg(long, value_name = "PATH", requires = "node")]
    pub bpf: Option<PathBuf>,
}

/// When a cluster is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Before the mesh is put on it.
    Before,
    /// Once it is there.
    After,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// The mesh works, but not as one might expect.
    Warning,
    /// It does not work, or not safely.
    Failed,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    /// What to do; empty if there is nothing to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) fix: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), fix: String::new() }
    }

    fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Warning, found: found.into(), fix: fix.into() }
    }

    fn failed(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state: State::Failed, found: found.into(), fix: fix.into() }
    }
}

/// Looks at a cluster. `namespace` is that of the mesh.
///
/// # Errors
/// The API server cannot be asked.
pub(super) async fn of_cluster(
    cluster: &Cluster,
    stage: Stage,
    namespace: Option<&str>,
    settings: &Settings,
) -> anyhow::Result<Vec<Finding>> {
    let facts = Facts::gather(cluster, stage).await.context("cannot look at the cluster")?;
    let mut findings = cluster::judge(&facts, stage, settings);
    findings.extend(policies::judge(&facts, settings));
    findings.extend(mesh::judge(&facts, stage, namespace, settings));
    Ok(findings)
}

/// Looks at this machine.
pub(super) fn of_node(options: &CheckOptions) -> Vec<Finding> {
    node::judge(options.cgroup.as_deref(), options.bpf.as_deref())
}

/// Whether nothing has failed.
pub(super) fn are_well(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != State::Failed)
}

/// Those that have.
pub(super) fn bad(findings: &[Finding]) -> Vec<Finding> {
    findings.iter().filter(|finding| finding.state == State::Failed).cloned().collect()
}

/// As text.
///
/// # Errors
/// They cannot be written as JSON: a fault of ours.
pub(super) fn print(findings: &[Finding], format: Format) -> anyhow::Result<String> {
    if format == Format::Json {
        return Ok(serde_json::to_string_pretty(findings)? + "\n");
    }
    let rows = findings.iter().map(|finding| {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "FAILED",
        };
        [state.to_owned(), finding.check.to_owned(), finding.found.clone()]
    });
    let mut text = table::list(["STATE", "CHECK", "FOUND"], rows, "Nothing was checked.");
    let mut is_first = true;
    for finding in findings.iter().filter(|finding| !finding.fix.is_empty()) {
        if std::mem::take(&mut is_first) {
            text.push_str("\nWhat to do:\n");
        }
        text.push_str(&format!("- {}: {}\n", finding.check, finding.fix));
    }
    Ok(text)
}

/// The first of some names, and how many more there are.
fn some(names: &[String]) -> String {
    const NAMED: usize = 4;
    let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("kernel", "6.1.0 and newer"),
            Finding::warning("Gateway API", "not installed", "install it"),
            Finding::failed("Istio", "istiod runs", "switch it off"),
        ]
    }

    #[test]
    fn as_a_table_with_what_to_do() {
        let wanted = expect![[r#"
            STATE     CHECK         FOUND
            ok        kernel        6.1.0 and newer
            warning   Gateway API   not installed
            FAILED    Istio         istiod runs

            What to do:
            - Gateway API: install it
            - Istio: switch it off
        "#]];
        wanted.assert_eq(&print(&findings(), Format::Table).unwrap());
        assert!(!are_well(&findings()));
        assert_eq!(bad(&findings()).len(), 1);
    }

    #[test]
    fn as_json() {
        let text = print(&findings(), Format::Json).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            read[0],
            serde_json::json!({
                "check": "kernel", "state": "ok", "found": "6.1.0 and newer",
            })
        );
        assert_eq!(read[2]["fix"], "switch it off");
    }

    #[test]
    fn names_are_cut() {
        let names = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
        assert_eq!(some(&names[..2]), "a, b");
        assert_eq!(some(&names), "a, b, c, d and 2 more");
    }
}
