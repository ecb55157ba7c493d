//! The rule for ends: whatever way a byte comes and whatever way it goes, what was received before an end, a half-close or a reset is delivered
//! before it. Every way through the daemon, and every way to end, counted, beside the same with nothing between.
//!
//! `ENDS="WORD,WORD"` plays only those ways in whose names one of the words is.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]
#[path = "support/guest_agent.rs"]
mod guest_agent;
#[path = "support/reversed.rs"]
mod reversed;
#[path = "ends/scenes.rs"]
mod scenes;
#[path = "support/sshd.rs"]
mod sshd;
mod support;
#[path = "ends/ways.rs"]
mod ways;

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reversed::Files;
use scenes::{Early, SCENES, hear_and_answer, hear_answer};
use ways::{Doors, Way, controls};

const ROUNDS: usize = 200;
/// Ways that are tried at the same time.
const AT_ONCE: usize = 3;
/// A scene that fails is given up after this time.
const LONGEST: Duration = Duration::from_secs(20);
/// Longest wait for a client.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of the rounds of one way and one scene.
struct Cell {
    kept: usize,
    rounds: usize,
    /// What went wrong first.
    why: Option<String>,
}

fn play(way: &Way<'_>) -> Vec<Option<Cell>> {
    SCENES
        .iter()
        .map(|scene| {
            if way.lacks.iter().any(|(needs, _)| *needs == scene.needs) {
                return None;
            }
            let started = Instant::now();
            let mut cell = Cell { kept: 0, rounds: ROUNDS / scene.one_in, why: None };
            for _ in 0..cell.rounds {
                // Silence takes long.
                if cell.why.as_ref().is_some_and(|_| started.elapsed() > LONGEST) {
                    break;
                }
                match scene.play(|| way.connect(), |patience| way.accept(patience)) {
                    Ok(()) => cell.kept += 1,
                    Err(why) => drop(cell.why.get_or_insert(why)),
                }
            }
            Some(cell)
        })
        .collect()
}

/// The table as it is shown.
fn show(rows: &[(&Way<'_>, Vec<Option<Cell>>)]) -> String {
    let mut text = String::new();
    for (way, cells) in rows {
        let name = way.name;
        let _ = write!(text, "{name:16}");
        for cell in cells {
            let shown =
                cell.as_ref().map_or_else(|| "-".into(), |cell| format!("{}/{}", cell.kept, cell.rounds));
            let _ = write!(text, " {shown:>7}");
        }
        text.push('\n');
        for (scene, cell) in SCENES.iter().zip(cells) {
            if let Some(why) = cell.as_ref().and_then(|cell| cell.why.as_ref()) {
                let _ = writeln!(text, "    {}: {why}", scene.name);
            }
        }
        for (needs, why) in way.lacks {
            let _ = writeln!(text, "    without {needs:?}: {why}");
        }
    }
    text
}

#[test]
fn what_was_received_before_an_end_is_delivered() {
    let files = Files::new();
    let rig = Doors::open().plug();
    let wanted = std::env::var("ENDS").unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|word| name.contains(word));
    let ways: Vec<_> =
        controls(&files).into_iter().chain(rig.ways()).filter(|way| is_wanted(way.name)).collect();
    let (next, rows) = (Mutex::new(0..ways.len()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(way) = {
                    let number = next.lock().unwrap().next();
                    number.map(|n| &ways[n])
                } {
                    let cells = play(way);
                    let row = (way, cells);
                    eprint!("{}", show(std::slice::from_ref(&row)));
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(row, _)| ways.iter().position(|way| way.name == row.name));
    let table = show(&rows);
    let all = rows.iter().flat_map(|(_, cells)| cells).flatten().all(|cell| cell.kept == cell.rounds);
    assert!(all, "not everything is delivered:\n{table}");
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
