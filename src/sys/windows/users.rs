//! Users have no numbers here. Owns: nothing.

use std::io;

pub(crate) fn user_id(_name: &str) -> io::Result<Option<u32>> {
    Err(unsupported())
}

pub(crate) fn group_id(_name: &str) -> io::Result<Option<u32>> {
    Err(unsupported())
}

pub(crate) fn own_id() -> Option<u32> {
    None
}

pub(crate) fn effective_id() -> Option<u32> {
    None
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "files have no such owners on Windows")
}
