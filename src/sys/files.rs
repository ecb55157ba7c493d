//! What systems say of files, and how one is opened. Owns: nothing. Read next: `../disk.rs`, which may wait.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::os;

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub(super) u64, pub(super) u64);

impl FileId {
    /// Of what has this name, be it a link.
    ///
    /// # Errors
    /// The system's.
    pub fn at(path: &Path) -> io::Result<Self> {
        os::files::id_at(path)
    }

    /// Of an open file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        os::files::id_of(file)
    }
}

/// What a file is at a moment: another after every change, as far as the system's clock tells moments apart,
/// and of every other file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Device and inode, where the system tells.
    file: (u64, u64),
    len: u64,
    written: Option<SystemTime>,
    /// When it was changed in any way, its name or its mode too, where the system tells.
    changed: SystemTime,
}

impl Stamp {
    /// That of what `found` was asked of.
    pub fn of(found: &Metadata) -> Self {
        let (file, changed) = os::files::identity(found);
        Self { file, len: found.len(), written: found.modified().ok(), changed }
    }

    /// Whether the last change was before `age`: a clock may have too few steps for two that follow at once.
    pub fn is_older_than(&self, age: Duration) -> bool {
        self.changed.elapsed().is_ok_and(|elapsed| elapsed > age)
    }
}

/// Whose file it is; `None` where users have no ids.
pub fn owner(found: &Metadata) -> Option<u32> {
    os::files::owner(found)
}

/// Its permission bits; `None` where the system has none.
pub fn mode(found: &Metadata) -> Option<u32> {
    os::files::mode(found)
}

/// Whether it is a unix socket.
pub fn is_socket(found: &Metadata) -> bool {
    os::files::is_socket(found)
}

/// Whether it is a FIFO.
pub fn is_fifo(found: &Metadata) -> bool {
    os::files::is_fifo(found)
}

/// A new file gets these permission bits, where there are such. Where not, it has what its directory says.
pub fn set_new_mode(options: &mut OpenOptions, mode: u32) {
    os::files::set_new_mode(options, mode);
}

/// Gives an open file these permission bits, where there are such.
///
/// # Errors
/// The system's.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    os::files::set_mode(file, mode)
}

/// Opens no link, where the system can say so.
pub fn not_followed(options: &mut OpenOptions) {
    os::files::not_followed(options);
}

/// Waits for nobody at the other end of a FIFO.
pub fn nonblocking(options: &mut OpenOptions) {
    os::files::nonblocking(options);
}

/// Whether this process may make files in `directory`, as far as that can be told before.
///
/// # Errors
/// It may not.
pub fn may_make_in(directory: &Path) -> io::Result<()> {
    os::files::may_make_in(directory)
}

/// Gives what has this name, be it a link, to another user or group.
///
/// # Errors
/// The system's; or users have no ids.
pub fn set_owner(path: &Path, user: Option<u32>, group: Option<u32>) -> io::Result<()> {
    os::files::set_owner(path, user, group)
}

/// Makes a link at `link` that leads to `target`.
///
/// # Errors
/// The system's.
pub fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    os::files::symlink(target, link)
}
