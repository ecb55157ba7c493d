//! A file that others rewrite, or what the system tells instead.
//! Owns: the last content read, and the threads that read. May not: watch the file, it is looked at when
//! someone wants to know; make whoever asks wait for a file system that hangs.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::disk::files;
use crate::sys::files::Stamp;

/// How long the file is taken to be what it was.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for a reader; after that the content is what it was.
const PATIENCE: Duration = Duration::from_secs(1);
/// A reader that takes longer may be stuck: another one tries its luck, as long as there are not too many.
const STUCK: Duration = Duration::from_secs(10);
const MAX_READERS: usize = 3;
/// A file younger than this when it was read may have changed since without a new time stamp.
const TIMESTAMP_STEP: Duration = Duration::from_secs(2);
/// Bytes read; a hosts file that blocks advertisers has a few million.
const MAX_LEN: u64 = 16 << 20;

/// A file's parsed content, read again when the file was rewritten or replaced. A file that is not there is
/// empty; one that cannot be read is what it was.
#[derive(Debug)]
pub(super) struct Followed<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    source: Source,
    parse: fn(&str) -> T,
    state: Mutex<State<T>>,
    /// How many readers have come to an end.
    done: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    checked: Option<Instant>,
    /// What the file was when `value` was read; `None` to read it again in any case.
    stamp: Option<Stamp>,
    /// When the newest reader was started, while it reads.
    reading: Option<Instant>,
    /// Readers that are still at it, the number of the newest, and of the one that `value` is from.
    readers: usize,
    newest: u64,
    accepted: u64,
}

/// Where the text is.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    /// It is asked for each time.
    System(fn() -> io::Result<String>),
}

impl<T: Send + Sync + 'static> Followed<T> {
    pub(super) fn new(source: Source, parse: fn(&str) -> T) -> Self {
        let state = State {
            value: Arc::new(parse("")),
            checked: None,
            stamp: None,
            reading: None,
            readers: 0,
            newest: 0,
            accepted: 0,
        };
        Self(Arc::new(Shared { source, parse, state: Mutex::new(state), done: watch::Sender::new(0) }))
    }

    /// The content, at most [`CHECK_INTERVAL`] old where the file can be read.
    pub(super) async fn current(&self) -> Arc<T> {
        self.look(CHECK_INTERVAL).await
    }

    /// The content as it is now.
    pub(super) async fn reread(&self) -> Arc<T> {
        self.0.lock().stamp = None;
        self.look(Duration::ZERO).await
    }

    async fn look(&self, max_age: Duration) -> Arc<T> {
        let mut done = self.0.done.subscribe();
        if let Some(since) = self.0.start_reader(max_age) {
            let _ = timeout_at(since + PATIENCE, done.changed()).await;
        }
        Arc::clone(&self.0.lock().value)
    }
}

impl<T: Send + Sync + 'static> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the file looked at if that is due. Since when somebody does.
    fn start_reader(self: &Arc<Self>, max_age: Duration) -> Option<Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        let due = match state.reading {
            Some(since) => now - since >= STUCK && state.readers < MAX_READERS,
            None => state.checked.is_none_or(|checked| now - checked >= max_age),
        };
        if due {
            let number = state.newest + 1;
            let shared = Arc::clone(self);
            let reader = thread::Builder::new().name("file reader".to_owned());
            match reader.spawn(move || shared.check(number)) {
                Ok(_) => {
                    (state.newest, state.reading) = (number, Some(now));
                    state.readers += 1;
                }
                Err(error) => tracing::debug!(source = ?self.source, %error, "cannot read"),
            }
        }
        state.reading
    }

    /// What reader `number` does.
    fn check(&self, number: u64) {
        let known = self.lock().stamp.clone();
        let unchanged = match (&self.source, known) {
            (Source::File(path), Some(known)) => {
                std::fs::metadata(path).is_ok_and(|found| Stamp::of(&found) == known)
            }
            _ => false,
        };
        let read = if unchanged { None } else { Some(self.read()) };
        let mut state = self.lock();
        state.readers -= 1;
        if state.newest == number {
            state.reading = None;
        }
        if state.accepted < number {
            state.accepted = number;
            state.checked = Some(Instant::now());
            match read {
                None => {}
                Some(Ok((value, stamp))) => (state.value, state.stamp) = (Arc::new(value), stamp),
                Some(Err(error)) => {
                    tracing::debug!(source = ?self.source, %error, "not readable");
                    state.stamp = None;
                }
            }
        }
        drop(state);
        self.done.send_modify(|done| *done += 1);
    }

    fn read(&self) -> io::Result<(T, Option<Stamp>)> {
        let path = match &self.source {
            Source::File(path) => path,
            Source::System(ask) => return Ok(((self.parse)(&ask()?), None)),
        };
        let (bytes, stamp) = match files::read(path, MAX_LEN) {
            Ok((bytes, meta)) => {
                (bytes, Some(Stamp::of(&meta)).filter(|stamp| stamp.is_older_than(TIMESTAMP_STEP)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(error),
        };
        Ok(((self.parse)(&String::from_utf8_lossy(&bytes)), stamp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_young_file_is_not_trusted_to_be_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let followed = Followed::new(Source::File(path.clone()), str::to_owned);
        assert_eq!(*followed.reread().await, "", "missing");
        std::fs::write(&path, b"text \xff").unwrap();
        assert_eq!(*followed.current().await, "", "looked at a moment ago");
        assert_eq!(*followed.reread().await, "text \u{fffd}");
        assert_eq!(followed.0.lock().stamp, None);

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(*followed.reread().await, "text \u{fffd}", "not readable");
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(*followed.reread().await, "", "gone");
    }

    #[tokio::test]
    async fn of_a_huge_file_so_much_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(2 * MAX_LEN).unwrap();
        let followed = Followed::new(Source::File(path), |text| text.len() as u64);
        assert_eq!(*followed.reread().await, MAX_LEN);
    }

    /// The parser stands for a file system that hangs: it waits for the file `go`.
    #[tokio::test]
    async fn a_reader_that_hangs_is_waited_for_once() {
        fn parse(text: &str) -> String {
            while !text.is_empty() && !std::path::Path::new(text).exists() {
                thread::yield_now();
            }
            text.to_owned()
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, go) = (dir.path().join("file"), dir.path().join("go"));
        std::fs::write(&path, go.to_str().unwrap()).unwrap();
        let followed = Followed::new(Source::File(path), parse);
        let start = Instant::now();
        assert_eq!(*followed.current().await, "");
        let waited = start.elapsed();
        for _ in 0..100 {
            assert_eq!(*followed.reread().await, "");
        }
        assert!(start.elapsed() - waited < PATIENCE / 2, "{waited:?}, {:?}", start.elapsed());
        assert_eq!(followed.0.lock().readers, 1);
        std::fs::write(&go, "").unwrap();
        while *followed.reread().await != go.to_str().unwrap() {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}
