//! splice(2). Owns: one pipe.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// Whether there are such pipes.
pub const SPLICES: bool = true;

/// A pipe, its ends closed on exec.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// A pipe that holds `size` bytes, or what the system lets it.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        crate::sys::grow_pipe(write.as_fd(), size);
        Ok(Self { read, write, held: 0 })
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `most` bytes from a stream, which must not block, into the pipe, which must be empty:
    /// 0 is the stream's end.
    ///
    /// # Errors
    /// `WouldBlock` if there are none yet; what reading gives; see [`crate::sys::pipe::is_unsupported`].
    pub fn fill(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &self.write, None, most, flags)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what it holds to a stream, as far as that takes it.
    ///
    /// # Errors
    /// `WouldBlock` if that takes nothing yet; what writing gives; see [`crate::sys::pipe::is_unsupported`].
    pub fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(&self.read, None, to, None, self.held, flags)?;
        self.held -= moved.min(self.held);
        Ok(moved)
    }

    /// Copies what it holds, up to the space that there is.
    ///
    /// # Errors
    /// What reading gives.
    pub fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let read = rustix::io::read(&self.read, space)?;
        self.held -= read.min(self.held);
        Ok(read)
    }
}
