//! A file that others rewrite.
//! Owns: the last content read. May not: watch the file; it is looked at when someone wants to know.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the file is taken to be what it was.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A file younger than this when it was read may have changed since without a new time stamp.
const TIMESTAMP_STEP: Duration = Duration::from_secs(2);
/// Bytes read; a hosts file that blocks advertisers has a few million.
const MAX_LEN: u64 = 16 << 20;

/// A file's parsed content, read again when the file was rewritten or replaced. A file that cannot be read is
/// empty.
#[derive(Debug)]
pub(super) struct Followed<T> {
    path: PathBuf,
    parse: fn(&str) -> T,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    checked: Option<Instant>,
    /// What the file was when `value` was read; `None` to read it again in any case.
    stamp: Option<Stamp>,
}

/// Differs after every change but those within [`TIMESTAMP_STEP`].
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(self.changed.0).is_ok_and(|secs| Duration::from_secs(secs) + TIMESTAMP_STEP < now)
    }
}

impl<T> Followed<T> {
    pub(super) fn new(path: PathBuf, parse: fn(&str) -> T) -> Self {
        let state = State { value: Arc::new(parse("")), checked: None, stamp: None };
        Self { path, parse, state: Mutex::new(state) }
    }

    /// The content, at most [`CHECK_INTERVAL`] old.
    pub(super) fn current(&self) -> Arc<T> {
        let mut state = self.lock();
        if state.checked.is_none_or(|checked| checked.elapsed() >= CHECK_INTERVAL) {
            self.check(&mut state);
        }
        Arc::clone(&state.value)
    }

    /// The content as it is now.
    pub(super) fn reread(&self) -> Arc<T> {
        let mut state = self.lock();
        state.stamp = None;
        self.check(&mut state);
        Arc::clone(&state.value)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, state: &mut State<T>) {
        state.checked = Some(Instant::now());
        let unchanged = match (&state.stamp, std::fs::metadata(&self.path)) {
            (Some(stamp), Ok(meta)) => *stamp == Stamp::of(&meta),
            _ => false,
        };
        if unchanged {
            return;
        }
        let (text, stamp) = self.read().unwrap_or_else(|error| {
            tracing::debug!(path = %self.path.display(), %error, "not readable");
            Default::default()
        });
        state.value = Arc::new((self.parse)(&text));
        state.stamp = stamp.filter(Stamp::is_settled);
    }

    fn read(&self) -> io::Result<(String, Option<Stamp>)> {
        let file = File::open(&self.path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let mut bytes = Vec::new();
        file.take(MAX_LEN).read_to_end(&mut bytes)?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), Some(stamp)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_file_is_not_trusted_to_be_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let followed = Followed::new(path.clone(), str::to_owned);
        assert_eq!(*followed.reread(), "", "missing");
        std::fs::write(&path, b"text \xff").unwrap();
        assert_eq!(*followed.current(), "", "looked at a moment ago");
        assert_eq!(*followed.reread(), "text \u{fffd}");
        assert_eq!(followed.lock().stamp, None);

        let old = Stamp { changed: (1, 0), ..Stamp::of(&std::fs::metadata(&path).unwrap()) };
        assert!(old.is_settled());
    }
}
