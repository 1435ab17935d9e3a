//! `cargo xtask tidy`: the house rules that a machine can check. Also a test (`tests/tidy.rs`).
//!
//! It reads text, not syntax trees: fast, and wrong only on code that nobody should write. Failures
//! stop a merge; notes are reasons to look again. Rules and reasons: CONTRIBUTING.md.

mod ebpf;
mod layers;
mod source;
mod words;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use crate::tool::{say, workspace};
use source::Source;

/// Folders that hold nothing we wrote.
const SKIPPED: [&str; 4] = ["target", ".git", "node_modules", "corpus"];

/// Files whose text is checked.
const ENDINGS: [&str; 8] = ["rs", "md", "toml", "yaml", "yml", "json", "sh", "proto"];

/// Files without an ending that are checked too.
const NAMES: [&str; 1] = ["run"];

/// Options of `cargo xtask tidy`.
#[derive(Clone, Debug, Default, Args)]
pub struct TidyArgs {
    /// Another checkout to look at; this one if absent
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What a rule has to say about a line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the root of the repository.
    pub file: String,
    /// From 1; 0 if the whole file is meant.
    pub line: usize,
    /// What is wrong and why it matters.
    pub message: String,
}

/// The result of a check.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What must be changed.
    pub failures: Vec<Finding>,
    /// What deserves a look.
    pub notes: Vec<Finding>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Checks a repository and prints what was found.
///
/// # Errors
/// A rule is broken, or a file cannot be read.
pub fn run(args: &TidyArgs) -> anyhow::Result<()> {
    let report = check(args.root.as_deref().unwrap_or(workspace()))?;
    for note in &report.notes {
        say(&format!("note: {note}"));
    }
    for failure in &report.failures {
        say(&format!("error: {failure}"));
    }
    let count = report.failures.len();
    ensure!(count == 0, "tidy: {count} broken rules");
    say(&format!("tidy: no broken rules, {} notes", report.notes.len()));
    Ok(())
}

/// Checks the repository at `root`.
///
/// # Errors
/// A file cannot be read.
pub fn check(root: &Path) -> anyhow::Result<Report> {
    let mut files = Vec::new();
    collect(root, root, &mut files)?;
    Ok(check_files(&files))
}

/// Checks files by path and text; the order of findings is that of the paths.
fn check_files(files: &[(String, String)]) -> Report {
    let mut report = Report::default();
    for (path, text) in files {
        words::machine_paths(path, text, &mut report);
        if path.ends_with(".rs") {
            let source = Source::new(path, text);
            words::check(&source, &mut report);
            layers::check(&source, &mut report);
        }
    }
    layers::check_modules(files, &mut report);
    ebpf::check(files, &mut report);
    report.failures.sort();
    report.notes.sort();
    report
}

/// Text files under `folder`, as paths from `root` with their content.
fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let entries = folder.read_dir().with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(root, &path, files)?;
            }
        } else if name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending))
            || NAMES.contains(&name.as_str())
        {
            let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
            let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
            files.push((relative, text));
        }
    }
    Ok(())
}

impl Report {
    fn fail(&mut self, file: &str, line: usize, message: impl Into<String>) {
        self.failures.push(Finding { file: file.to_owned(), line, message: message.into() });
    }

    fn note(&mut self, file: &str, line: usize, message: impl Into<String>) {
        self.notes.push(Finding { file: file.to_owned(), line, message: message.into() });
    }
}
