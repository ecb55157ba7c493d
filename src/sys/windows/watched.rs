//! Sockets, watched by AFD, of any family and also those that listen. Owns: the socket.

use std::io;
use std::os::windows::io::{AsSocket as _, BorrowedSocket, OwnedSocket};
use std::task::{Context, Poll};

use tokio::io::Interest;

use super::stream::is_reset;
use crate::sys::stream::{StdStream, Stream};

pub(crate) const TELLS_HANG_UP: bool = false;

#[derive(Debug)]
pub(crate) struct Watched(Stream);

impl Watched {
    /// It is watched for all that there is.
    pub(crate) fn new(socket: OwnedSocket, _interest: Interest) -> io::Result<Self> {
        Stream::from_std(StdStream::from(socket)).map(Self)
    }

    pub(crate) fn fd(&self) -> BorrowedSocket<'_> {
        self.0.as_socket()
    }

    pub(crate) fn into_inner(self) -> io::Result<OwnedSocket> {
        self.0.into_std().map(OwnedSocket::from)
    }

    pub(crate) async fn async_io<T>(
        &self,
        interest: Interest,
        mut work: impl FnMut(BorrowedSocket<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.async_io(interest, || work(self.0.as_socket())).await
    }

    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        work: impl FnOnce(BorrowedSocket<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, || work(self.0.as_socket()))
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read_ready(context)
    }

    pub(crate) fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_write_ready(context)
    }

    /// A send of nothing tells of a reset and takes nothing. Nobody is woken: room is told of again and
    /// again, so that its note cannot be taken.
    pub(crate) fn poll_hung_up(&self, _context: &mut Context<'_>) -> Poll<()> {
        let sent = rustix::net::send(self.0.as_socket(), &[], rustix::net::SendFlags::empty());
        match is_reset(sent.map_err(io::Error::from).err()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
