//! `make bench`: the daemon beside every peer found on this machine, measured in one run, in turns, with one
//! load.
//! Owns: the order of measurements and the knobs. Read next: `rows.rs`, what is measured; `setup.rs`, in what
//! network.
//!
//! Environment: RUNS (5) times each row is measured; SECONDS (2) of each measurement, IDLE (30), CHURN (20)
//! and CONNECTS (60) of the long ones, which are measured once; ROWS and PEERS, comma-separated, to measure
//! only those: parts of names, or a group of rows; CHARTS=1 for the points of the charts too, which ROWS=mtu
//! and ROWS=flows ask for alone; GVPROXY, the original's binary. `--our PATH` measures another build of ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement fails by panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a report")]

mod chart;
mod clients;
mod forwarder;
mod measure;
mod peer;
mod rows;
mod scale;
mod setup;
mod sockets;
mod splice;
mod ssh;
mod table;
mod tcp;
mod udp;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use clients::Door;
use forwarder::Forwarder;
use measure::Sample;
use rows::{Row, What};
use setup::{Setup, Shape};
use table::{Family, Table};

fn main() {
    if testkit::agent::serve_if_asked() || scale::hold_if_asked() || splice::serve_if_asked() {
        return;
    }
    let mut arguments = std::env::args();
    let our = arguments.find(|word| word == "--our").and_then(|_| arguments.next());
    let our = our.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_gvproxy")), PathBuf::from);
    let runs = number("RUNS", 5.0).max(1.0) as usize;
    let times = Times::from_environment();
    let (parts, peers) = (list("ROWS"), list("PEERS"));

    let rows = Row::chosen(&parts, knob("CHARTS").is_some());
    if rows.is_empty() {
        refuse(&format!("ROWS={}: no such row; groups are {}", parts.join(","), Row::groups().join(", ")));
    }
    let (mut found, missing) = peer::find(&our);
    found.retain(|kind| peers.is_empty() || peers.iter().any(|part| kind.name().contains(part.as_str())));
    if found.is_empty() {
        refuse(&format!("PEERS={}: no such peer here", peers.join(",")));
    }
    // Rows are of networks or of sockets: their peers are others.
    let families = [false, true].map(|sockets| {
        let rows: Vec<_> = rows.iter().filter(|row| row.shape.sockets.is_some() == sockets).collect();
        let suits = |kind: &&peer::Kind| rows.iter().any(|row| row.shape.suits(kind));
        let lines = rows.iter().flat_map(|row| row.lines()).collect();
        Family { peers: found.iter().filter(suits).map(peer::Kind::name).collect(), lines }
    });
    let mut table = Table::new(families);
    table.note(format!("{runs} runs of {} s each. {}", times.row.as_secs_f64(), table::machine()));
    found.retain(|kind| rows.iter().any(|row| row.shape.suits(kind)));
    for kind in &found {
        table.note(format!("{}: {}", kind.name(), kind.version()));
    }
    for (name, remedy) in &missing {
        table.note(format!("missing: {name} ({remedy})"));
    }

    // A failure in here is a note of the report.
    std::panic::set_hook(Box::new(|_| ()));
    for run in 1..=runs {
        for rows in rows.chunk_by(Row::shares_network) {
            let rows: Vec<_> = rows.iter().filter(|row| run == 1 || !row.once).collect();
            let Some(&&Row { group, shape, .. }) = rows.first() else { continue };
            for kind in found.iter().filter(|kind| shape.suits(kind)) {
                eprintln!("run {run} of {runs}: {group}, {shape}, {}", kind.name());
                let between = guarded(|| Between::start(kind, shape));
                if let (1, Ok(Between::Network(setup))) = (run, &between)
                    && let Some(lease) = &setup.lease
                {
                    table.note(format!("{} by default offers MTU {}", kind.name(), lease.option("mtu")));
                }
                for row in &rows {
                    let measured = between.as_ref().map_err(String::clone);
                    match measured.and_then(|between| guarded(|| times.measure(between, row.what))) {
                        Ok(sample) => table.add(row, kind.name(), sample),
                        Err(why) => {
                            table.note(format!("failed: {}, {}, run {run}: {why}", kind.name(), row.name))
                        }
                    }
                }
            }
        }
    }
    drop(std::panic::take_hook());
    table.note(format!("{} after", table::load_average()));
    println!("{}", table.markdown());
    write(&table);
}

/// Writes the report and, where their points were measured, the charts.
fn write(table: &Table) {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    std::fs::create_dir_all(&directory).expect("a directory for the report");
    let mut files = vec![("peers.md".to_owned(), table.markdown()), ("peers.json".to_owned(), table.json())];
    for points in rows::CHARTS {
        files.extend(table.chart(&points).map(|chart| (format!("by-{}.svg", points.group), chart.svg())));
    }
    for (file, text) in files {
        let path = directory.join(file);
        std::fs::write(&path, text).expect("the report");
        println!("written to {}", path.display());
    }
}

