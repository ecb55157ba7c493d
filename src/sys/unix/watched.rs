//! By epoll(7) and kqueue(2), which watch any descriptor. Owns: the descriptor.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

pub(crate) const TELLS_HANG_UP: bool = true;

#[derive(Debug)]
pub(crate) struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    #[expect(unsafe_code, reason = "tokio asks whoever registers a descriptor to vouch for it")]
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what is returned, which lends it only to be read: it is never
        // replaced.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, interest) }?))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }

    #[expect(clippy::unnecessary_wraps, reason = "the face of the one that can fail")]
    pub(crate) fn into_inner(self) -> io::Result<OwnedFd> {
        Ok(self.0.into_inner())
    }

    pub(crate) async fn async_io<T>(
        &self,
        interest: Interest,
        mut work: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(interest, |fd| work(fd.as_fd())).await
    }

    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, |fd| work(fd.as_fd()))
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(context).map_ok(drop)
    }

    pub(crate) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(context).map_ok(drop)
    }

    pub(crate) fn poll_hung_up(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.0.poll_write_ready(context)) {
                Ok(guard) if guard.ready().is_write_closed() => return Poll::Ready(()),
                Ok(mut guard) => guard.clear_ready_matching(Ready::WRITABLE),
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}
