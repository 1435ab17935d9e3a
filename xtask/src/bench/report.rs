//! Figures of all rounds as a table, as JSON and as Markdown.

use std::fmt::Write as _;

use serde::Serialize;

use super::ground::Way;
use super::idle::Idle;
use super::node::Node;
use super::scenario::{Aim, Outcome, Scenario, TO_OTHER, Unit};

/// Columns of a bar in the chart.
const BAR: f64 = 40.0;

/// One scenario over all ways and rounds.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) scenario: &'static str,
    pub(super) about: &'static str,
    /// Rounds by way, in the order in which the ways were taken.
    pub(super) ways: Vec<(&'static str, Vec<Outcome>)>,
    /// The aims and what was reached.
    pub(super) ratios: Vec<Ratio>,
    #[serde(skip)]
    unit: Unit,
}

/// The mesh's processor time by a peer's.
#[derive(Debug, Serialize)]
pub(super) struct Ratio {
    pub(super) what: &'static str,
    pub(super) to: &'static str,
    pub(super) at_most: f64,
    /// Of each round.
    pub(super) rounds: Vec<f64>,
    pub(super) median: f64,
}

/// Everything of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Kernel, processor, versions of the peers, setting.
    pub(super) machine: Vec<String>,
    pub(super) scenarios: Vec<Measured>,
    pub(super) idle: Option<Idle>,
    pub(super) node: Node,
}

impl Measured {
    /// The rounds of a scenario by way.
    pub(super) fn new(scenario: &Scenario, ways: &[(Way, Vec<Outcome>)]) -> Self {
        let is_there = |aim: &&Aim| ways.iter().any(|(way, _)| *way == aim.to);
        let aims = scenario.aims.iter().chain([&TO_OTHER]).filter(is_there);
        let ratios = aims.map(|aim| Ratio::new(aim, ways)).collect();
        let ways = ways.iter().map(|(way, rounds)| (way.name(), rounds.clone())).collect();
        let Scenario { name, about, unit, .. } = scenario;
        Self { scenario: name, about, ways, ratios, unit: *unit }
    }

    fn heads(&self) -> [&'static str; 8] {
        let [rate, cost] = self.unit.heads();
        ["way", rate, cost, "path", "p50 us", "p99 us", "p99.9", "MiB"]
    }

    fn rows(&self) -> impl Iterator<Item = [String; 8]> {
        let digits = match self.unit {
            Unit::Request => 1,
            Unit::Gigabyte => 2,
        };
        self.ways.iter().map(move |(name, rounds)| {
            let middle = |figure: fn(&Outcome) -> f64| median(rounds.iter().map(figure).collect());
            let costs: Vec<f64> = rounds.iter().map(|round| round.proxies).collect();
            let (least, most) = spread(&costs);
            let cost = median(costs);
            let cost = if most > 0.0 {
                format!("{cost:.digits$} ({least:.digits$}-{most:.digits$})")
            } else {
                "-".to_owned()
            };
            [
                (*name).to_owned(),
                format!("{:.*}", digits - 1, middle(|one| one.rate)),
                cost,
                format!("{:.digits$}", middle(|one| one.path)),
                format!("{:.0}", middle(|one| one.p50)),
                format!("{:.0}", middle(|one| one.p99)),
                format!("{:.0}", middle(|one| one.p999)),
                format!("{:.1}", middle(|one| one.memory as f64) / 1024.0),
            ]
        })
    }

