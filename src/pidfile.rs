//! The pid file. Owns: its file while the process runs. Read next: `main.rs`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::disk;
use crate::text::reason;

/// The process id in decimal without a newline, which podman's parser would refuse. Dropping removes the file if
/// it still says so.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file, over whatever was in it.
    ///
    /// # Errors
    /// The file cannot be made, or not be written; then nothing is left of it.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |what: &str, call: &str, error: &io::Error| {
            anyhow!("failed to {what} pidfile: {call} {}: {}", path.display(), reason(error))
        };
        let mut file = disk::create(path).map_err(|error| failed("create", "open", &error))?;
        if let Err(error) = file.write_all(pid().as_bytes()) {
            let failed = failed("write", "write", &error);
            if file.metadata().is_ok_and(|found| found.is_file()) {
                let _ = fs::remove_file(path);
            }
            return Err(failed);
        }
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let path = self.path.clone();
        let removed = disk::ask_at_last(move || match is_ours(&path) {
            true => fs::remove_file(&path).map(|()| true),
            false => Ok(false),
        });
        let path = self.path.display();
        match removed.flatten() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%path, "pidfile is not ours any more, left alone"),
            Err(error) => tracing::warn!(%path, reason = reason(&error), "cannot remove pidfile"),
        }
    }
}

fn pid() -> String {
    std::process::id().to_string()
}

fn is_ours(path: &Path) -> bool {
    let mut text = Vec::new();
    let regular = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    regular
        && File::open(path).and_then(|file| file.take(32).read_to_end(&mut text)).is_ok()
        && text == pid().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_pid_alone_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "a much longer text of a dead predecessor").unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), pid());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_successors_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
    }

    #[test]
    fn a_file_that_cannot_be_made_or_written_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/pid");
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("failed to create pidfile: open {}: no such file or directory", path.display())
        );
        let error = PidFile::create(Path::new("/dev/full")).unwrap_err().to_string();
        assert_eq!(error, "failed to write pidfile: write /dev/full: no space left on device");
    }
}