/// A setting that is there and not empty.
fn knob(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn number(name: &str, default: f64) -> f64 {
    let Some(text) = knob(name) else { return default };
    match text.parse() {
        Ok(number) if number > 0.0 => number,
        _ => refuse(&format!("{name}={text}: not a number above 0")),
    }
}

/// Ends the program because of how it was called.
fn refuse(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(2)
}

fn list(name: &str) -> Vec<String> {
    knob(name).map_or_else(Vec::new, |text| text.split(',').map(|part| part.trim().to_owned()).collect())
}

/// What `action` gives, or why it failed: one peer's failure must not cost the others their rows.
fn guarded<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let why = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("for no reason given");
        eprintln!("failed: {why}");
        why.to_owned()
    })
}

/// What is measured: a network, or a forwarder without one.
#[derive(Debug)]
enum Between {
    Network(Box<Setup>),
    Sockets(Box<Forwarder>),
}

impl Between {
    fn start(kind: &peer::Kind, shape: Shape) -> Self {
        match shape.sockets {
            Some(dest) => Self::Sockets(Box::new(Forwarder::start(kind, dest))),
            None => Self::Network(Box::new(Setup::start(kind, shape))),
        }
    }
}

/// How long things are measured.
#[derive(Debug)]
struct Times {
    row: Duration,
    idle: Duration,
    churn: Duration,
    connects: Duration,
}

impl Times {
    fn from_environment() -> Self {
        let seconds = |name, default| {
            let seconds = number(name, default);
            Duration::try_from_secs_f64(seconds).unwrap_or_else(|error| refuse(&format!("{name}: {error}")))
        };
        Self {
            row: seconds("SECONDS", 2.0),
            idle: seconds("IDLE", 30.0),
            churn: seconds("CHURN", 20.0),
            connects: seconds("CONNECTS", 60.0),
        }
    }

    fn measure(&self, between: &Between, what: What) -> Option<Sample> {
        match (between, what) {
            (Between::Sockets(forwarder), What::Sockets(what)) => Some(self.measure_sockets(forwarder, what)),
            (Between::Network(setup), what) => self.measure_network(setup, what),
            (Between::Sockets(_), _) => None,
        }
    }

    fn measure_sockets(&self, forwarder: &Forwarder, what: sockets::What) -> Sample {
        let time = self.row;
        match what {
            sockets::What::Stream(way, block) => sockets::stream(forwarder, way, block, time),
            sockets::What::RoundTrip => sockets::round_trip(forwarder, time),
            sockets::What::ConnectRate => sockets::connect_rate(forwarder, time),
            sockets::What::AtOnce(count) => forwarder.with_door(|door| clients::at_once(door, count)),
            sockets::What::InTurn => forwarder.with_door(|door| clients::in_turn(door, self.connects)),
        }
    }

    fn measure_network(&self, setup: &Setup, what: What) -> Option<Sample> {
        let time = self.row;
        match what {
            What::Agent(direction) => tcp::agent(setup, direction, time),
            What::Sockets(what) => {
                let door = |load: &dyn Fn(Door<'_>) -> Sample| {
                    setup.forward.as_ref().map(|forward| forward.with_door(setup.process, load))
                };
                match what {
                    sockets::What::AtOnce(count) => door(&|door| clients::at_once(door, count)),
                    sockets::What::InTurn => door(&|door| clients::in_turn(door, self.connects)),
                    _ => None,
                }
            }
            What::IdleMemory => setup.idle_kb.map(|kb| Sample::one(kb as f64 / 1024.0)),
            What::Wakeups => scale::wakeups(setup, self.idle),
            What::RoundTrip => Some(tcp::round_trip(setup, time)),
            What::ConnectRate => Some(tcp::connect_rate(setup, time)),
            What::Stream(direction, flows) => Some(tcp::stream(setup, direction, flows, time)),
            What::Port(direction) => tcp::port(setup, direction, time),
            What::Tunnel(direction) => tcp::tunnel(setup, direction, time),
            What::Udp(direction, size) => Some(udp::udp(setup, direction, size, time)),
            What::Ssh(direction) => tcp::ssh(setup, direction, time),
            What::Connect(lead) => setup.forward.as_ref().map(|forward| forward.connect_time(lead, time)),
            What::IdleFlows(count) => Some(scale::idle_flows(setup, count)),
            What::Crowd(count) => Some(scale::crowd(setup, count, time)),
            What::Churn => Some(scale::churn(setup, self.churn)),
        }
    }
}
