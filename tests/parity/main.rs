//! Ours beside the original: one table of cases, each driven through a binary and written down as a short
//! text.
//! Owns: the run, the counts. Read next: `case.rs`, what a case is; a module for each subject has the cases.
//!
//! `cargo test --test parity [WORD...]` runs ours against what is recorded here, of the cases whose name has
//! one of the words; with `GVPROXY=/path/to/gvproxy` the original as well, against what is recorded of it.
//! `SHOW=1` prints what was seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a report")]

mod api;
mod case;
mod cli;
mod compat;
mod config;
mod dhcp;
mod dns;
mod forwards;
mod links;
mod network;
mod notify;
mod packets;
mod process;
mod rows;
mod ssh;
mod web;
mod wire;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use case::{Case, Expected, On};

/// Cases that run at once: they mostly wait.
const AT_ONCE: usize = 8;
/// Cases whose time is worth telling.
const LONG: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    if testkit::agent::serve_if_asked() {
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all = cases();
    let mut failures = rows::check(&all);
    failures.extend(compat::check(&all));
    let chosen: Vec<&Case> = all
        .iter()
        .filter(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word)))
        .collect();

    let mut subjects = vec![On::ours(env!("CARGO_BIN_EXE_gvproxy"))];
    let original = std::env::var_os("GVPROXY").map(PathBuf::from);
    subjects.extend(original.iter().map(On::original));
    for on in &subjects {
        failures.extend(run(&chosen, on));
    }

    let mut by_module = BTreeMap::<&str, (usize, usize)>::new();
    for case in &chosen {
        let counts = by_module.entry(case.module()).or_default();
        match case.expected {
            Expected::Same(_) => counts.0 += 1,
            Expected::Differs { .. } => counts.1 += 1,
        }
    }
    for (module, (same, different)) in &by_module {
        println!(
            "parity: {module}: {} cases, {same} the same, {different} different on purpose",
            same + different
        );
    }
    for (row, why) in rows::NOT_RUN {
        println!("parity: not run: {row}: {why}");
    }
    for failure in &failures {
        println!("parity: FAILED {failure}");
    }
    let (same, different) = by_module.values().fold((0, 0), |sum, add| (sum.0 + add.0, sum.1 + add.1));
    let beside = match &original {
        Some(path) => format!("beside the original at {}", path.display()),
        None => "the original was not run: GVPROXY is not set".to_owned(),
    };
    println!(
        "parity: {} cases, {same} the same, {different} different on purpose, {} failed ({beside})",
        chosen.len(),
        failures.len()
    );
    if failures.is_empty() && !chosen.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cases() -> Vec<Case> {
    [
        cli::cases(),
        api::cases(),
        forwards::cases(),
        links::cases(),
        network::cases(),
        dhcp::cases(),
        dns::cases(),
        config::cases(),
        notify::cases(),
        ssh::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Drives `cases` on one binary and tells where it was seen to do other than what is recorded.
fn run(cases: &[&Case], on: &On) -> Vec<String> {
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let show = std::env::var_os("SHOW").is_some();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    let seen = catch_unwind(AssertUnwindSafe(|| (case.drive)(on)))
                        .unwrap_or_else(|panic| format!("panic: {}", words_of(&*panic)));
                    let expected = case.expected.of(on);
                    if show {
                        println!("{} [{on}] {:.1?}\n    {seen}", case.name, begun.elapsed());
                    } else if begun.elapsed() > LONG {
                        println!("parity: {} on {on} took {:.1?}", case.name, begun.elapsed());
                    }
                    if seen != *expected {
                        let text =
                            format!("{} on {on}\n    expected: {expected}\n    seen:     {seen}", case.name);
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    println!("parity: {} cases on {on} in {:.0?}", cases.len(), start.elapsed());
    failures.into_inner().unwrap()
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?").to_owned()
}
