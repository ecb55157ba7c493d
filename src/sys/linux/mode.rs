//! The permissions of a file that was made by its name. Owns: nothing.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fchmod, openat};

use crate::sys::files::FileId;
use crate::sys::mode::another;

pub(crate) fn set_mode(path: &Path, mode: u32, file: FileId) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = File::from(openat(CWD, path, flags, Mode::empty())?);
    if FileId::of(&held)? != file {
        return Err(another());
    }
    // Such a descriptor has no access of its own, but leads to the file by proc(5).
    fs::set_permissions(format!("/proc/self/fd/{}", held.as_raw_fd()), Permissions::from_mode(mode))
}

pub(crate) fn set_before_bind(socket: BorrowedFd<'_>, mode: u32) {
    let _ = fchmod(socket, Mode::from_raw_mode(mode));
}
