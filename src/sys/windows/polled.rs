//! Sockets, watched by AFD through mio: it watches again when a call through it has found nothing. Owns: the
//! socket.

use std::io::{self, Read as _, Write as _};
use std::os::windows::io::{AsSocket as _, BorrowedSocket, OwnedSocket};

use mio::event::Source as _;
use mio::{Interest, Registry, Token};

use crate::sys::stream::{PollStream, StdStream};

pub(crate) const SHORT_IS_EMPTY: bool = false;

#[derive(Debug)]
pub(crate) struct Polled(PollStream);

impl Polled {
    pub(crate) fn new(socket: OwnedSocket) -> io::Result<Self> {
        let stream = StdStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self(PollStream::from_std(stream)))
    }

    pub(crate) fn fd(&self) -> BorrowedSocket<'_> {
        self.0.as_socket()
    }

    pub(crate) fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.0.register(registry, token, interest)
    }

    pub(crate) fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.0.reregister(registry, token, interest)
    }

    pub(crate) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }

    pub(crate) fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(space)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }
}
