//! What happens to names in the file system. Owns: a watch of the system's. May not: say what happened; whoever waits looks.

use std::io;
use std::path::Path;

/// Tells when it may be worth to look again. Nobody is woken by a watch of which nothing happens.
#[derive(Debug)]
pub struct NameWatch {
    #[cfg(target_os = "linux")]
    events: Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>>,
}

impl NameWatch {
    /// A name comes to be in `directory`.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn of_directory(directory: &Path) -> io::Result<Self> {
        Self::of_directories([directory].into_iter())
    }

    /// A name comes to be in one of `directories`.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn of_directories<'a>(directories: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::WatchFlags;
            let gone = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            Self::new(directories, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR | gone)
        }
        #[cfg(not(target_os = "linux"))]
        Self::new(directories)
    }

    /// The file that is at `path` now loses that name, among other things.
    ///
    /// # Errors
    /// There is no such file.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Self::of_files([path].into_iter())
    }

    /// The same for several: one of them is enough to be told.
    ///
    /// # Errors
    /// One of the files is not there.
    pub fn of_files<'a>(paths: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::inotify::WatchFlags;
            Self::new(paths, WatchFlags::ATTRIB | WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF)
        }
        #[cfg(not(target_os = "linux"))]
        Self::new(paths)
    }

    #[cfg(target_os = "linux")]
    fn new<'a>(
        mut paths: impl Iterator<Item = &'a Path>,
        flags: rustix::fs::inotify::WatchFlags,
    ) -> io::Result<Self> {
        use rustix::fs::inotify::{CreateFlags, add_watch, init};
        // A user has few of them, and a filter may keep them from the process.
        let Ok(fd) = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC) else {
            paths.try_for_each(|path| std::fs::metadata(path).map(drop))?;
            return Ok(Self { events: None });
        };
        paths.try_for_each(|path| add_watch(&fd, path, flags).map(drop))?;
        Ok(Self { events: Some(super::watch(fd, tokio::io::Interest::READABLE)?) })
    }

    #[cfg(not(target_os = "linux"))]
    fn new<'a>(mut paths: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        paths.try_for_each(|path| std::fs::metadata(path).map(drop)).map(|()| Self {})
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
