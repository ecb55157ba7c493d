//! Names are looked at again and again. Owns: nothing.

use std::io;
use std::path::Path;

#[derive(Debug)]
pub(crate) struct Names;

#[expect(clippy::unused_self, clippy::unused_async, reason = "the face of the one that is told")]
impl Names {
    #[expect(clippy::unnecessary_wraps, reason = "likewise")]
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) fn add_directory(&self, directory: &Path) -> io::Result<()> {
        std::fs::metadata(directory).map(drop)
    }

    pub(crate) fn add_file(&self, path: &Path) -> io::Result<()> {
        std::fs::metadata(path).map(drop)
    }

    pub(crate) async fn changed(&self) -> bool {
        false
    }
}
