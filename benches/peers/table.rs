//! The report: one table with a column for each peer and the ratio of ours to it. Owns: the samples.
//! Read next: `rows.rs`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::chart::{Chart, Panel};
use crate::measure::{Direction, Sample};
use crate::rows::{Points, Row};

/// Units of figures that are parts of something already.
const PARTS: [&str; 3] = ["%", "of alone", "part"];

/// Lines that are measured of the same peers.
#[derive(Debug)]
pub(crate) struct Family {
    /// The first of them is the one that the others are compared with.
    pub(crate) peers: Vec<&'static str>,
    /// Name and unit.
    pub(crate) lines: Vec<(String, &'static str)>,
}

/// All samples, by line and peer.
#[derive(Debug)]
pub(crate) struct Table {
    families: Vec<Family>,
    samples: BTreeMap<(String, &'static str), Vec<f64>>,
    notes: Vec<String>,
}

impl Table {
    pub(crate) fn new(families: impl IntoIterator<Item = Family>) -> Self {
        let families = families.into_iter().filter(|family| !family.lines.is_empty()).collect();
        Self { families, samples: BTreeMap::new(), notes: Vec::new() }
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn add(&mut self, row: &Row, peer: &'static str, sample: Option<Sample>) {
        let Some(sample) = sample else { return };
        for ((line, _), figure) in row.lines().into_iter().zip(sample.0) {
            if let Some(figure) = figure {
                self.samples.entry((line, peer)).or_default().push(figure);
            }
        }
    }

    /// Lowest, median and highest.
    pub(crate) fn spread(&self, line: &str, peer: &'static str) -> Option<[f64; 3]> {
        let mut samples = self.samples.get(&(line.to_owned(), peer))?.clone();
        samples.sort_by(f64::total_cmp);
        Some([*samples.first()?, *samples.get(samples.len() / 2)?, *samples.last()?])
    }

    fn cell(&self, line: &str, peer: &'static str) -> String {
        match self.spread(line, peer) {
            None => "-".to_owned(),
            Some([low, median, high]) if low == high => figure(median),
            Some([low, median, high]) => format!("{} ({}..{})", figure(median), figure(low), figure(high)),
        }
    }

    /// What `first` has of what `peer` has.
    fn ratio(&self, line: &str, unit: &str, first: &'static str, peer: &'static str) -> Option<f64> {
        let [_, ours, _] = self.spread(line, first)?;
        let [_, theirs, _] = self.spread(line, peer)?;
        (theirs > 0.0 && !PARTS.contains(&unit)).then_some(ours / theirs)
    }

    pub(crate) fn markdown(&self) -> String {
        let grids: Vec<_> = self.families.iter().map(|family| self.grid(family)).collect();
        let mut text = grids.join("\n");
        let first =
            self.families.first().and_then(|family| family.peers.first()).copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "\nMedians (lowest..highest). A ratio is {first} to the peer: of CPU, times and memory, less is better."
        );
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    fn grid(&self, Family { peers, lines }: &Family) -> String {
        let mut text = String::new();
        let first = peers.first().copied().unwrap_or_default();
        let mut grid = vec![vec![String::new(), "unit".to_owned()]];
        for &peer in peers {
            grid[0].push(peer.to_owned());
            if peer != first {
                grid[0].push("ratio".to_owned());
            }
        }
        for (line, unit) in lines {
            let mut cells = vec![line.clone(), (*unit).to_owned()];
            for &peer in peers {
                cells.push(self.cell(line, peer));
                if peer != first {
                    let ratio = self.ratio(line, unit, first, peer);
                    cells.push(ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{}x", figure(ratio))));
                }
            }
            grid.push(cells);
        }
        let width = |column: usize| {
            grid.iter().filter_map(|cells| cells.get(column)).map(String::len).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..grid[0].len()).map(width).collect();
        for (number, cells) in grid.iter().enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                let width = widths[column];
                let _ = if column == 0 {
                    write!(text, "| {cell:<width$} ")
                } else {
                    write!(text, "| {cell:>width$} ")
                };
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let _ = write!(text, "|{}{}", "-".repeat(width + 1), if column == 0 { "-" } else { ":" });
                }
                text.push_str("|\n");
            }
        }
        text
    }

    /// The chart of rows that `points` name, if any of them was measured.
    pub(crate) fn chart(&self, points: &Points) -> Option<Chart> {
        let panel = |direction: Direction| {
            let peers = self.families.first().map_or(&[][..], |family| &family.peers).iter();
            let series = peers.map(|&peer| {
                let value = |&point| self.spread(&points.line(direction, point), peer);
                (peer, points.points.iter().map(value).collect())
            });
            Panel { title: direction.name().to_owned(), series: series.collect() }
        };
        let panels = Direction::BOTH.map(panel);
        let is_measured =
            |panel: &Panel| panel.series.iter().any(|(_, values)| values.iter().any(Option::is_some));
        panels.iter().any(is_measured).then(|| Chart {
            title: points.title.to_owned(),
            x: points.x,
            y: "Gbit/s",
            points: points.points.iter().map(usize::to_string).collect(),
            panels,
        })
    }

    /// The same with every sample, for a program that compares reports.
    pub(crate) fn json(&self) -> String {
        let notes: Vec<_> = self.notes.iter().map(|note| quoted(note)).collect();
        let mut rows = Vec::new();
        let lines =
            self.families.iter().flat_map(|family| family.lines.iter().map(move |line| (family, line)));
        for (Family { peers, .. }, (line, unit)) in lines {
            for &peer in peers {
                let Some(samples) = self.samples.get(&(line.clone(), peer)) else { continue };
                let [low, median, high] = self.spread(line, peer).unwrap_or_default();
                rows.push(format!(
                    "{{\"row\": {}, \"unit\": {}, \"peer\": {}, \"median\": {median}, \"min\": {low}, \"max\": {high}, \
                     \"samples\": {samples:?}}}",
                    quoted(line),
                    quoted(unit),
                    quoted(peer)
                ));
            }
        }
        format!("{{\"notes\": [{}],\n\"rows\": [\n{}\n]}}\n", notes.join(", "), rows.join(",\n"))
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut json = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            '\0'..=' ' => json.push(' '),
            _ => json.push(character),
        }
    }
    json.push('"');
    json
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The machine in a line.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = model.trim_start_matches(|c: char| c.is_whitespace() || c == ':');
    format!("{count} x {model}, Linux {}, {} before", kernel.trim(), load_average())
}

pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load average {}", text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
