//! The report: one table with a column for each peer and the ratio of ours to it. Owns: the rows and their units.
//! Read next: `main.rs`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::load::{Direction, Sample};

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Bulk transfer over so many connections.
    Stream(Direction, usize),
    /// Bulk transfer through a published port.
    Port(Direction),
    Udp,
    RoundTrip,
    ConnectRate,
    IdleMemory,
    IdleFlow,
}

/// A row of the table, and its companion where one measurement gives two figures.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    unit: &'static str,
    beside: Option<(&'static str, &'static str)>,
    pub(crate) mtu: u16,
    pub(crate) what: What,
}

const CPU: Option<(&str, &str)> = Some(("its CPU", "s/GB"));

const fn row(
    name: &'static str,
    unit: &'static str,
    beside: Option<(&'static str, &'static str)>,
    mtu: u16,
    what: What,
) -> Row {
    Row { name, unit, beside, mtu, what }
}

impl Row {
    pub(crate) const ALL: [Self; 15] = [
        row("idle memory", "MB", None, 1500, What::IdleMemory),
        // Before anything that leaves freed memory behind.
        row("memory of an idle flow", "KiB", None, 1500, What::IdleFlow),
        row("round trip", "us p50", Some(("p99", "us")), 1500, What::RoundTrip),
        row("connect-request-close", "1/s", None, 1500, What::ConnectRate),
        row("1500 guest to host, 1 flow", "Gbit/s", CPU, 1500, What::Stream(Direction::GuestToHost, 1)),
        row("1500 host to guest, 1 flow", "Gbit/s", CPU, 1500, What::Stream(Direction::HostToGuest, 1)),
        row("1500 guest to host, 8 flows", "Gbit/s", CPU, 1500, What::Stream(Direction::GuestToHost, 8)),
        row("1500 host to guest, 8 flows", "Gbit/s", CPU, 1500, What::Stream(Direction::HostToGuest, 8)),
        row("1500 published port, in", "Gbit/s", CPU, 1500, What::Port(Direction::HostToGuest)),
        row("1500 published port, out", "Gbit/s", CPU, 1500, What::Port(Direction::GuestToHost)),
        row("1500 UDP guest to host", "Mbit/s", CPU, 1500, What::Udp),
        row("65520 guest to host, 1 flow", "Gbit/s", CPU, 65520, What::Stream(Direction::GuestToHost, 1)),
        row("65520 host to guest, 1 flow", "Gbit/s", CPU, 65520, What::Stream(Direction::HostToGuest, 1)),
        row("65520 guest to host, 8 flows", "Gbit/s", CPU, 65520, What::Stream(Direction::GuestToHost, 8)),
        row("65520 host to guest, 8 flows", "Gbit/s", CPU, 65520, What::Stream(Direction::HostToGuest, 8)),
    ];

    /// The lines of the table: name, unit.
    fn lines(&self) -> Vec<(String, &'static str)> {
        let companion = self.beside.map(|(what, unit)| (format!("{}: {what}", self.name), unit));
        std::iter::once((self.name.to_owned(), self.unit)).chain(companion).collect()
    }
}

/// All samples, by line and peer.
#[derive(Debug)]
pub(crate) struct Table {
    peers: Vec<&'static str>,
    samples: BTreeMap<(String, &'static str), Vec<f64>>,
    notes: Vec<String>,
}

impl Table {
    /// The first of `peers` is the one that the others are compared with.
    pub(crate) fn new(peers: Vec<&'static str>) -> Self {
        Self { peers, samples: BTreeMap::new(), notes: Vec::new() }
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn add(&mut self, row: &Row, peer: &'static str, sample: Option<Sample>) {
        let Some(sample) = sample else { return };
        let figures = [Some(sample.main), sample.beside];
        for ((line, _), figure) in row.lines().into_iter().zip(figures) {
            if let Some(figure) = figure {
                self.samples.entry((line, peer)).or_default().push(figure);
            }
        }
    }

    fn lines(&self) -> impl Iterator<Item = (String, &'static str)> {
        let measured =
            |line: &String| self.peers.iter().any(|peer| self.samples.contains_key(&(line.clone(), *peer)));
        Row::ALL.iter().flat_map(Row::lines).filter(move |(line, _)| measured(line))
    }

    fn median(&self, line: &str, peer: &'static str) -> Option<f64> {
        let mut samples = self.samples.get(&(line.to_owned(), peer))?.clone();
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 2).copied()
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let first = self.peers.first().copied().unwrap_or_default();
        let mut grid = vec![vec![String::new(), "unit".to_owned()]];
        for &peer in &self.peers {
            grid[0].push(peer.to_owned());
            if peer != first {
                grid[0].push("ratio".to_owned());
            }
        }
        for (line, unit) in self.lines() {
            let ours = self.median(&line, first);
            let mut cells = vec![line.clone(), unit.to_owned()];
            for &peer in &self.peers {
                let theirs = self.median(&line, peer);
                cells.push(theirs.map_or_else(|| "-".to_owned(), figure));
                if peer != first {
                    let ratio = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0);
                    cells.push(ratio.map_or_else(
                        || "-".to_owned(),
                        |(ours, theirs)| format!("{}x", figure(ours / theirs)),
                    ));
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
        let _ = writeln!(
            text,
            "\nA ratio is {first} to the peer. Of CPU, round trip and memory, less is better."
        );
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    /// The same with every sample, for a program that compares reports.
    pub(crate) fn json(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.escape_default());
        let notes: Vec<_> = self.notes.iter().map(|note| quoted(note)).collect();
        let mut rows = Vec::new();
        for (line, unit) in self.lines() {
            for &peer in &self.peers {
                let Some(samples) = self.samples.get(&(line.clone(), peer)) else { continue };
                let median = self.median(&line, peer).unwrap_or_default();
                rows.push(format!(
                    "{{\"row\": {}, \"unit\": {}, \"peer\": {}, \"median\": {median}, \"samples\": {samples:?}}}",
                    quoted(&line),
                    quoted(unit),
                    quoted(peer)
                ));
            }
        }
        format!("{{\"notes\": [{}],\n\"rows\": [\n{}\n]}}\n", notes.join(", "), rows.join(",\n"))
    }
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
