//! `cargo xtask manifest`: the chart rendered as one file, `deploy/malha.yaml`, for `kubectl apply`,
//! Kustomize and `meshctl install`, which has it built in.
//!
//! Invariant: the committed file is what the chart renders with its own values; `tests/kube.rs` says so.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::Args;

use crate::kube;
use crate::tool::{output, say, workspace};

/// Where the chart goes if nobody says otherwise.
const NAMESPACE: &str = "malha-system";

/// The namespace comes first. Agents ask for privileges that Pod Security Admission refuses in a
/// namespace without the label, where the cluster's default is not `privileged`.
const HEAD: &str = "\
# Made by `cargo xtask manifest` from deploy/chart: do not edit.
apiVersion: v1
kind: Namespace
metadata:
  name: malha-system
  labels:
    app.kubernetes.io/part-of: malha
    pod-security.kubernetes.io/enforce: privileged
";

/// Options of `cargo xtask manifest`.
#[derive(Clone, Debug, Default, Args)]
pub struct ManifestArgs {
    /// Where to write it [default: deploy/malha.yaml]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Writes the manifest.
///
/// # Errors
/// There is no Helm, the chart does not render, or the file cannot be written.
pub fn run(args: &ManifestArgs) -> anyhow::Result<()> {
    let out = args.out.clone().unwrap_or_else(path);
    fs::write(&out, text()?).with_context(|| format!("write {}", out.display()))?;
    say(&format!("wrote {}", out.display()));
    Ok(())
}

/// The committed file.
#[must_use]
pub fn path() -> PathBuf {
    workspace().join("deploy/malha.yaml")
}

/// The text that the file is to have.
///
/// # Errors
/// There is no Helm, or the chart does not render.
pub fn text() -> anyhow::Result<String> {
    let crds = workspace().join("deploy/chart/crds/malha-crds.yaml");
    let crds = fs::read_to_string(&crds).with_context(|| format!("read {}", crds.display()))?;
    // Their first line says who made them, as ours does.
    let (_, crds) = crds.split_once('\n').unwrap_or_default();
    Ok(format!("{HEAD}{crds}{}", render(NAMESPACE, &[])?))
}

/// What Helm makes of the chart with these settings (`key=value`), without hooks and definitions, and
/// without what is only true of a release of Helm's.
///
/// # Errors
/// There is no Helm, or the chart does not render.
pub fn render(namespace: &str, values: &[&str]) -> anyhow::Result<String> {
    let helm = kube::program("helm")?;
    let mut command = Command::new(helm);
    command.args(["template", "malha"]).arg(workspace().join("deploy/chart"));
    command.args(["--namespace", namespace, "--no-hooks"]);
    for value in values {
        command.args(["--set", value]);
    }
    let rendered = output(&mut command)?;
    let is_ours = |line: &&str| {
        !line.starts_with("# Source: ") && !line.contains("app.kubernetes.io/managed-by: Helm")
    };
    let mut text = String::new();
    for line in rendered.lines().filter(is_ours) {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}
