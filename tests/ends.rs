//! The rule for ends: whatever way a byte comes and whatever way it goes, what was received before an end, a
//! half-close or a reset is delivered before it. Every way through the daemon, and every way to end, counted,
//! beside the same with nothing between.
//!
//! `ENDS="WORD,WORD"` plays only those ways in whose names one of the words is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]
#[path = "ends/scenes.rs"]
mod scenes;
#[path = "ends/table.rs"]
mod table;
#[path = "ends/way.rs"]
mod way;
#[path = "ends/ways.rs"]
mod ways;

use std::time::Duration;

use scenes::{Early, hear_and_answer, hear_answer};
use table::{ROUNDS, assert_kept};
use testkit::reversed::Files;
use ways::{Doors, controls};

testkit::agent_in_a_namespace!();

/// Longest wait for a client.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn what_was_received_before_an_end_is_delivered() {
    let files = Files::new();
    let rig = Doors::open().plug();
    assert_kept(controls(&files).into_iter().chain(rig.ways()).collect(), ROUNDS);
}

/// The client has said everything and ended before the guest's system has answered.
#[test]
fn a_client_that_ends_before_its_guest_answers_is_heard() {
    let rig = Doors::open().plug();
    let mut missed = Vec::new();
    for way in rig.ways().iter().filter(|way| way.dials) {
        for early in Early::ALL {
            let mut kept = 0;
            for _ in 0..ROUNDS {
                rig.hold(true);
                let client =
                    way.connect().map_err(|error| error.to_string()).and_then(|client| early.say(client));
                rig.hold(false);
                let heard = hear_and_answer(way.accept(PATIENCE));
                let answered = client.and_then(|client| client.as_ref().map_or(Ok(()), hear_answer));
                kept += usize::from(heard.is_ok() && answered.is_ok());
                missed.extend(heard.and(answered).err().map(|why| format!("{} {early:?}: {why}", way.name)));
            }
            eprintln!("{:16} {early:?}: {kept}/{ROUNDS}", way.name);
        }
    }
    assert!(missed.is_empty(), "{} are not heard, first {:?}", missed.len(), missed[0]);
}

/// The same before there is a guest at all.
#[test]
fn a_client_that_ends_before_its_guest_is_there_is_heard() {
    const CLIENTS: usize = 20;
    let doors = Doors::open();
    let mut listening = Vec::new();
    for (name, connect) in doors.patient() {
        for early in Early::ALL {
            for _ in 0..CLIENTS {
                let client = early.say(connect().unwrap()).unwrap();
                listening.extend(client.map(|client| (name, client)));
            }
        }
    }
    let names: Vec<_> = doors.patient().into_iter().map(|(name, _)| name).collect();
    let rig = doors.plug();
    let mut missed = Vec::new();
    for way in rig.ways().iter().filter(|way| names.contains(&way.name)) {
        for number in 0..CLIENTS * Early::ALL.len() {
            let heard = hear_and_answer(way.accept(PATIENCE));
            missed.extend(heard.err().map(|why| format!("{} {number}: {why}", way.name)));
        }
    }
    for (name, client) in &listening {
        missed.extend(hear_answer(client).err().map(|why| format!("{name}: {why}")));
    }
    assert!(missed.is_empty(), "{} are not heard: {missed:#?}", missed.len());
}
