//! The repository keeps its own rules.

use xtask::tidy::check;
use xtask::tool::workspace;

#[test]
fn the_repository_is_tidy() {
    let report = check(workspace()).unwrap();
    let failures: Vec<_> = report.failures.iter().map(|failure| format!("\n{failure}")).collect();
    assert!(failures.is_empty(), "{}", failures.concat());
}
