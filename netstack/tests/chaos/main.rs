//! Random programs for [`driver`], and the ones that a fuzzer found worth keeping: what CI can run without a
//! nightly compiler.
//!
//! `SEED=n cargo test -p gvproxy-netstack --test chaos` repeats a failed run; `cargo +nightly fuzz run
//! operations fuzz/corpus/operations fuzz/seeds/operations` in `netstack/`, after `mkdir -p
//! fuzz/corpus/operations`, looks for more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod driver;
#[path = "../shared/rng.rs"]
mod rng;

use std::panic::catch_unwind;
use std::path::Path;

use rng::Rng;

const PROGRAMS: u64 = 1000;
/// Bytes of a program: some hundred operations.
const LENGTH: usize = 32 << 10;

#[test]
fn random_programs() {
    let first = seed();
    let (mut open, mut carried) = (0, 0);
    for seed in first..first + PROGRAMS {
        let program = random(seed);
        let summary = catch_unwind(|| driver::run(&program)).unwrap_or_else(|_| panic!("SEED={seed}"));
        open = open.max(summary.open);
        carried += summary.carried;
    }
    println!("{open} connections at most, {carried} bytes carried");
    assert!(open >= 3 && carried > 0, "{open} connections at most and {carried} bytes show little");
}

#[test]
fn kept_programs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/operations");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("fuzz/seeds/operations") {
        let path = entry.unwrap().path();
        let program = std::fs::read(&path).unwrap();
        catch_unwind(|| driver::run(&program)).unwrap_or_else(|_| panic!("{}", path.display()));
        count += 1;
    }
    assert!(count > 0, "no programs are kept");
}

#[test]
fn the_same_program_does_the_same() {
    let program = random(seed());
    assert_eq!(driver::run(&program), driver::run(&program));
}

/// SEED, or another one each time.
#[expect(clippy::disallowed_methods, reason = "a test's parameter, not the network's")]
fn seed() -> u64 {
    let any = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 1;
    std::env::var("SEED").map_or_else(|_| any(), |text| text.parse().expect("SEED is a number"))
}

fn random(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    std::iter::repeat_with(|| rng.draw().to_le_bytes()).take(LENGTH / 8).flatten().collect()
}
