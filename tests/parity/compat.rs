//! COMPAT.md beside the table: each difference on purpose has its row, and each row that names this suite has
//! a case.

use crate::case::{Case, Expected};

/// What is wrong, a line each.
pub(crate) fn check(cases: &[Case]) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/COMPAT.md");
    let text = std::fs::read_to_string(path).expect("COMPAT.md");
    let rows: Vec<(&str, &str)> = text.lines().filter_map(row).collect();
    let mut wrong = Vec::new();
    let mut shown = Vec::new();
    for case in cases {
        let Expected::Differs { row, ours, original } = &case.expected else { continue };
        let test = format!("`parity::{}`", case.module());
        if !rows.iter().any(|(what, tests)| what == row && tests.contains(&test)) {
            wrong.push(format!("{}: COMPAT.md has no row {row:?} that names {test}", case.name));
        }
        if ours == original {
            wrong.push(format!("{}: what differs is the same", case.name));
        }
        shown.push((*row, test));
    }
    for (what, tests) in &rows {
        for test in tests.split(", ").filter(|test| test.contains("parity::")) {
            if !shown.iter().any(|(row, by)| row == what && by == test) {
                wrong.push(format!("COMPAT.md says that {test} shows {what:?}, and no case does"));
            }
        }
    }
    wrong
}

/// The first and the last cell of a row of a table.
fn row(line: &str) -> Option<(&str, &str)> {
    let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let (what, rest) = cells.split_once(" | ")?;
    Some((what, rest.rsplit_once('|')?.1.trim()))
}
