//! fortio, the load generator of Istio's own samples, built from its Go module.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::tool::{output, say, shown};

/// Later versions embed a script language whose module not every proxy serves.
const VERSION: &str = "v1.66.5";

/// Builds it once, into `target/peers`.
///
/// # Errors
/// There is no Go and none can be fetched, or the module cannot be fetched or built.
pub fn fortio() -> anyhow::Result<PathBuf> {
    let dir = super::cache().join(format!("fortio-{VERSION}"));
    let path = dir.join("fortio");
    if path.is_file() {
        return Ok(path);
    }
    let go = super::go()?;
    std::fs::create_dir_all(&dir)?;
    let mut command = Command::new(go);
    command
        .args(["install", &format!("fortio.org/fortio@{VERSION}")])
        .env("GOBIN", &dir)
        .env("CGO_ENABLED", "0")
        .current_dir("/");
    say(&format!("$ {}", shown(&command)));
    output(&mut command).context("build fortio")?;
    ensure!(path.is_file(), "go has built no {}", path.display());
    Ok(path)
}
