//! Whether what is asked for is to be had, before anything is bound. Owns: nothing. May not: leave a file.
//! Read next: `config.rs`, which asks; `listen.rs`.

use std::path::Path;

use anyhow::Result;

use crate::addr::ListenAddress;
use crate::config::Wanted;
use crate::listen::{self, at_start, ensure_vacant};
use crate::succession;
use crate::vm;

/// Whether that socket can be made, in the place of another gvproxy's if there is one, waiting for a process
/// that is about to end.
///
/// # Errors
/// There is something else, somebody uses it, or it could not be made there.
pub fn ensure_to_be_made(source: &ListenAddress) -> Result<()> {
    at_start(|| {
        source.path().map_or(Ok(()), ensure_vacant_or_gvproxys)?;
        listen::ensure_to_be_made(source)
    })
}

/// Whether a socket can be made at the path, waiting for a process that is about to end.
///
/// # Errors
/// There is something else, or somebody uses it.
pub fn ensure_to_be_had(wanted: Wanted<'_>) -> Result<()> {
    at_start(|| match wanted {
        Wanted::Link(path) => ensure_vacant(path),
        Wanted::QemuLink(path) => ensure_vacant_or_machine(path),
        Wanted::Forward(path) => ensure_vacant_or_gvproxys(path),
    })
}

fn ensure_vacant_or_machine(path: &Path) -> Result<()> {
    match ensure_vacant(path) {
        // Then that is where the machine is.
        Err(_) if vm::serves_qmp(path) => Ok(()),
        vacant => vacant,
    }
}

/// Another gvproxy's sockets for clients go to this one.
fn ensure_vacant_or_gvproxys(path: &Path) -> Result<()> {
    if succession::of_gvproxy(path).is_some() { Ok(()) } else { ensure_vacant(path) }
}
