//! What happens to names in the file system. Owns: a watch of the system's. May not: say what happened;
//! whoever waits looks.

use std::io;
use std::path::Path;

/// Tells when it may be worth to look again. Nobody is woken by a watch of which nothing happens.
#[derive(Debug)]
pub struct NameWatch {
    #[cfg(target_os = "linux")]
    events: Option<super::Watched>,
}

impl NameWatch {
    /// Of nothing yet. To be made in a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new() -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::{CreateFlags, init};
            // A user has few of them, and a filter may keep them from the process.
            let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok();
            let watch = |fd| super::watch(fd, tokio::io::Interest::READABLE);
            Ok(Self { events: events.map(watch).transpose()? })
        }
        #[cfg(not(target_os = "linux"))]
        Ok(Self {})
    }

    /// That alone that a name comes to be in `directory`.
    ///
    /// # Errors
    /// As [`add_directory`](Self::add_directory).
    pub fn of_directory(directory: &Path) -> io::Result<Self> {
        let watch = Self::new()?;
        watch.add_directory(directory).map(|()| watch)
    }

    /// That alone that the file at `path` loses that name.
    ///
    /// # Errors
    /// As [`add_file`](Self::add_file).
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let watch = Self::new()?;
        watch.add_file(path).map(|()| watch)
    }

    /// Tells too when a name comes to be in `directory`.
    ///
    /// # Errors
    /// There is no such directory, or the user has too many watches.
    pub fn add_directory(&self, directory: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::WatchFlags;
            let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            self.add(directory, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR | gone)
        }
        #[cfg(not(target_os = "linux"))]
        std::fs::metadata(directory).map(drop)
    }

    /// Tells too when the file that is at `path` now loses that name, among other things.
    ///
    /// # Errors
    /// There is no such file, or the user has too many watches.
    pub fn add_file(&self, path: &Path) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::WatchFlags;
            self.add(path, WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF)
        }
        #[cfg(not(target_os = "linux"))]
        std::fs::metadata(path).map(drop)
    }

    #[cfg(target_os = "linux")]
    fn add(&self, path: &Path, flags: rustix::fs::inotify::WatchFlags) -> io::Result<()> {
        match &self.events {
            Some(fd) => Ok(rustix::fs::inotify::add_watch(fd.get_ref(), path, flags).map(drop)?),
            None => std::fs::metadata(path).map(drop),
        }
    }

    /// Waits. Where the system tells nothing, a second.
    pub async fn changed(&self) {
        #[cfg(target_os = "linux")]
        if let Some(events) = &self.events {
            // Room for many events; what does not fit comes with the next call.
            let mut buffer = [0; 4096];
            let read = |fd: &std::os::fd::OwnedFd| rustix::io::read(fd, &mut buffer).map_err(io::Error::from);
            if events.async_io(tokio::io::Interest::READABLE, read).await.is_ok() {
                return;
            }
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

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
