//! Standard input, output and error as descriptors. Owns: those of a link, once they are taken.

use std::fs::File;
use std::io;

use rustix::fd::OwnedFd;

use super::os;

/// Standard input and output, which nobody else reads or writes from now on: the other side is to see a
/// link's end. The second is the first where one descriptor does both.
///
/// # Errors
/// One of them is closed.
pub fn take() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    os::stdio::take()
}

/// Waits until standard error has room, where another process has made it non-blocking.
///
/// # Errors
/// The system's.
pub fn wait_for_stderr() -> io::Result<()> {
    os::stdio::wait_for_stderr()
}

/// The same of a file.
///
/// # Errors
/// The system's.
pub fn wait_for(file: &File) -> io::Result<()> {
    os::stdio::wait_for(file)
}
