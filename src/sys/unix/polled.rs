//! Any descriptor. Owns: it.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use mio::event::Source as _;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fs::OFlags;

pub(crate) const SHORT_IS_EMPTY: bool = true;

#[derive(Debug)]
pub(crate) struct Polled {
    fd: OwnedFd,
    /// It blocked before.
    blocks: bool,
}

impl Polled {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let blocks = !rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK);
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, blocks })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn register(&self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, interest)
    }

    pub(crate) fn reregister(&self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interest)
    }

    pub(crate) fn deregister(&self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }

    pub(crate) fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, space)?)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.fd, bytes)?)
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        if self.blocks {
            // It is closed next in any case.
            let _ = rustix::io::ioctl_fionbio(&self.fd, false);
        }
    }
}