    /// A table for a terminal.
    pub(super) fn table(&self) -> String {
        let rows: Vec<[String; 8]> =
            std::iter::once(self.heads().map(str::to_owned)).chain(self.rows()).collect();
        let mut widths = [0; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = format!("{}: {}\n", self.scenario, self.about);
        for row in &rows {
            let cells = row.iter().zip(widths).enumerate().map(|(index, (cell, width))| {
                if index == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            // A String takes everything.
            let _ = writeln!(text, "  {line}");
        }
        for ratio in &self.ratios {
            let _ = writeln!(text, "  {}", ratio.sentence());
        }
        text
    }

    /// The same for a page, with a chart of the cost.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}.\n\n", self.scenario, capitalised(self.about));
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text += &line(&self.heads().map(str::to_owned));
        text += "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
        for row in self.rows() {
            text += &line(&row);
        }
        let costs: Vec<(&str, f64)> = self
            .ways
            .iter()
            .map(|(name, rounds)| (*name, median(rounds.iter().map(|one| one.proxies).collect())))
            .filter(|(_, cost)| *cost > 0.0)
            .collect();
        let most = costs.iter().map(|(_, cost)| *cost).fold(0.0, f64::max);
        text += "\n```\n";
        for (name, cost) in &costs {
            let length = (cost / most * BAR).round() as usize;
            let _ = writeln!(text, "{name:<16} {:<40} {cost:.2}", "#".repeat(length));
        }
        text += "```\n\n";
        for ratio in &self.ratios {
            let _ = writeln!(text, "- {}", ratio.sentence());
        }
        text
    }
}

impl Ratio {
    fn new(aim: &Aim, ways: &[(Way, Vec<Outcome>)]) -> Self {
        let of = |wanted: Way| {
            ways.iter().filter(move |(way, _)| *way == wanted).flat_map(|(_, rounds)| rounds)
        };
        let whole_path = aim.to == Way::Direct;
        let cost = |one: &Outcome| if whole_path { one.path } else { one.proxies };
        let pairs = of(aim.of).zip(of(aim.to));
        let rounds: Vec<f64> = pairs.map(|(own, peer)| cost(own) / cost(peer)).collect();
        Self {
            what: if whole_path { "processor time of the whole path" } else { "processor time" },
            to: aim.to.name(),
            at_most: aim.at_most,
            median: median(rounds.clone()),
            rounds,
        }
    }

    fn sentence(&self) -> String {
        let reached = if self.median <= self.at_most { "reached" } else { "not reached" };
        let (least, most) = spread(&self.rounds);
        format!(
            "{} to {}: {:.2} ({least:.2}-{most:.2}); aim {:.2}: {reached}",
            self.what, self.to, self.median, self.at_most
        )
    }
}

impl Report {
    /// The page of all figures, without what people write around them.
    pub(super) fn markdown(&self) -> String {
        let machine: String = self.machine.iter().map(|line| format!("- {line}\n")).collect();
        let scenarios: Vec<String> = self.scenarios.iter().map(Measured::markdown).collect();
        let idle = self.idle.as_ref().map(|idle| format!("### idle\n\n{}\n", idle.sentence()));
        let node = self.node.sentences();
        let node = node.iter().map(|sentence| format!("- {sentence}.\n")).collect::<String>();
        let node =
            if node.is_empty() { node } else { format!("\n### An agent by itself\n\n{node}") };
        format!("{machine}\n{}\n{}{node}", scenarios.join("\n"), idle.unwrap_or_default())
    }
}

impl Idle {
    /// In a sentence.
    pub(super) fn sentence(&self) -> String {
        let [near, far] = self.kib;
        format!(
            "{} idle TCP connections through the mesh: {near:.1} KiB each at the client's agent, \
             {far:.1} KiB at the server's.",
            self.connections
        )
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The least and the most.
pub(super) fn spread(figures: &[f64]) -> (f64, f64) {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    (least, figures.iter().copied().fold(0.0, f64::max))
}

/// The middle one; of an even number the mean of the two.
pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    match (figures.get(half), figures.len() % 2) {
        (Some(upper), 0) => figures.get(half - 1).map_or(*upper, |lower| (lower + upper) / 2.0),
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenario::SCENARIOS;

    fn outcome(proxies: f64) -> Outcome {
        Outcome {
            rate: 1000.0,
            proxies,
            path: proxies + 10.0,
            p50: 100.0,
            p99: 200.0,
            p999: 300.0,
            memory: 2048,
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_compares_within_a_round() {
        let scenario = &SCENARIOS[0];
        let costs = [[0.0, 0.0], [20.0, 30.0], [40.0, 50.0], [44.0, 44.0], [90.0, 90.0]];
        let ways = scenario.ways.iter().zip(costs);
        let ways: Vec<_> = ways.map(|(way, costs)| (*way, costs.map(outcome).to_vec())).collect();
        let measured = Measured::new(scenario, &ways);
        let ratio = &measured.ratios[0];
        assert!((ratio.median - 0.55).abs() < 1e-9, "{ratio:?}");
        assert!(measured.table().contains("aim 0.75: reached"), "{}", measured.table());
        assert!(measured.markdown().contains("| malha | 1000 | 25.0 (20.0-30.0) |"));
    }
}
