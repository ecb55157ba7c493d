//! inotify(7). Owns: one instance of it.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::Interest;

use crate::sys::watched::Watched;

/// A user has few of them, and a filter may keep them from the process.
#[derive(Debug)]
pub(crate) struct Names(Option<Watched>);

impl Names {
    pub(crate) fn new() -> io::Result<Self> {
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok();
        events.map(|fd| Watched::new(fd, Interest::READABLE)).transpose().map(Self)
    }

    pub(crate) fn add_directory(&self, directory: &Path) -> io::Result<()> {
        let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        self.add(directory, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR | gone)
    }

    pub(crate) fn add_file(&self, path: &Path) -> io::Result<()> {
        self.add(path, WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF)
    }

    fn add(&self, path: &Path, flags: WatchFlags) -> io::Result<()> {
        match &self.0 {
            Some(fd) => Ok(add_watch(fd.fd(), path, flags).map(drop)?),
            None => std::fs::metadata(path).map(drop),
        }
    }

    /// Waits; false at once where it cannot tell.
    pub(crate) async fn changed(&self) -> bool {
        let Some(events) = &self.0 else { return false };
        // Room for many events; what does not fit comes with the next call.
        let mut buffer = [0; 4096];
        let read = |fd: BorrowedFd<'_>| rustix::io::read(fd, &mut buffer).map_err(io::Error::from);
        events.async_io(Interest::READABLE, read).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use crate::sys::follow::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn names_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(NameWatch::of_file(&path).is_err());
        let directory = NameWatch::of_directory(dir.path()).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        timeout(PATIENCE, directory.changed()).await.unwrap();
        let file = NameWatch::of_file(&path).unwrap();
        assert!(timeout(Duration::from_millis(20), file.changed()).await.is_err());
        std::fs::remove_file(&path).unwrap();
        timeout(PATIENCE, file.changed()).await.unwrap();
        drop(socket);
    }
}
