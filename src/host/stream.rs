//! The descriptor at the other end of a flow. Owns: the differences between a TCP connection and a socket
//! pair.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::event::Event;
use socket2::{SockRef, TcpKeepalive};

use crate::dial::refuse_self;
use crate::sys::stream::PollStream;

/// As the original's: a peer that vanished is noticed though nobody writes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A stream of either kind, non-blocking.
#[derive(Debug)]
pub(crate) enum HostStream {
    Tcp(PollStream),
    Other(PollStream),
}

impl HostStream {
    /// Starts to connect, and whether that is done already, as on the loopback interface.
    pub(crate) fn connect(to: SocketAddr) -> io::Result<(Self, bool)> {
        let stream = PollStream::connect(to)?;
        let connected = to.ip().is_loopback() && stream.peer_addr().is_ok();
        let stream = if connected { refuse_self(stream)? } else { stream };
        tune(&stream);
        Ok((Self::Tcp(stream), connected))
    }

    /// A connection that somebody else made.
    pub(crate) fn accepted(stream: PollStream) -> Self {
        tune(&stream);
        Self::Tcp(stream)
    }

    /// A connection of any family that somebody else accepted; it does not block.
    pub(crate) fn from_client(client: OwnedFd) -> Self {
        let is_tcp = SockRef::from(&client).local_addr().is_ok_and(|address| address.as_socket().is_some());
        match is_tcp {
            true => Self::accepted(PollStream::from_std(client.into())),
            // All others are used by the same calls.
            false => Self::Other(PollStream::from_std(client.into())),
        }
    }

    /// Whether a connection that was started is there, after `event`: `Ok(false)` means not yet.
    pub(crate) fn is_connected(&self, event: &Event) -> io::Result<bool> {
        let Self::Tcp(stream) = self else { return Ok(true) };
        if !event.is_writable() || event.is_error() || event.is_read_closed() || event.is_write_closed() {
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.peer_addr() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        refuse_self(stream).map(|_| true)
    }

    /// Closes the half that we write.
    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        let (Self::Tcp(stream) | Self::Other(stream)) = self;
        stream.shutdown(Shutdown::Write)
    }

    /// Makes the close that follows a reset, where the kind of stream has one.
    pub(crate) fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        let (Self::Tcp(stream) | Self::Other(stream)) = self;
        stream.as_fd()
    }

    pub(crate) fn source(&mut self) -> &mut PollStream {
        let (Self::Tcp(stream) | Self::Other(stream)) = self;
        stream
    }
}

impl From<HostStream> for OwnedFd {
    fn from(stream: HostStream) -> Self {
        let (HostStream::Tcp(stream) | HostStream::Other(stream)) = stream;
        stream.into()
    }
}

/// A socket without these is slower, not wrong.
fn tune(stream: &PollStream) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

impl Read for HostStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (Self::Tcp(stream) | Self::Other(stream)) = self;
        stream.read(buffer)
    }
}

impl Write for HostStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let (Self::Tcp(stream) | Self::Other(stream)) = self;
        stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
