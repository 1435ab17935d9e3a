//! `cargo xtask bench --profile SCENARIO`: where the processor time of both agents goes, in the
//! kernel and above it, as a flame graph and as a table of the functions that spend it.
//!
//! Samples are taken by the CPU clock, as virtual machines seldom have hardware counters. Stacks
//! are copied and unwound afterwards (perf-record(1), `--call-graph dwarf`), so that the agents are
//! those of every measurement: frame pointers would need another build, and are not enough, as
//! libc's system calls have none and lose their callers (44 % of the samples).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use inferno::flamegraph;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ground::{Ground, Setting, Way};
use super::scenario::{Extent, Scenario};
use crate::build::{self, BuildArgs};
use crate::lab::wait_for;
use crate::tool::{find, output, say, workspace};

/// Samples a second and core: each costs the copy of a stack. Not a multiple of the kernel's timer.
const FREQUENCY: &str = "499";
/// Bytes of stack that are copied. With half of it half of the stacks end in the middle of the
/// runtime.
const STACK: &str = "dwarf,32768";
/// Functions in the table.
const TOP: usize = 25;
/// Seconds before the first sample, in which tunnels are made and buffers grow.
const WARM: f64 = 0.5;
const PATIENCE: Duration = Duration::from_secs(60);

/// A function that was running.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Function {
    /// `kernel`, or the file that the code is in.
    place: String,
    name: String,
}

/// All samples, counted.
#[derive(Debug, Default)]
struct Profile {
    samples: u64,
    /// By innermost function.
    own: BTreeMap<Function, u64>,
    /// By whole stack, outermost function first, as `flamegraph` takes it.
    stacks: BTreeMap<String, u64>,
}

/// perf, while it takes samples. Dropped unfinished, it ends without a result.
struct Recording {
    perf: Child,
    data: PathBuf,
}

/// Runs the scenario over the mesh and says where the agents' time went.
///
/// # Errors
/// perf is not installed or does not work here, or the scenario does not complete.
pub(super) fn run(scenario: &Scenario, setting: Setting, seconds: f64) -> anyhow::Result<()> {
    let perf = find("perf").context("perf is not installed: apt-get install linux-perf")?;
    let built = build::with(BuildArgs { release: true })?;
    let ground = Ground::new(&built, setting, &[])?;
    let extent = Extent { rounds: 1, seconds, tiny: false };
    scenario.run(&ground, Way::Mesh, Extent { seconds: WARM, tiny: true, ..extent })?;
    let dir = workspace().join("target/bench");
    fs::create_dir_all(&dir)?;
    let agents = ground.proxies(Way::Mesh)?;
    let recording = Recording::start(&perf, &agents, dir.join(format!("{}.perf", scenario.name)))?;
    let outcome = scenario.run(&ground, Way::Mesh, extent)?;
    let profile = Profile::parse(&recording.finish(&perf)?);
    ensure!(profile.samples > 0, "perf has taken no sample of the agents");
    let file = dir.join(format!("{}.svg", scenario.name));
    let title = format!("{}: both agents, {} samples", scenario.name, profile.samples);
    fs::write(&file, profile.flame_graph(&title)?)
        .with_context(|| format!("write {}", file.display()))?;
    say(&format!("{}: {}", scenario.name, scenario.about));
    let [_, unit] = scenario.unit.heads();
    say(&format!("the agents' processor time: {:.2} {unit}, with samples taken", outcome.proxies));
    say(&profile.table());
    say(&format!("flame graph: {}", file.display()));
    Ok(())
}

impl Recording {
    /// Starts perf; returns when it takes samples.
    fn start(perf: &Path, pids: &[u32], data: PathBuf) -> anyhow::Result<Self> {
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        let mut command = Command::new(perf);
        command.args(["record", "--quiet", "--event", "cpu-clock", "--freq", FREQUENCY]);
        command.args(["--call-graph", STACK, "--pid", &pids.join(","), "--output"]).arg(&data);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let perf = command.spawn().context("start perf")?;
        let mut recording = Self { perf, data };
        wait_for(PATIENCE, "perf to take samples", || {
            if let Some(status) = recording.perf.try_wait()? {
                bail!("perf record ended: {status}: {}", recording.said());
            }
            Ok(recording.samples()?.then_some(()))
        })?;
        Ok(recording)
    }

    /// Whether it has attached to something already.
    fn samples(&self) -> anyhow::Result<bool> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.perf.id()))?;
        let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        Ok(links.into_iter().any(|link| link.to_string_lossy().contains("[perf_event]")))
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(errors) = &mut self.perf.stderr {
            // Only for a message.
            let _ = errors.read_to_string(&mut text);
        }
        text.trim().to_owned()
    }

    /// Ends perf; what `perf script` makes of its samples.
    fn finish(mut self, perf: &Path) -> anyhow::Result<String> {
        // perf ends itself by the same signal: its status says nothing.
        kill(Pid::from_raw(i32::try_from(self.perf.id())?), Signal::SIGINT)?;
        wait_for(PATIENCE, "perf to end", || Ok(self.perf.try_wait()?))?;
        let said = self.said();
        let mut script = Command::new(perf);
        // Without inlined functions: addr2line takes minutes for them.
        script.args(["script", "--no-inline", "--fields", "pid,ip,sym,dso", "--input"]);
        output(script.arg(&self.data)).with_context(|| format!("perf record said: {said}"))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have ended by itself, before it wrote anything.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
        let _ = fs::remove_file(&self.data);
    }
}

impl Profile {
    /// Reads samples: a line with the process, one for each function from the innermost on, and an
    /// empty one.
    fn parse(script: &str) -> Self {
        let mut profile = Self::default();
        let mut stack = Vec::new();
        for line in script.lines().chain([""]) {
            match Function::parse(line) {
                Some(function) => stack.push(function),
                None if line.is_empty() => profile.add(std::mem::take(&mut stack)),
                None => {}
            }
        }
        profile
    }

