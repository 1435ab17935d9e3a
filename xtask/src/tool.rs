//! Finding and running other programs, for the commands that build and check.
//!
//! Every command that takes time is shown before it runs, so that it can be repeated by hand.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// Debian keeps administrators' programs here, which is not on every PATH.
const EXTRA_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// The root of this repository.
#[must_use]
pub fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The first executable of this name on PATH, or where Debian puts such programs.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = EXTRA_PATH.iter().map(PathBuf::from);
    std::env::split_paths(&path).chain(cargo_bin()).chain(extra).map(|dir| dir.join(program)).find(
        |file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        },
    )
}

/// The same of a program that set-up installs.
///
/// # Errors
/// It is not there.
pub fn installed(program: &str) -> anyhow::Result<PathBuf> {
    find(program).with_context(|| format!("{program} is not installed: run `cargo xtask setup`"))
}

/// Where `cargo install` puts programs.
#[must_use]
pub fn cargo_bin() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    Some(home.or_else(|| Some(std::env::home_dir()?.join(".cargo")))?.join("bin"))
}

/// The cargo that runs us, or the one on PATH.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    without_our_package(&mut command);
    command
}

/// Takes out what `cargo run` says about xtask's own package. Build scripts watch these variables
/// (ring's does): with them, what a plain `cargo build` has built would be built again.
pub fn without_our_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
}

/// This program's file. A build that we started may have put a new one in its place: then the
/// kernel's name for the old one ends in ` (deleted)` (proc(5)), and the new one is meant.
///
/// # Errors
/// `/proc` is not there.
pub fn own_program() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("find our own program")?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(replaced.map(PathBuf::from).unwrap_or(path))
}

/// The command as one would type it, with the variables it sets.
#[must_use]
pub fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(quoted);
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    if text.contains(char::is_control) {
        let escaped = text.replace('\\', r"\\").replace('\'', r"\'");
        let control = |c: char| format!("\\x{:02x}", u32::from(c));
        let letter = |c: char| if c.is_control() { control(c) } else { c.into() };
        return format!("$'{}'", escaped.chars().map(letter).collect::<String>());
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Shows the command, runs it with our output as its own, and wants it to succeed.
///
/// # Errors
/// It cannot be started, or it failed.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    say(&format!("$ {}", shown(command)));
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", shown(command));
    Ok(())
}

/// Runs the command and returns what it wrote, without a line of its own on our output.
///
/// # Errors
/// It cannot be started, or it failed; what it wrote to standard error is in the message.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {}", shown(command)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", shown(command), output.status, text.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One line for the person who watches.
pub fn say(line: &str) {
    use std::io::Write;
    // Past the test harness's capture and in step with what child programs write there.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_could_be_typed() {
        let mut command = Command::new("/usr/bin/env");
        command.env("A", "b c").args(["--flag=x", "it's", "", "a\x1fb"]);
        assert_eq!(shown(&command), r"A='b c' env --flag=x 'it'\''s' '' $'a\x1fb'");
    }

    #[test]
    fn a_failure_names_the_command_and_its_words() {
        let mut command = Command::new("sh");
        let error = output(command.args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains(": broken"), "{text}");
    }

    #[test]
    fn finds_programs_but_not_plain_files() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-here"), None);
    }
}
