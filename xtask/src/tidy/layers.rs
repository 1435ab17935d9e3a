//! Which module of the agent may know which: imports point to a lower rank only.
//!
//! The table is DESIGN's and ARCHITECTURE.md's. It looks at `crate::x` in code, also in groups
//! (`use crate::{a, b::c}`), and at chains of `super::` that reach the crate's root.

use std::collections::BTreeMap;

use super::Report;
use super::source::{Source, has_word, is_word};

const AGENT: &str = "mesh-agent/src/";

/// Modules of the agent by rank. Modules of one rank are strangers.
const RANKS: [(&str, u8); 18] = [
    ("model", 0),
    ("api", 0),
    ("waits", 0),
    ("config", 1),
    ("capture", 1),
    ("identity", 1),
    ("origination", 1),
    ("balance", 1),
    ("authz", 1),
    ("telemetry", 1),
    ("tunnel", 2),
    ("dns", 2),
    ("http", 3),
    ("proxy", 4),
    ("admin", 5),
    ("cli", 5),
    ("authority", 5),
    ("agent", 6),
];

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// The top module that a file of the agent's library belongs to, and how deep the file's own
/// module lies under the root.
fn module(path: &str) -> Option<(&str, usize)> {
    let path = path.strip_prefix(AGENT)?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let top = path.split('/').next()?;
    // lib.rs names them all, and programs see the library from outside.
    (top != "lib" && top != "bin").then(|| (top, path.split('/').count()))
}

/// Checks the imports of one file.
pub(super) fn check(source: &Source<'_>, report: &mut Report) {
    let Some((own, depth)) = module(source.path) else { return };
    let Some(own_rank) = rank(own) else { return };
    for (offset, name) in imports(&source.code) {
        let line = source.line_of(offset);
        // A name in lower case that is no module of ours is a function or macro of the root.
        let Some(other_rank) = rank(name) else { continue };
        if name == own || other_rank < own_rank {
            continue;
        }
        let relation = if other_rank == own_rank { "of the same rank as" } else { "above" };
        report.fail(
            source.path,
            line,
            format!(
                "`{own}` imports `{name}`, which is {relation} it: an import may only point to a \
                 lower rank, so that each module can be read alone (ARCHITECTURE.md)"
            ),
        );
    }
    for (line, text) in source.code_lines() {
        let inside = usize::from(line >= source.tests_from && !is_tests_file(source.path));
        if longest_super(text) >= depth + inside {
            report.fail(
                source.path,
                line,
                "this `super::` reaches the crate's root: write `crate::`, which the check of \
                 layers reads",
            );
        }
    }
}

fn is_tests_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// Modules named right after `crate::`, with their offset.
fn imports(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (offset, word) in code.match_indices("crate::") {
        // `$crate::` and `mycrate::` are others.
        if !is_word(code, offset, word) || code.get(..offset).is_some_and(|t| t.ends_with('$')) {
            continue;
        }
        let start = offset + word.len();
        match code.get(start..) {
            Some(rest) if rest.starts_with('{') => group(code, start + 1, &mut found),
            Some(rest) => found.push((start, name(rest))),
            None => {}
        }
    }
    found
}

/// The first names of a group's members: `{a::{x, y}, b}` gives `a` and `b`.
fn group<'a>(code: &'a str, start: usize, found: &mut Vec<(usize, &'a str)>) {
    let mut depth = 0_usize;
    let mut expect_name = true;
    for (offset, c) in code.char_indices().skip_while(|(offset, _)| *offset < start) {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => expect_name = true,
            c if expect_name && (c.is_alphanumeric() || c == '_') => {
                expect_name = false;
                found.push((offset, code.get(offset..).map_or("", name)));
            }
            _ => {}
        }
    }
}

fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.get(..end).unwrap_or("")
}

/// The number of `super::` in the longest chain of a line.
fn longest_super(line: &str) -> usize {
    let mut longest = 0;
    let mut rest = line;
    while let Some(offset) = rest.find("super::") {
        rest = rest.get(offset..).unwrap_or("");
        let mut length = 0;
        while let Some(after) = rest.strip_prefix("super::") {
            length += 1;
            rest = after;
        }
        longest = longest.max(length);
    }
    longest
}

/// Checks that the modules in `lib.rs` are in the table and in ARCHITECTURE.md.
pub(super) fn check_modules(files: &[(String, String)], report: &mut Report) {
    let text = |name: &str| files.iter().find(|(path, _)| path == name).map(|(_, text)| text);
    let lib = format!("{AGENT}lib.rs");
    let Some(lib_text) = text(&lib) else { return };
    let declared: BTreeMap<&str, usize> = (1..)
        .zip(lib_text.lines())
        .filter_map(|(line, text)| {
            let name = text.trim().strip_prefix("pub ").unwrap_or(text).strip_prefix("mod ")?;
            Some((name.strip_suffix(';')?, line))
        })
        .collect();
    let architecture = text("ARCHITECTURE.md");
    if architecture.is_none() {
        report.fail("ARCHITECTURE.md", 0, "the map of the code is missing");
    }
    for (module, line) in declared {
        if rank(module).is_none() {
            let message = format!("`{module}` has no rank: add it to the table of tidy's layers");
            report.fail(&lib, line, message);
        }
        if architecture.is_some_and(|text| !has_word(text, module)) {
            report.fail("ARCHITECTURE.md", 0, format!("does not name the module `{module}`"));
        }
    }
}
