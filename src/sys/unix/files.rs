//! stat(2) and what goes with it. Owns: nothing.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, AtFlags, CWD, Gid, OFlags, Uid, access, chownat};

use crate::sys::files::FileId;

pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    path.symlink_metadata().map(|found| FileId(found.dev(), found.ino()))
}

pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    file.metadata().map(|found| FileId(found.dev(), found.ino()))
}

/// Device and inode, and when that was changed.
pub(crate) fn identity(found: &Metadata) -> ((u64, u64), SystemTime) {
    let seconds = Duration::from_secs(u64::try_from(found.ctime()).unwrap_or(0));
    let part = Duration::from_nanos(u64::try_from(found.ctime_nsec()).unwrap_or(0));
    ((found.dev(), found.ino()), UNIX_EPOCH + seconds + part)
}

#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has none")]
pub(crate) fn owner(found: &Metadata) -> Option<u32> {
    Some(found.uid())
}

#[expect(clippy::unnecessary_wraps, reason = "likewise")]
pub(crate) fn mode(found: &Metadata) -> Option<u32> {
    Some(found.permissions().mode() & 0o777)
}

pub(crate) fn is_socket(found: &Metadata) -> bool {
    found.file_type().is_socket()
}

pub(crate) fn is_fifo(found: &Metadata) -> bool {
    found.file_type().is_fifo()
}

pub(crate) fn set_new_mode(options: &mut OpenOptions, mode: u32) {
    options.mode(mode);
}

pub(crate) fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}

pub(crate) fn not_followed(options: &mut OpenOptions) {
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
}

pub(crate) fn nonblocking(options: &mut OpenOptions) {
    options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
}

pub(crate) fn may_make_in(directory: &Path) -> io::Result<()> {
    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}

pub(crate) fn set_owner(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
    Ok(chownat(CWD, path, user, group, AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(crate) fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}
