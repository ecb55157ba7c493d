//! There is no splice(2): relays copy. Owns: nothing.

use rustix::fd::BorrowedFd;
use std::io;

/// Whether there are such pipes.
pub const SPLICES: bool = false;

/// None can be had.
#[derive(Debug)]
pub enum Pipe {}

#[expect(missing_docs, reason = "as on Linux")]
impl Pipe {
    pub fn new(_size: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn held(&self) -> usize {
        match *self {}
    }

    pub fn fill(&mut self, _from: BorrowedFd<'_>, _most: usize) -> io::Result<usize> {
        match *self {}
    }

    pub fn drain(&mut self, _to: BorrowedFd<'_>) -> io::Result<usize> {
        match *self {}
    }

    pub fn read(&mut self, _space: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
}
