//! Descriptors whose readiness the control plane waits for. Owns: the descriptor, until it is taken back.
//! Read next: `stream.rs`, for those that a library reads and writes.

use std::io;
use std::task::{Context, Poll};

use rustix::fd::{BorrowedFd, OwnedFd};
use tokio::io::Interest;

use super::os;

/// Whether the system wakes who waits for [`Watched::poll_hung_up`].
pub const TELLS_HANG_UP: bool = os::watched::TELLS_HANG_UP;

/// Such a descriptor; on Windows a socket. Nothing lends it to be replaced.
#[derive(Debug)]
pub struct Watched(os::watched::Watched);

impl Watched {
    /// Watches it. It does not block. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The system cannot watch it.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        os::watched::Watched::new(fd, interest).map(Self)
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    /// The descriptor, which is watched no more.
    ///
    /// # Errors
    /// The system's; the descriptor is closed then.
    pub fn into_inner(self) -> io::Result<OwnedFd> {
        self.0.into_inner()
    }

    /// Does `work` as soon as there is something for it, again while it finds nothing (`WouldBlock`).
    ///
    /// # Errors
    /// Those of `work`, and the runtime ends.
    pub async fn async_io<T>(
        &self,
        interest: Interest,
        work: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(interest, work).await
    }

    /// Does `work` if there seems to be something for it. Where it finds nothing (`WouldBlock`), whoever
    /// waits waits for more.
    ///
    /// # Errors
    /// Those of `work`, and `WouldBlock`.
    pub fn try_io<T>(
        &self,
        interest: Interest,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, work)
    }

    /// Waits until there is something to read, or the end.
    ///
    /// # Errors
    /// The runtime ends.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// The same in a task of one's own; [`Self::try_io`] reads.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_readable(context)
    }

    /// The same until there is room to write, or the end.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(context)
    }

    /// Ready where the other end of a stream has closed both ways. It is looked for only while nothing is to
    /// be written, since it may take the note of there being room: whoever writes next tries first, and waits
    /// only then. Where the system does not wake anybody for that, whoever asks has to come back.
    pub fn poll_hung_up(&self, context: &mut Context<'_>) -> Poll<()> {
        self.0.poll_hung_up(context)
    }
}
