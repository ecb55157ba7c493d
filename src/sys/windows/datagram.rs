//! There are no unix datagram sockets. Owns: nothing.

use std::io;
use std::os::windows::io::{BorrowedSocket, OwnedSocket};

/// Whether a call that takes fewer datagrams than it has room for found no more.
pub(crate) const TAKES_ALL: bool = false;

pub(crate) fn receive(
    _socket: BorrowedSocket<'_>,
    _buffer: &mut [u8],
    _slot: usize,
    _lens: &mut Vec<usize>,
) -> io::Result<()> {
    Err(unsupported())
}

pub(crate) fn send<'a>(
    _socket: BorrowedSocket<'_>,
    _datagrams: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    Err(unsupported())
}

pub(crate) fn sender_process(_socket: BorrowedSocket<'_>) -> Option<OwnedSocket> {
    None
}

pub(crate) fn pass_senders(_socket: BorrowedSocket<'_>, _pass: bool) {}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "Windows has no unix datagram sockets")
}
