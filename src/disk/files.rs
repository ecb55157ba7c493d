//! Files of the host that others write: resolv.conf, hosts, a token, a secret. Owns: how much of one is read,
//! and what is none.
//! May not: be called where nothing may wait, but for [`read_within`] with a short limit. Read next:
//! `../disk.rs`, who may wait.
//!
//! The file may be on a file system that is slow or hangs, and anything may stand in its place.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::disk;
use crate::sys::files::{mode, nonblocking};

/// Permission bits that the file of a secret may not have: others' and the group's.
const OPEN: u32 = 0o077;

/// The first `max` bytes of a regular file, and what it was when it was opened.
///
/// # Errors
/// The system's. What is no regular file is not read: a FIFO, say, might keep the reader for ever.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<(Vec<u8>, Metadata)> {
    let file = open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // At once as large as it gets: what grows leaves copies behind, which nobody wipes.
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(max)).unwrap_or(0));
    file.take(max).read_to_end(&mut bytes)?;
    Ok((bytes, meta))
}

/// The same of a file that is its owner's alone. The bytes are wiped behind their use.
///
/// # Errors
/// As [`read`], and where others could read it.
pub(crate) fn read_private(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let (bytes, meta) = read(path, max)?;
    let bytes = Zeroizing::new(bytes);
    match mode(&meta) {
        None => Ok(bytes),
        Some(mode) if mode & OPEN == 0 => Ok(bytes),
        Some(mode) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its mode is {mode:04o}, want 0600: others could read it"),
        )),
    }
}

/// The same where the caller waits no longer than `limit`.
///
/// # Errors
/// As [`read`], and when the time is over.
pub(crate) fn read_within(path: &Path, max: u64, limit: Duration) -> io::Result<Vec<u8>> {
    let file = path.to_owned();
    let (bytes, _) = disk::within(limit, move || read(&file, max)).flatten()?;
    Ok(bytes)
}

/// Without waiting for a writer where a FIFO is in the file's place (fifo(7)).
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    nonblocking(options.read(true));
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        std::fs::write(&path, "some text").unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(read_within(&path, 4, limit).unwrap(), b"some");
        for no_file in [&fifo, dir.path(), Path::new("/dev/zero")] {
            let error = read_within(no_file, 4, limit).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}", no_file.display());
        }
        let error = read_within(&dir.path().join("none"), 4, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
