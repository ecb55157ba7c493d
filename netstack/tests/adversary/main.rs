//! A guest that means harm beside one that works, as a fuzzer of frames: [`attacker`] keeps ARP, DHCP, TCP,
//! UDP and fragments in dialogue with the network and says what it likes in between, in its own name and in
//! others'; after every few of its frames [`victim`] does what guests do and has to find all as it should be.
//! What is sent to either is checked frame by frame.
//!
//! `SEED=n cargo test -p gvproxy-netstack --test adversary` begins with the round that failed; `FRAMES=n`
//! runs longer.
//! Owns: how many rounds, and what they have to come to. Read next: `round.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod attacker;
#[path = "../shared/config.rs"]
mod config;
#[path = "../shared/frames.rs"]
mod frames;
mod random;
#[path = "../shared/rng.rs"]
mod rng;
mod round;
mod segments;
mod victim;

use std::panic::catch_unwind;

use round::{Round, Tally};

/// Frames of the attacker's, all rounds together: a minute or so.
const FRAMES: u64 = 4_000_000;
/// Frames of the attacker's in one round, which begins with a new network.
const ROUND: u64 = 20_000;

#[test]
fn whatever_one_guest_says_another_works() {
    let (first, frames) = (parameter("SEED"), parameter("FRAMES").unwrap_or(FRAMES));
    let first =
        first.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 1);
    let mut tally = Tally::default();
    for seed in first..first + frames.div_ceil(ROUND) {
        let one = catch_unwind(|| Round::new(seed).run(ROUND)).unwrap_or_else(|_| panic!("SEED={seed}"));
        tally.add(&one);
    }
    println!("{tally:?}");
    tally.assert_that_it_shows_much();
}

/// A guest shut its window and acknowledged everything with the end: the gateway acknowledged nothing,
/// without end.
#[test]
fn a_window_that_is_shut_at_the_end_ends() {
    Round::new(451_290_325_061_370_328).run(ROUND);
}

#[test]
fn the_same_round_does_the_same() {
    let seed = parameter("SEED").unwrap_or(7);
    assert_eq!(Round::new(seed).run(ROUND), Round::new(seed).run(ROUND));
}

#[expect(clippy::disallowed_methods, reason = "a test's parameter, not the network's")]
fn parameter(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
