//! Whether what is asked for is to be had, before anything is bound. Owns: nothing. May not: make or change a file.
//! Read next: `config.rs`, which asks; `listen.rs`.

use std::path::Path;

use anyhow::Result;

use crate::config::Wanted;
use crate::listen::{self, at_start, ensure_vacant};
use crate::vm;

/// Whether a socket can be made at the path, waiting for a process that is about to end.
///
/// # Errors
/// There is something else, or somebody uses it.
pub fn ensure_to_be_had(wanted: Wanted<'_>) -> Result<()> {
    at_start(|| match wanted {
        Wanted::Link(path) => ensure_vacant(path),
        Wanted::QemuLink(path) => ensure_vacant_or_machine(path),
        Wanted::Forward(path) => listen::ensure_to_be_had(path),
    })
}

fn ensure_vacant_or_machine(path: &Path) -> Result<()> {
    match ensure_vacant(path) {
        // Then that is where the machine is.
        Err(_) if vm::serves_qmp(path) => Ok(()),
        vacant => vacant,
    }
}
