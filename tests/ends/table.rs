//! The rule for ends, counted: every scene on every way. Owns: the rounds and the table of what was kept. May
//! not: know what is on a way.
//! Read next: `scenes.rs`.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::scenes::SCENES;
use super::way::Way;

/// Of each scene on each way.
pub(crate) const ROUNDS: usize = 200;
/// Ways that are tried at the same time.
const AT_ONCE: usize = 3;
/// A scene that fails is given up after this time.
const LONGEST: Duration = Duration::from_secs(20);

/// What came of the rounds of one way and one scene.
struct Cell {
    kept: usize,
    rounds: usize,
    /// What went wrong first.
    why: Option<String>,
}

fn play(way: &Way<'_>, rounds: usize) -> Vec<Option<Cell>> {
    SCENES
        .iter()
        .map(|scene| {
            if way.lacks.iter().any(|(needs, _)| *needs == scene.needs) {
                return None;
            }
            let started = Instant::now();
            let mut cell = Cell { kept: 0, rounds: (rounds / scene.one_in).max(1), why: None };
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

/// Plays every scene on each of `ways` that `ENDS` does not leave out, and shows what came of it.
#[track_caller]
pub(crate) fn assert_kept(mut ways: Vec<Way<'_>>, rounds: usize) {
    if let Ok(wanted) = std::env::var("ENDS") {
        ways.retain(|way| wanted.split(',').any(|word| way.name.contains(word)));
    }
    assert!(!ways.is_empty(), "ENDS leaves nothing");
    let (next, rows) = (Mutex::new(0..ways.len()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(way) = {
                    let number = next.lock().unwrap().next();
                    number.map(|n| &ways[n])
                } {
                    let cells = play(way, rounds);
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
