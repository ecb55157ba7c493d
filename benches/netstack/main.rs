//! What the virtual network itself costs: frames in to frames out, with no sockets, no peer and no privilege.
//!
//! `make micro` measures wall time (divan; a word chooses rows: `make micro ROWS=to_guest`).
//! `instructions.sh` counts instructions under valgrind, the same in every run, and compares them with
//! `instructions.txt`: `make test` does.
//! Read next: `scenario.rs`, what is measured; `network.rs`, the driver's turn, which is all that is counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement fails by panic")]
#![allow(clippy::print_stdout, reason = "this is a report")]

mod guest;
mod network;
mod scenario;

use std::cell::RefCell;
use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

use scenario::{Running, Scenario};

/// Turns whose instructions are counted.
const COUNTED: usize = 128;

fn main() {
    let mut arguments = std::env::args().skip_while(|word| word != "--count");
    match (arguments.next(), arguments.next()) {
        (Some(_), Some(name)) => count(&name),
        _ => divan::Divan::from_args().run_benches(),
    }
}

/// Wall time of a turn. The guest's side of it is not measured.
#[divan::bench(args = Scenario::all(), sample_size = 1, sample_count = 500)]
fn turn(bencher: Bencher<'_, '_>, scenario: &Scenario) {
    let running = RefCell::new(Running::new(scenario));
    let (items, bytes) = (scenario.items(), running.borrow().bytes_per_turn());
    bencher
        .counter(ItemsCount::new(items))
        .counter(BytesCount::new(bytes))
        .with_inputs(|| running.borrow_mut().prepare())
        .bench_local_values(|()| running.borrow_mut().turn());
}

/// Runs one scenario for callgrind, which collects in [`counted`] only, and prints by what its count is to be
/// divided.
fn count(name: &str) {
    let scenario = Scenario::all().find(|scenario| scenario.to_string() == name);
    let scenario = scenario.unwrap_or_else(|| panic!("no scenario named {name}"));
    let mut running = Running::new(&scenario);
    for _ in 0..COUNTED {
        running.prepare();
        counted(&mut running);
    }
    println!("{}", COUNTED * scenario.items());
}

#[inline(never)]
fn counted(running: &mut Running) {
    black_box(running).turn();
}
