//! The permissions of a file that was made by its name. Owns: nothing. Read next: `../listen.rs`, which makes
//! sockets.

use rustix::fd::BorrowedFd;
use std::io;
use std::path::Path;

use super::files::FileId;
use super::os;

/// Sets the permissions of what is at `path`, if it is `file`: no link is followed that somebody put in
/// its place.
///
/// # Errors
/// Another file is there; or the system's.
pub fn set_mode(path: &Path, mode: u32, file: FileId) -> io::Result<()> {
    os::mode::set_mode(path, mode, file)
}

/// Gives the file that `socket` will be bound to these permissions, where the system takes them from the
/// socket's own.
pub fn set_before_bind(socket: BorrowedFd<'_>, mode: u32) {
    os::mode::set_before_bind(socket, mode);
}

pub(super) fn another() -> io::Error {
    io::Error::other("another file is there by now")
}
