//! Tests that need root: how they say that they did not run.
//!
//! A skip is never silent: the line goes past the test harness's capture, is counted by
//! `cargo xtask test`, and fails CI.

use crate::tool::say;

/// What the line of a skipped test begins with.
pub(super) const MARK: &str = "SKIPPED (privileged)";

/// Whether this process may load eBPF programs and make network namespaces.
#[must_use]
pub fn privileged() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says loudly that `test` did not run. The caller returns right after.
pub fn skipped(test: &str) {
    say(&format!("{MARK}: {test}"));
}
