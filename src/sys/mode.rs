//! The permissions of a file that was made by its name. Owns: nothing. Read next: `../listen.rs`, which makes
//! sockets.

use std::fs::Metadata;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode};

/// Sets the permissions of the file at `path`, if it is that one: no link is followed that somebody put in
/// its place.
///
/// # Errors
/// Another file is there; or the system's.
#[cfg(target_os = "linux")]
pub fn set_mode(path: &Path, mode: u32, is_it: impl Fn(&Metadata) -> bool) -> io::Result<()> {
    use std::fs::{self, File, Permissions};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::OFlags;

    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    if !is_it(&held.metadata()?) {
        return Err(another());
    }
    // Such a descriptor has no access of its own, but leads to the file by proc(5).
    fs::set_permissions(format!("/proc/self/fd/{}", held.as_raw_fd()), Permissions::from_mode(mode))
}

/// The same.
///
/// # Errors
/// The same.
#[cfg(not(target_os = "linux"))]
pub fn set_mode(path: &Path, mode: u32, is_it: impl Fn(&Metadata) -> bool) -> io::Result<()> {
    if !is_it(&path.symlink_metadata()?) {
        return Err(another());
    }
    let mode = Mode::from_raw_mode(mode as rustix::fs::RawMode);
    Ok(rustix::fs::chmodat(CWD, path, mode, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

fn another() -> io::Error {
    io::Error::other("another file is there by now")
}
