//! Files of NTFS and its like, which have no owner's id and no permission bits. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "GetFileInformationByHandle")]

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::windows::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::windows::io::AsRawHandle as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_REPARSE_POINT, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_OPEN_REPARSE_POINT, GetFileInformationByHandle,
};

use crate::sys::files::FileId;

/// Of the link or the socket itself, which are reparse points; directories too.
pub(crate) fn id_at(path: &Path) -> io::Result<FileId> {
    let flags = FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS;
    id_of(&File::options().access_mode(0).custom_flags(flags).open(path)?)
}

pub(crate) fn id_of(file: &File) -> io::Result<FileId> {
    let mut told = MaybeUninit::<BY_HANDLE_FILE_INFORMATION>::zeroed();
    // SAFETY: the handle is open, and the call writes one structure, which zeros are too, to where it is
    // told.
    let (done, told) = unsafe {
        let done = GetFileInformationByHandle(file.as_raw_handle(), told.as_mut_ptr());
        (done, told.assume_init())
    };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    let index = u64::from(told.nFileIndexHigh) << 32 | u64::from(told.nFileIndexLow);
    Ok(FileId(told.dwVolumeSerialNumber.into(), index))
}

/// A new file of the same name has another creation time, unless it takes the old one's place at once; and
/// the last write.
pub(crate) fn identity(found: &Metadata) -> ((u64, u64), SystemTime) {
    /// Of 100 ns, from 1601 to 1970.
    const EPOCH: u64 = 116_444_736_000_000_000;
    let since = Duration::from_nanos(found.last_write_time().saturating_sub(EPOCH).saturating_mul(100));
    ((found.creation_time(), 0), UNIX_EPOCH + since)
}

pub(crate) fn owner(_found: &Metadata) -> Option<u32> {
    None
}

pub(crate) fn mode(_found: &Metadata) -> Option<u32> {
    None
}

/// A socket is a reparse point, and no link.
pub(crate) fn is_socket(found: &Metadata) -> bool {
    found.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0 && !found.is_symlink() && !found.is_dir()
}

pub(crate) fn is_fifo(_found: &Metadata) -> bool {
    false
}

pub(crate) fn set_new_mode(_options: &mut OpenOptions, _mode: u32) {}

#[expect(clippy::unnecessary_wraps, reason = "the face of those that have modes")]
pub(crate) fn set_mode(_file: &File, _mode: u32) -> io::Result<()> {
    Ok(())
}

/// Only who may make links at all makes one that leads elsewhere.
pub(crate) fn not_followed(_options: &mut OpenOptions) {}

pub(crate) fn nonblocking(_options: &mut OpenOptions) {}

/// Whether it is there: what may be done in it is said when it is.
pub(crate) fn may_make_in(directory: &Path) -> io::Result<()> {
    match directory.metadata()?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

pub(crate) fn set_owner(_path: &Path, _user: Option<u32>, _group: Option<u32>) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "Windows has no such owners"))
}

pub(crate) fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
