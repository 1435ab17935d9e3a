//! `cargo xtask vm`: a command as root under another kernel, in a small virtual machine.
//!
//! The guest sees this machine's files, read-only with a layer in memory on top, so whatever is
//! built here runs there: the oldest kernel that is supported is tried, and what the machine's own
//! kernel may lack (netem). Works without hardware support, then ten to twenty times slower: for
//! what is right, never for what is fast.
//!
//! Invariant: nothing that the guest does is left on the machine.

mod kernel;
mod ramdisk;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::setup::{SetupArgs, run_setup};
use crate::tool::{installed, say, shown, workspace};
use kernel::Kernel;

/// What the guest's last line begins with; the command's exit status follows.
const ENDED: &str = "malha-vm ended: ";
/// What the line before the command's first begins with; the kernel's version follows.
const BEGINS: &str = "malha-vm begins: ";

/// Options of `cargo xtask vm`.
#[derive(Clone, Debug, Args)]
pub struct VmArgs {
    /// Memory, in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Seconds until it is ended
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// What to run there, in this folder
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Why no virtual machine can run here.
#[must_use]
pub fn obstacle() -> Option<&'static str> {
    match () {
        () if !cfg!(target_arch = "x86_64") => Some("the guest's kernel is for x86-64"),
        () if !nix::unistd::geteuid().is_root() => {
            Some("not root, and it shows the guest all files")
        }
        () => None,
    }
}

/// Boots and runs the command.
///
/// # Errors
/// Something is missing, the guest ended before the command did, or the command failed.
pub fn run(args: &VmArgs) -> anyhow::Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("no virtual machine here: {obstacle}");
    }
    run_setup(&SetupArgs::default())?;
    let kernel = Kernel::find_or_fetch(&workspace().join("target/vm"))?;
    let folder = tempfile::tempdir().context("make a folder for the guest's first files")?;
    let ramdisk = ramdisk::make(folder.path(), &kernel, &args.command)?;
    let mut machine = machine(args, &kernel, &ramdisk)?;
    say(&format!("$ {}", shown(&machine)));
    let mut child = machine.spawn().context("start the virtual machine")?;
    let output = child.stdout.take().context("the machine's console")?;
    let status = pass_on(BufReader::new(output), &mut std::io::stdout())?;
    child.wait()?;
    match status {
        Some(0) => Ok(()),
        Some(status) => bail!("the command in the guest ended with {status}"),
        None => bail!("the guest ended before its command did, or after {} s", args.seconds),
    }
}

fn machine(args: &VmArgs, kernel: &Kernel, ramdisk: &Path) -> anyhow::Result<Command> {
    let mut machine = Command::new(installed("timeout")?);
    machine.arg("--foreground").arg("--kill-after=5").arg(args.seconds.to_string());
    machine.arg(installed("qemu-system-x86_64")?);
    machine.args(["-accel", if has_kvm() { "kvm" } else { "tcg,thread=multi" }, "-cpu", "max"]);
    machine.args(["-smp", "2", "-m", &args.memory.to_string(), "-nographic", "-no-reboot"]);
    machine.args(["-nic", "none", "-append", "console=ttyS0 quiet loglevel=1 panic=-1"]);
    machine.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(ramdisk);
    let files = "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap";
    machine.args(["-fsdev", files, "-device", "virtio-9p-pci,fsdev=files,mount_tag=files"]);
    machine.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(machine)
}

/// Some machines have the device and no processor that it could use.
fn has_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can = flags.split_whitespace().any(|flag| ["vmx", "svm"].contains(&flag));
    can && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Passes on what the command writes on the guest's console; its exit status, if it ended.
fn pass_on(console: impl BufRead, sink: &mut impl Write) -> anyhow::Result<Option<u8>> {
    let mut begun = false;
    let mut last = String::new();
    for line in console.split(b'\n') {
        let line = line?;
        let text = String::from_utf8_lossy(&line);
        // It is a terminal: firmware and kernel come first, and need not end their last line.
        let text = text.trim_end_matches('\r');
        if let Some((_, kernel)) = text.split_once(BEGINS) {
            begun = true;
            writeln!(sink, "on Linux {kernel}:")?;
        } else if let Some(status) = text.strip_prefix(ENDED) {
            return Ok(Some(status.trim().parse().context("the guest's exit status")?));
        } else if begun {
            writeln!(sink, "{text}")?;
        } else if !text.trim().is_empty() {
            text.trim().clone_into(&mut last);
        }
    }
    ensure!(begun, "the guest did not boot; the last that it said: {last:?}");
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(console: &str) -> anyhow::Result<(Option<u8>, String)> {
        let mut sink = Vec::new();
        let status = pass_on(console.as_bytes(), &mut sink)?;
        Ok((status, String::from_utf8(sink).unwrap()))
    }

    #[test]
    fn the_console_is_the_commands_from_its_first_line_to_its_status() {
        let console =
            "SeaBIOS\r\n\x1b[2Jmalha-vm begins: 6.1.0\r\none\r\n\r\ntwo\r\nmalha-vm ended: 3\r\nx";
        let expected = "on Linux 6.1.0:\none\n\ntwo\n";
        assert_eq!(told(console).unwrap(), (Some(3), expected.to_owned()));
    }

    #[test]
    fn a_guest_that_dies_is_no_success() {
        assert_eq!(told("malha-vm begins: 6.1.0\none").unwrap().0, None);
        let silent = told("SeaBIOS\npanic\n\n").unwrap_err().to_string();
        assert_eq!(silent, "the guest did not boot; the last that it said: \"panic\"");
    }
}
