//! Descriptors of links, which the engine watches. Owns: the descriptor, non-blocking for as long. Read next:
//! `../engine/links.rs`.

use std::io;

use mio::{Interest, Registry, Token};
use rustix::fd::{BorrowedFd, OwnedFd};

use super::os;

/// Whether a stream that gave less than was asked for is empty, and tells when it is not (epoll(7)). Else
/// only a read that finds nothing has it watched again.
pub const SHORT_IS_EMPTY: bool = os::polled::SHORT_IS_EMPTY;

/// Such a descriptor: a stream, or on which a message is a frame. Others may have it too, as a shell has
/// standard input: in the end they find it as it was.
#[derive(Debug)]
pub struct Polled(os::polled::Polled);

impl Polled {
    /// From now on it does not block.
    ///
    /// # Errors
    /// The system's.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        os::polled::Polled::new(fd).map(Self)
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// Begins to watch it.
    ///
    /// # Errors
    /// The system's; `PermissionDenied` where it is a file, which is always readable, up to its end.
    pub fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.0.register(registry, token, interest)
    }

    /// Watches it for something else. What is so already is told again.
    ///
    /// # Errors
    /// The system's.
    pub fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.0.reregister(registry, token, interest)
    }

    /// Watches it no more.
    ///
    /// # Errors
    /// The system's.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}

impl io::Read for &Polled {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.0.read(space)
    }
}

impl io::Write for &Polled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