    fn add(&mut self, stack: Vec<Function>) {
        let folded: Vec<String> = stack.iter().rev().map(Function::folded).collect();
        let Some(innermost) = stack.into_iter().next() else { return };
        self.samples += 1;
        *self.own.entry(innermost).or_default() += 1;
        *self.stacks.entry(folded.join(";")).or_default() += 1;
    }

    fn percent(&self, samples: u64) -> f64 {
        samples as f64 * 100.0 / self.samples as f64
    }

    /// Shares of kernel, agent and libraries, then of the functions that spend most themselves.
    fn table(&self) -> String {
        let mut places: BTreeMap<&str, u64> = BTreeMap::new();
        for (function, samples) in &self.own {
            *places.entry(&function.place).or_default() += samples;
        }
        let places = most_first(places)
            .into_iter()
            .map(|(place, samples)| format!("{place} {:.1} %", self.percent(samples)));
        let places = places.collect::<Vec<_>>().join(", ");
        let mut lines = vec![format!("{} samples: {places}", self.samples), String::new()];
        lines.push("  share  where         function".to_owned());
        for (function, samples) in
            most_first(self.own.iter().map(|(f, n)| (f, *n))).iter().take(TOP)
        {
            let Function { place, name } = function;
            lines.push(format!("{:>5.1} %  {place:<12}  {name}", self.percent(*samples)));
        }
        lines.join("\n")
    }

    fn flame_graph(&self, title: &str) -> anyhow::Result<Vec<u8>> {
        let lines: Vec<String> =
            self.stacks.iter().map(|(stack, samples)| format!("{stack} {samples}")).collect();
        let mut options = flamegraph::Options::default();
        title.clone_into(&mut options.title);
        // The palette knows the kernel's functions by their ending.
        options.colors = flamegraph::Palette::Multi(flamegraph::color::MultiPalette::Java);
        let mut svg = Vec::new();
        let lines = lines.iter().map(String::as_str);
        flamegraph::from_lines(&mut options, lines, &mut svg).context("draw the flame graph")?;
        Ok(svg)
    }
}

fn most_first<K: Ord>(counts: impl IntoIterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut counts: Vec<(K, u64)> = counts.into_iter().collect();
    counts.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
    counts
}

impl Function {
    /// Reads `<tab> address name (file)`; a name may have spaces and brackets of its own.
    fn parse(line: &str) -> Option<Self> {
        let (address, rest) = line.strip_prefix('\t')?.trim_start().split_once(' ')?;
        let (name, file) = rest.strip_suffix(')')?.rsplit_once(" (")?;
        // The upper half of the address space, whether it is the kernel's own code, a module's or a
        // BPF program's.
        let kernel = address.len() == 16 && address.starts_with("ffff");
        let file = file.rsplit('/').next().unwrap_or(file);
        let place = if kernel { "kernel" } else { file.trim_matches(['[', ']']) };
        Some(Self { place: place.to_owned(), name: plain(name).to_owned() })
    }

    /// As a part of a folded stack.
    fn folded(&self) -> String {
        let name = self.name.replace(';', ",");
        if self.place == "kernel" { name + "_[k]" } else { name }
    }
}

/// Without the hash at the end of Rust's older mangling.
fn plain(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((plain, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            plain
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "16489 
\tffffffff81bb8815 _copy_to_user ([kernel.kallsyms])
\tffffffff8225a6c1 do_syscall_64 ([kernel.kallsyms])
\t          10cd2e __send (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t    55d8a0e4f1c0 <a::B as c::D<[u8; 4]>>::write (at) (/w/target/release/mesh-agent)

16489 
\tffffffff81bb8815 _copy_to_user ([kernel.kallsyms])
\t    55d8a0e4f1c0 <a::B as c::D<[u8; 4]>>::write (at) (/w/target/release/mesh-agent)

16490 
\t    55d8a0e4f1c0 a::run::h0123456789abcdef (/w/target/release/mesh-agent)

16490 
\t    7f4339257ce0 [unknown] ([unknown])
";

    #[test]
    fn samples_are_counted_by_their_innermost_function() {
        let profile = Profile::parse(SCRIPT);
        assert_eq!(profile.samples, 4);
        let table = profile.table();
        for line in [
            "4 samples: kernel 50.0 %, mesh-agent 25.0 %, unknown 25.0 %",
            " 50.0 %  kernel        _copy_to_user",
            " 25.0 %  mesh-agent    a::run",
        ] {
            assert!(table.lines().any(|one| one == line), "no line {line:?} in\n{table}");
        }
    }

    #[test]
    fn stacks_are_folded_from_the_outside_in() {
        let stacks = Profile::parse(SCRIPT).stacks;
        let outer = "<a::B as c::D<[u8, 4]>>::write (at)";
        assert_eq!(stacks[&format!("{outer};__send;do_syscall_64_[k];_copy_to_user_[k]")], 1);
        assert_eq!(stacks[&format!("{outer};_copy_to_user_[k]")], 1);
    }

    #[test]
    fn a_flame_graph_shows_every_function() {
        let svg = Profile::parse(SCRIPT).flame_graph("l4: both agents").unwrap();
        let svg = String::from_utf8(svg).unwrap();
        for text in ["l4: both agents", "do_syscall_64", "a::run", "&lt;a::B as c::D"] {
            assert!(svg.contains(text), "no {text} in the drawing");
        }
    }

    #[test]
    fn nothing_sampled_is_no_profile() {
        assert_eq!(Profile::parse("").samples, 0);
        assert_eq!(Profile::parse("WARNING: no samples\n\n").samples, 0);
    }
}
