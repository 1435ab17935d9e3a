//! The guest's first files: a shell, the modules that reach the machine's files, and what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::kernel::Kernel;
use super::{BEGINS, ENDED};
use crate::tool::{installed, output};

/// Reaches the machine's files and makes them the root.
const FIRST: &str = include_str!("first.sh");
/// Makes a system of them, and runs the command.
const SECOND: &str = include_str!("second.sh");

/// Needed before the machine's files can be seen; others are loaded from there when asked for.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Folders that the first script mounts on.
const FOLDERS: [&str; 6] = ["bin", "modules", "proc", "files", "layer", "root"];

/// Makes the ramdisk in a folder.
///
/// # Errors
/// A file is missing, or there is no room.
pub(super) fn make(folder: &Path, kernel: &Kernel, command: &[String]) -> anyhow::Result<PathBuf> {
    let tree = folder.join("tree");
    for name in FOLDERS {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = installed("busybox")?;
    fs::copy(&busybox, tree.join("bin/busybox"))
        .with_context(|| format!("copy {}", busybox.display()))?;
    for (number, file) in kernel.files_of(&MODULES)?.iter().enumerate() {
        // The shell's order of names is the order of loading.
        let name = tree.join(format!("modules/{number:03}.ko"));
        fs::copy(file, name).with_context(|| format!("copy {}", file.display()))?;
    }
    let here = std::env::current_dir()?;
    let settings = [
        format!("modules={}", quoted(&kernel.modules().to_string_lossy())),
        format!("folder={}", quoted(&here.to_string_lossy())),
        format!("begins={} ended={}", quoted(BEGINS), quoted(ENDED)),
    ];
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let second = SECOND.replace("COMMAND", &words.join(" "));
    write(&tree.join("init"), FIRST)?;
    write(&tree.join("second"), &[&settings.join("\n"), "\n", &second].concat())?;
    let ramdisk = folder.join("ramdisk");
    let mut pack = Command::new("sh");
    pack.current_dir(&tree).args(["-c", "find . | cpio --quiet -o -H newc >\"$1\"", "pack"]);
    output(pack.arg(&ramdisk))?;
    Ok(ramdisk)
}

/// Writes a program.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// A word as a POSIX shell takes it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_reach_the_guests_shell_as_they_are() {
        let words = ["a b", "it's", "$x", ""];
        let line = words.map(quoted).join(" ");
        let script = format!("printf '%s|' {line}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|it's|$x||");
    }
}
