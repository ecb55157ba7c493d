//! The permissions of a file that was made by its name. Owns: nothing.
// UNSAFETY: rustix leaves out what glibc adds to fchmodat, with which this runs on Linux too.
#![expect(unsafe_code, reason = "fchmodat")]

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::sys::files::FileId;
use crate::sys::mode::another;

pub(crate) fn set_mode(path: &Path, mode: u32, file: FileId) -> io::Result<()> {
    if FileId::at(path)? != file {
        return Err(another());
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the call reads the path, which outlives it.
    let set = unsafe {
        libc::fchmodat(libc::AT_FDCWD, path.as_ptr(), mode as libc::mode_t, libc::AT_SYMLINK_NOFOLLOW)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A socket has no permissions here before it has a name.
pub(crate) fn set_before_bind(_socket: BorrowedFd<'_>, _mode: u32) {}
