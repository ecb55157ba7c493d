//! There are none. Owns: nothing.

use std::io;

use crate::sys::stream::Stream;

pub(crate) const EXIST: bool = false;

/// None can be had.
#[derive(Debug)]
pub(crate) enum PipeListener {}

/// Nor its clients.
#[derive(Debug)]
pub(crate) enum PipeClients {}

impl PipeListener {
    pub(crate) fn bind(_name: &str) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "only Windows has named pipes"))
    }

    pub(crate) fn listen(self) -> io::Result<PipeClients> {
        match self {}
    }
}

#[expect(clippy::unused_async, reason = "the face of those that wait")]
impl PipeClients {
    pub(crate) async fn ready(&self) {
        match *self {}
    }

    pub(crate) fn accept(&self) -> io::Result<Option<Stream>> {
        match *self {}
    }
}
