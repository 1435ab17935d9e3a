//! Words that must stand, or must not stand, in a file.

use super::Report;
use super::source::{Source, has_word};

/// Long for a file; tests do not count.
const LONG_FILE: usize = 600;

/// Long for a line: rustfmt breaks code, but not comments and strings.
const LONG_LINE: usize = 100;

/// The only places where `unsafe` may stand: each behind a safe surface.
const UNSAFE: [&str; 7] = [
    "mesh-ebpf/src/ctx.rs",
    "mesh-ebpf/src/maps.rs",
    "mesh-common/src/maps.rs",
    "mesh-agent/src/capture/direct.rs",
    "mesh-agent/src/capture/loader.rs",
    "mesh-agent/src/capture/socket.rs",
    "mesh-agent/tests/capture/checks.rs",
];

/// Where Kubernetes types may be named; the data path knows only `model`.
const KUBERNETES: [&str; 4] = [
    "mesh-agent/src/config/",
    "mesh-agent/src/authority/",
    "mesh-agent/src/cli/install",
    "mesh-agent/tests/kube/",
];

/// Pure code: `now` and `draw` are parameters. A file whose header says `Pure.` is bound too.
const PURE: [&str; 6] = [
    "mesh-agent/src/model/",
    "mesh-agent/src/authz/",
    "mesh-agent/src/balance/",
    "mesh-agent/src/config/compile/",
    "mesh-agent/src/tunnel/wire/",
    "mesh-agent/src/identity/rotation",
];

/// Where a pure module reads the clock, and does nothing else.
const CLOCKS: [&str; 1] = ["mesh-agent/src/balance/clock.rs"];

/// What pure code does not do.
const IMPURE: [(&str, &str); 6] = [
    ("Instant::now", "take `now` as a parameter"),
    ("SystemTime::now", "take `now` as a parameter"),
    ("elapsed()", "take `now` as a parameter"),
    ("rand::", "take the drawn number as a parameter"),
    ("getrandom", "take the drawn number as a parameter"),
    ("await", "waiting belongs to the caller"),
];

/// Checks one Rust file.
pub(super) fn check(source: &Source<'_>, report: &mut Report) {
    let path = source.path;
    if !source.text.starts_with("//!") {
        report.fail(
            path,
            1,
            "does not begin with `//!`: what the file is, what it is not, its invariant, its source",
        );
    }
    for (line, code) in source.code_lines() {
        if has_word(code, "unsafe") && !UNSAFE.contains(&path) {
            report.fail(path, line, "`unsafe` outside the files that tidy lists for it");
        }
        let names_kubernetes = has_word(code, "kube::") || has_word(code, "k8s_openapi");
        if names_kubernetes
            && path.starts_with("mesh-agent/")
            && !KUBERNETES.iter().any(|prefix| path.starts_with(prefix))
        {
            let places = "config, authority and cli/install";
            report.fail(path, line, format!("only {places} may name Kubernetes types"));
        }
    }
    for (line, comment) in source.comment_lines() {
        for marker in ["TODO", "FIXME", "XXX"] {
            if has_word(comment, marker) && !has_issue(comment) {
                let message = format!("a {marker} needs the number of an issue: `TODO(#12)`");
                report.fail(path, line, message);
            }
        }
    }
    pure(source, report);
    lengths(source, report);
}

fn pure(source: &Source<'_>, report: &mut Report) {
    let listed =
        PURE.iter().any(|prefix| source.path.starts_with(prefix)) && !CLOCKS.contains(&source.path);
    if !listed && !has_word(&source.header(), "Pure.") {
        return;
    }
    for (line, code) in source.code_lines().take_while(|(line, _)| *line < source.tests_from) {
        for (word, instead) in IMPURE {
            if has_word(code, word) {
                report.fail(source.path, line, format!("`{word}` in pure code: {instead}"));
            }
        }
    }
}

fn lengths(source: &Source<'_>, report: &mut Report) {
    let length = source.text.lines().count().min(source.tests_from - 1);
    if length > LONG_FILE {
        let message = format!("{length} lines before the tests: a reason to look again");
        report.note(source.path, 0, message);
    }
    // Tests hold data whose lines mean something.
    for (line, text) in (1..source.tests_from).zip(source.text.lines()) {
        let columns = text.chars().count();
        if columns > LONG_LINE {
            report.note(source.path, line, format!("{columns} columns"));
        }
    }
}

/// Whether a comment names an issue by number.
fn has_issue(comment: &str) -> bool {
    comment.split('#').skip(1).any(|after| after.starts_with(|c: char| c.is_ascii_digit()))
}

/// Paths that exist on one machine only mean nothing to the reader.
pub(super) fn machine_paths(path: &str, text: &str, report: &mut Report) {
    // In pieces, so that this file passes its own check.
    let patterns = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/.c")];
    for (line, text) in (1..).zip(text.lines()) {
        for pattern in patterns {
            let mut places = text.match_indices(pattern);
            // `a/work/b` is a part of another path.
            let starts_path = |offset: usize| {
                let before = text.get(..offset).and_then(|text| text.chars().next_back());
                !before.is_some_and(|c| c.is_alphanumeric() || "._-/}".contains(c))
            };
            if places.any(|(offset, _)| starts_path(offset)) {
                report.fail(path, line, format!("`{pattern}`: a path of one machine"));
            }
        }
    }
}
