//! What this suite owes a case: rows of the project's reference of the original's behaviour. Section 9 lists
//! what the original's own tests hold, section 10 the edge cases. A row without a case stands in [`NOT_RUN`]
//! with the reason, or the run fails.

use crate::case::Case;

/// Items of section 9.
const HELD: usize = 44;
/// Rows of section 10.
const EDGES: usize = 80;

/// Rows without a case, and why.
pub(crate) const NOT_RUN: &[(&str, &str)] = &[
    ("9.14", "a Go library that builds command lines: no binary does"),
    ("9.42", "win-sshproxy, on Windows"),
    ("9.43", "win-sshproxy, on Windows"),
    ("9.44", "win-sshproxy, on Windows"),
    ("10.29", "takes 235 s; `cli 10.26` and `ssh` have its beginning"),
    ("10.75", "gvforwarder, which GVPROXY does not name; tests/gvforwarder.rs has ours"),
];

/// What is wrong, a line each.
pub(crate) fn check(cases: &[Case]) -> Vec<String> {
    let mut wrong = Vec::new();
    let owed = (1..=HELD).map(|n| format!("9.{n}")).chain((1..=EDGES).map(|n| format!("10.{n}")));
    for row in owed {
        let shown = cases.iter().any(|case| case.rows().any(|name| name == row));
        let reason = NOT_RUN.iter().any(|(name, _)| *name == row);
        if shown == reason {
            let what =
                if shown { "has a case and a reason for none" } else { "has neither a case nor a reason" };
            wrong.push(format!("row {row} of the reference {what}"));
        }
    }
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    wrong.extend(
        names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| format!("two cases {}", pair[0])),
    );
    wrong
}
