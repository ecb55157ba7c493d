//! Files have no permission bits here. Owns: nothing.

use std::io;
use std::os::windows::io::BorrowedSocket;
use std::path::Path;

use crate::sys::files::FileId;
use crate::sys::mode::another;

pub(crate) fn set_mode(path: &Path, _mode: u32, file: FileId) -> io::Result<()> {
    if FileId::at(path)? == file { Ok(()) } else { Err(another()) }
}

/// What a socket's directory lets in the socket does.
pub(crate) fn set_before_bind(_socket: BorrowedSocket<'_>, _mode: u32) {}
