//! Where the demo shows what it sees: a terminal, which is redrawn in place, or plain lines.
//!
//! Only a terminal is ever sent escape codes; a pipe and the transcript get the same plain lines.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;

/// Cells of a bar that stands for everything.
const BAR: usize = 40;

/// Width of the boxes around nodes.
const BOX: usize = 96;

/// The demo's output.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    transcript: Option<File>,
    /// Lines of the block that the next one replaces.
    drawn: usize,
}

impl Screen {
    /// Shows on standard output, and in a file if one is given.
    pub(super) fn new(record: Option<&Path>) -> anyhow::Result<Self> {
        let create =
            |file: &Path| File::create(file).with_context(|| format!("write {}", file.display()));
        let transcript = record.map(create).transpose()?;
        Ok(Self { terminal: std::io::stdout().is_terminal(), transcript, drawn: 0 })
    }

    /// A line that stays.
    pub(super) fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.styled(line, "")
    }

    /// What comes now.
    pub(super) fn heading(&mut self, line: &str) -> anyhow::Result<()> {
        self.styled("", "")?;
        self.styled(line, "1")
    }

    /// Something that was checked.
    pub(super) fn verdict(&mut self, good: bool, line: &str) -> anyhow::Result<()> {
        let (word, style) = if good { ("ok    ", "32") } else { ("FAILED", "1;31") };
        self.styled(&format!("  {word}  {line}"), style)
    }

    /// How far something is: a terminal shows the block in place of the last one, others the line.
    pub(super) fn progress(&mut self, line: &str, block: &[String]) -> anyhow::Result<()> {
        if self.terminal {
            self.redraw(block)?;
        } else {
            println(line)?;
        }
        self.record(line)
    }

    /// The block in its last state.
    pub(super) fn settle(&mut self, block: &[String]) -> anyhow::Result<()> {
        if self.terminal {
            self.redraw(block)?;
            self.drawn = 0;
        } else {
            block.iter().try_for_each(|line| println(line))?;
        }
        block.iter().try_for_each(|line| self.record(line))
    }

    fn styled(&mut self, line: &str, style: &str) -> anyhow::Result<()> {
        self.drawn = 0;
        if self.terminal && !style.is_empty() {
            println(&format!("\x1b[{style}m{line}\x1b[0m"))?;
        } else {
            println(line)?;
        }
        self.record(line)
    }

    /// Goes up to where the last block began, and clears what it rewrites (ECMA-48: CUU, EL).
    fn redraw(&mut self, block: &[String]) -> anyhow::Result<()> {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in block {
            text.push_str(&format!("\r\x1b[2K{line}\n"));
        }
        self.drawn = block.len();
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    fn record(&mut self, line: &str) -> anyhow::Result<()> {
        match &mut self.transcript {
            Some(file) => Ok(writeln!(file, "{line}")?),
            None => Ok(()),
        }
    }
}

/// Unlike the macro, says when nobody reads any more.
fn println(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// A share as a bar, a percentage and a count.
pub(super) fn bar(count: u64, total: u64) -> String {
    let share = if total == 0 { 0.0 } else { count as f64 / total as f64 };
    let cells = (0..BAR).filter(|cell| (*cell as f64 + 0.5) < share * BAR as f64).count();
    let (full, empty) = ("█".repeat(cells), "·".repeat(BAR - cells));
    format!("{full}{empty} {:5.1} %  {count:>6}", share * 100.0)
}

/// A box with a title in its upper edge; `joints` are the edges that a line goes through.
pub(super) fn boxed(title: &str, rows: &[String], above: bool, below: bool) -> Vec<String> {
    let middle = BOX / 2;
    let edge = |joint: Option<char>| -> Vec<char> {
        let mut cells = vec!['─'; BOX];
        if let Some(joint) = joint {
            cells[middle] = joint;
        }
        cells
    };
    let mut top = edge(above.then_some('┴'));
    for (cell, letter) in top.iter_mut().skip(1).zip(format!(" {title} ").chars()) {
        *cell = letter;
    }
    let top: String = top.into_iter().collect();
    let bottom: String = edge(below.then_some('┬')).into_iter().collect();
    let mut lines = vec![format!("  ┌{top}┐")];
    for row in rows {
        lines.push(format!("  │ {row:<width$} │", width = BOX - 2));
    }
    lines.push(format!("  └{bottom}┘"));
    lines
}

/// The wire between two boxes.
pub(super) fn wire(label: &str) -> String {
    format!("  {}│ {label}", " ".repeat(BOX / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_its_share() {
        assert_eq!(bar(0, 0).matches('█').count(), 0);
        assert_eq!(bar(1, 2).matches('█').count(), BAR / 2);
        assert!(bar(900, 1000).ends_with("·  90.0 %     900"), "{}", bar(900, 1000));
    }

    #[test]
    fn the_lines_of_a_box_are_equally_wide_and_its_joint_meets_the_wire() {
        let lines = boxed("node1", &["a pod".to_owned()], false, true);
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [BOX + 4; 3]);
        let at = |line: &str, sign| line.chars().position(|letter| letter == sign);
        assert_eq!(at(&lines[2], '┬'), at(&wire("TLS"), '│'));
    }
}
