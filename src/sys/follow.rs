//! What happens to names in the file system. Owns: a watch of the system's. May not: say what happened;
//! whoever waits looks.

use std::io;
use std::path::Path;

use super::os;

/// Tells when it may be worth to look again. Nobody is woken by a watch of which nothing happens.
#[derive(Debug)]
pub struct NameWatch(os::follow::Names);

impl NameWatch {
    /// Of nothing yet. To be made in a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new() -> io::Result<Self> {
        os::follow::Names::new().map(Self)
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
        self.0.add_directory(directory)
    }

    /// Tells too when the file that is at `path` now loses that name, among other things.
    ///
    /// # Errors
    /// There is no such file, or the user has too many watches.
    pub fn add_file(&self, path: &Path) -> io::Result<()> {
        self.0.add_file(path)
    }

    /// Waits. Where the system tells nothing, a second.
    pub async fn changed(&self) {
        if !self.0.changed().await {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}
