//! `make bench`: the daemon beside every peer found on this machine, measured in one run, in turns, with one load.
//! Owns: the order of measurements and the knobs. Read next: `peer.rs`, how each is set up; `load.rs`, what is measured.
//!
//! Environment: RUNS (5) times each peer is set up; SECONDS (2) of each measurement; ROWS and PEERS, comma-separated
//! parts of names, to measure only those; GVPROXY, the original's binary. `--our PATH` measures another build of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement fails by panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a report")]

#[path = "../../tests/support/mod.rs"]
mod support;

mod load;
mod peer;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use load::{Direction, Sample};
use peer::{Kind, Setup};
use table::{Row, Table};

const MTUS: [u16; 2] = [1500, 65520];

fn main() {
    if support::agent::serve_if_asked() {
        return;
    }
    let mut arguments = std::env::args();
    let our = arguments.find(|word| word == "--our").and_then(|_| arguments.next());
    let our = our.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_gvproxy")), PathBuf::from);
    let runs: usize = knob("RUNS").map_or(5, |text| text.parse().expect("RUNS is a number"));
    let seconds: f64 = knob("SECONDS").map_or(2.0, |text| text.parse().expect("SECONDS is a number"));
    let (rows, peers) = (parts("ROWS"), parts("PEERS"));

    let (found, missing) = peer::find(&our);
    let found: Vec<_> = found.into_iter().filter(|kind| wanted(&peers, kind.name())).collect();
    let mut table = Table::new(found.iter().map(Kind::name).collect());
    table.note(format!("{} runs of {seconds} s each, medians. {}", runs, table::machine()));
    for kind in &found {
        table.note(format!("{}: {}", kind.name(), kind.version()));
    }
    for (name, remedy) in &missing {
        table.note(format!("missing: {name} ({remedy})"));
    }

    for run in 1..=runs {
        for mtu in MTUS {
            for kind in &found {
                let wanted: Vec<_> =
                    Row::ALL.iter().filter(|row| row.mtu == mtu && wanted(&rows, row.name)).collect();
                if wanted.is_empty() {
                    continue;
                }
                eprintln!("run {run} of {runs}: {} at MTU {mtu}", kind.name());
                let Some(setup) = guarded(kind.name(), || Setup::start(kind, mtu)) else { continue };
                for row in wanted {
                    let sample = guarded(row.name, || measure(&setup, row, Duration::from_secs_f64(seconds)));
                    table.add(row, kind.name(), sample.flatten());
                }
            }
        }
    }
    table.note(table::load_average());
    println!("{}", table.markdown());
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    std::fs::create_dir_all(&directory).expect("a directory for the report");
    for (file, text) in [("peers.md", table.markdown()), ("peers.json", table.json())] {
        let path = directory.join(file);
        std::fs::write(&path, text).expect("the report");
        println!("written to {}", path.display());
    }
}

/// A setting that is there and not empty.
fn knob(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn parts(name: &str) -> Vec<String> {
    knob(name).map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect())
}

fn wanted(parts: &[String], name: &str) -> bool {
    parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()))
}

/// What one measurement gives, or nothing where it fails: one peer's failure must not cost the others their rows.
fn guarded<T>(what: &str, action: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(action)).ok();
    if result.is_none() {
        eprintln!("failed: {what}");
    }
    result
}

fn measure(setup: &Setup, row: &Row, time: Duration) -> Option<Sample> {
    use table::What::{ConnectRate, IdleFlow, IdleMemory, Port, RoundTrip, Stream, Udp};
    match row.what {
        Stream(direction, flows) => Some(load::stream(setup, direction, flows, time)),
        Port(Direction::GuestToHost) => load::port(setup, Direction::GuestToHost, time),
        Port(Direction::HostToGuest) => load::port(setup, Direction::HostToGuest, time),
        Udp => Some(load::udp(setup, time)),
        RoundTrip => Some(load::round_trip(setup, time)),
        ConnectRate => Some(load::connect_rate(setup, time)),
        IdleMemory => setup
            .process
            .map(|process| Sample::one(setup.idle_kb.unwrap_or_else(|| process.rss_kb()) as f64 / 1024.0)),
        IdleFlow => load::idle_flow(setup),
    }
}
