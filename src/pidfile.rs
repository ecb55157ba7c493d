//! The pid file. Owns: its file while the daemon runs. May not: take it from a daemon that runs before ours
//! does. Read next: `daemon.rs`.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::disk;
use crate::disk::files;
use crate::sys::files::{FileId, may_make_in};
use crate::text::reason;

/// How long another start may keep us waiting, and how often to look.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// Whether the file can be made at `path`, or written over. Changes nothing.
///
/// # Errors
/// It cannot.
pub fn ensure(path: &Path) -> Result<()> {
    let made = match disk::open(path, |options| options.write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            may_make_in(directory.unwrap_or_else(|| Path::new(".")))
        }
        opened => opened.map(drop),
    };
    made.map_err(|error| failed("create", "open", path, &error))
}

fn failed(what: &str, call: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!("failed to {what} pidfile: {call} {}: {}", path.display(), reason(error))
}

/// The process id in decimal without a newline, which podman's parser would refuse. Dropping removes the file
/// if it still says so.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// What the file held, which may be the id of a daemon that runs: given back unless this one comes to
    /// run.
    before: Option<Vec<u8>>,
    /// Held until it is known which of the two it is, as another may be started at the same time.
    lock: Option<File>,
    /// Another start has kept the lock: the file is written when this one comes to run, as only one does.
    is_late: bool,
}

impl PidFile {
    /// Writes the file, over whatever was in it, for a daemon that is about to run.
    ///
    /// # Errors
    /// The file cannot be made, or not be written; then it is as it was.
    pub fn create(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let lock = match lock(&path) {
            Lock::Ours(lock) => Some(lock),
            Lock::None => None,
            Lock::Anothers => return Ok(Self { path, before: None, lock: None, is_late: true }),
        };
        let before = content(&path).filter(|content| !content.is_empty());
        write(&path, before.as_deref())?;
        Ok(Self { path, before, lock, is_late: false })
    }

    /// From now on the daemon runs, and the file is its own.
    ///
    /// # Errors
    /// It could not be written before, as another start had it, and cannot be now.
    pub fn keep(mut self) -> Result<Self> {
        if std::mem::take(&mut self.is_late) {
            write(&self.path, None)?;
        }
        (self.before, self.lock) = (None, None);
        Ok(self)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.is_late {
            return;
        }
        let (path, before) = (self.path.clone(), self.before.take());
        let removed = disk::ask_at_last(move || match content(&path) {
            Some(content) if content == pid().as_bytes() => put_back(&path, before.as_deref()).map(|()| true),
            _ => Ok(false),
        });
        let path = self.path.display();
        match removed.flatten() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%path, "pidfile is not ours any more, left alone"),
            Err(error) => tracing::warn!(%path, reason = reason(&error), "cannot remove pidfile"),
        }
    }
}

fn write(path: &Path, before: Option<&[u8]>) -> Result<()> {
    let mut file = disk::create(path).map_err(|error| failed("create", "open", path, &error))?;
    let written = file.write_all(pid().as_bytes());
    if written.is_err() && file.metadata().is_ok_and(|found| found.is_file()) {
        let _ = put_back(path, before);
    }
    written.map_err(|error| failed("write", "write", path, &error))
}

enum Lock {
    Ours(File),
    Anothers,
    /// There is no regular file to be locked.
    None,
}

/// Waits, for a while, until nobody else is about to write the file, which is made if it is not there.
fn lock(path: &Path) -> Lock {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let Ok(file) = disk::open(path, |options| options.write(true).create(true)) else {
            return Lock::None;
        };
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Lock::None;
        }
        let is_locked = file.try_lock().is_ok();
        let is_same = || Ok::<_, io::Error>(FileId::of(&File::open(path)?)? == FileId::of(&file)?);
        // Whoever had it may have removed it.
        if is_locked && is_same().unwrap_or(false) {
            return Lock::Ours(file);
        }
        thread::sleep(LOOK);
    }
    Lock::Anothers
}

/// What a file says, as far as it may be about a process; `None` if there is no regular one.
fn content(path: &Path) -> Option<Vec<u8>> {
    fs::symlink_metadata(path).ok().filter(Metadata::is_file)?;
    files::read(path, 4096).ok().map(|(text, _)| text)
}

fn put_back(path: &Path, before: Option<&[u8]>) -> io::Result<()> {
    before.map_or_else(|| fs::remove_file(path), |before| fs::write(path, before))
}

fn pid() -> String {
    std::process::id().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_pid_alone_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "a much longer text of a dead predecessor").unwrap();
        let file = PidFile::create(&path).unwrap().keep().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), pid());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_start_that_fails_leaves_it_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        drop(PidFile::create(&path).unwrap());
        assert!(!path.exists());
        fs::write(&path, "1").unwrap();
        drop(PidFile::create(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    }

    /// Of several that are started at once, whoever runs has the file, whatever the others do and when.
    #[test]
    fn a_start_that_is_late_takes_nothing_before_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        for late_runs in [false, true] {
            let first = File::create(&path).unwrap();
            fs::write(&path, "1").unwrap();
            first.lock().unwrap();
            let late = PidFile::create(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "1");
            if late_runs {
                let _running = late.keep().unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), pid());
            } else {
                drop(late);
                assert_eq!(fs::read_to_string(&path).unwrap(), "1");
            }
        }
    }

    #[test]
    fn a_successors_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::create(&path).unwrap().keep().unwrap();
        fs::write(&path, "1").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_made_or_written_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/pid");
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert_eq!(ensure(&path).unwrap_err().to_string(), error);
        assert_eq!(
            error,
            format!("failed to create pidfile: open {}: no such file or directory", path.display())
        );
        let error = PidFile::create(Path::new("/dev/full")).unwrap_err().to_string();
        assert_eq!(error, "failed to write pidfile: write /dev/full: no space left on device");
    }
}
