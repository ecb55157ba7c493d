//! What the daemon asks of file systems, one of which may stand still: a network's that lost its server, or a
//! FIFO that nobody reads.
//! Owns: the threads that wait there, and how many. May not: let the control plane wait for one, or anybody
//! without a limit.
//! Read next: `disk/files.rs`, how much of a file is read; `pcap.rs`, `logging/writer.rs`, which have threads
//! of their own.

pub(crate) mod files;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use socket2::{SockAddr, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::sys::files::{is_fifo, not_followed, owner, set_new_mode};
use crate::sys::sockets;
use crate::sys::stream::{self, Stream};
use crate::sys::users::effective_id;

/// How long a file system may take that works.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where the end of the process waits.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Calls in one directory at a time; more wait. One that never returns keeps a thread.
const AT_ONCE: usize = 4;

/// A new file at `path`, or the one that is there, emptied.
///
/// # Errors
/// The system's.
pub fn create(path: &Path) -> io::Result<File> {
    open(path, |options| options.write(true).create(true).truncate(true))
}

/// The same, and a new one is for nobody else to read.
///
/// # Errors
/// The system's.
pub fn create_private(path: &Path) -> io::Result<File> {
    open(path, |options| {
        set_new_mode(options, 0o600);
        options.write(true).create(true).truncate(true)
    })
}

/// The same with all that is there, and what is written always goes behind it, whoever shortened it
/// meanwhile.
///
/// # Errors
/// The system's.
pub fn append(path: &Path) -> io::Result<File> {
    open(path, |options| options.append(true).create(true))
}

/// Opens as `how` says, but by no link that another user made: who may write to a directory could lead root
/// to any file. A FIFO is opened for reading as well: to open one that nobody reads would wait for somebody
/// (fifo(7)).
pub(crate) fn open(path: &Path, how: impl FnOnce(&mut OpenOptions) -> &mut OpenOptions) -> io::Result<File> {
    let mut options = File::options();
    how(options.read(path.metadata().is_ok_and(|found| is_fifo(&found))));
    let mut direct = options.clone();
    not_followed(&mut direct);
    let opened = direct.open(path);
    if opened.is_ok() || !path.is_symlink() {
        return opened;
    }
    if let Some(maker) = owner(&path.symlink_metadata()?)
        && maker != 0
        && Some(maker) != effective_id()
    {
        let why = format!("it is a link of another user's, {maker}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    options.open(path)
}

/// Does `work`, which has to do with `path`, without holding up the control plane. To be called in a tokio
/// runtime.
///
/// # Errors
/// The file system does not answer (`TimedOut`); what `work` gives when it does is dropped.
pub async fn ask<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    ask_within(PATIENCE, path, work).await
}

/// The same with less patience, as the end of the process may wait for it.
///
/// # Errors
/// As [`ask`].
pub async fn ask_soon<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    ask_within(LAST_PATIENCE, path, work).await
}

async fn ask_within<T: Send + 'static>(
    limit: Duration,
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let directory = path.parent().unwrap_or(path).to_owned();
    let answer = async {
        let permit = DirectoryPermit::take(directory).await;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    };
    match timeout(limit, answer).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failed)) => Err(failed.into()),
        Err(_) => Err(no_answer()),
    }
}

/// Connects to the unix socket at `path`, as [`Stream::connect`] does but for what the file system may
/// take.
///
/// # Errors
/// The system's, and as [`ask`].
pub async fn connect(path: &Path) -> io::Result<Stream> {
    let to = SockAddr::unix(path)?;
    let connected = ask(path, move || {
        let socket = sockets::unix(Type::STREAM)?;
        // A full backlog refuses at once.
        socket.set_nonblocking(true)?;
        socket.connect(&to)?;
        Ok(socket)
    });
    stream::watch(connected.await.flatten()?.into())
}

/// Does `work` while the caller waits, as there is nothing else to do; what takes longer than `limit` is left
/// alone.
///
/// # Errors
/// As [`ask`], and the system has no thread to give.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, done) = mpsc::channel();
    thread::Builder::new().name("disk".to_owned()).spawn(move || {
        let _ = sender.send(work());
    })?;
    done.recv_timeout(limit).map_err(|_| no_answer())
}

/// The same with the patience of [`ask_soon`]. Once [`process_ends`] all together take little more than one.
///
/// # Errors
/// As [`within`].
pub fn ask_at_last<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let limit = if GIVEN_UP.load(Ordering::Relaxed) { LAST_PATIENCE / 20 } else { LAST_PATIENCE };
    within(limit, work).inspect_err(|_| GIVEN_UP.store(ENDING.load(Ordering::Relaxed), Ordering::Relaxed))
}

/// From now on nobody waits twice for what does not answer.
pub fn process_ends() {
    ENDING.store(true, Ordering::Relaxed);
}

static ENDING: AtomicBool = AtomicBool::new(false);
/// A file system has not answered in time since.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the file system does not answer")
}

/// One of the calls in a directory.
struct DirectoryPermit {
    directory: PathBuf,
    permit: Option<OwnedSemaphorePermit>,
}

/// Those that are under way, by directory.
static UNDER_WAY: Mutex<BTreeMap<PathBuf, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());

fn under_way() -> MutexGuard<'static, BTreeMap<PathBuf, Arc<Semaphore>>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DirectoryPermit {
    async fn take(directory: PathBuf) -> Self {
        let free =
            under_way().entry(directory.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone();
        // Nobody closes it.
        let permit = free.acquire_owned().await.ok();
        Self { directory, permit }
    }
}

impl Drop for DirectoryPermit {
    fn drop(&mut self) {
        let mut calls = under_way();
        drop(self.permit.take());
        // Whoever waits has it too.
        if calls.get(&self.directory).is_some_and(|free| Arc::strong_count(free) == 1) {
            calls.remove(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_directory_that_stands_still_costs_its_users_only() {
        let (thaw, frozen) = channel::<()>();
        let frozen = Arc::new(Mutex::new(frozen));
        for _ in 0..3 * AT_ONCE {
            let frozen = Arc::clone(&frozen);
            let stuck = ask_within(SHORT, Path::new("/frozen/file"), move || {
                let _ = frozen.lock().unwrap().recv();
            });
            assert_eq!(stuck.await.unwrap_err().to_string(), "the file system does not answer");
        }
        let kept = under_way().get(Path::new("/frozen")).unwrap().available_permits();
        assert_eq!(kept, 0);
        assert_eq!(ask(Path::new("/other/file"), || 7).await.unwrap(), 7);
        assert!(!under_way().contains_key(Path::new("/other")));
        drop(thaw);
        assert_eq!(ask(Path::new("/frozen/file"), || 8).await.unwrap(), 8);
    }
}
