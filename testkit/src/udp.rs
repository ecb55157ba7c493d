//! UDP sockets of tests. Owns: nothing. Read next: `ns.rs`, which makes them in a network of their own.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Socket;

use crate::uninterrupted;

/// Std's, but what waits goes on when the process was only stopped meanwhile: see [`uninterrupted`].
#[derive(Debug)]
pub struct UdpSocket(std::net::UdpSocket);

impl UdpSocket {
    /// As that of std.
    ///
    /// # Errors
    /// The system refuses.
    pub fn bind(at: impl ToSocketAddrs) -> io::Result<Self> {
        std::net::UdpSocket::bind(at).map(Self)
    }

    /// As that of std.
    ///
    /// # Errors
    /// The system refuses, or nothing comes within the socket's timeout.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.recv(buffer))
    }

    /// As that of std.
    ///
    /// # Errors
    /// The system refuses, or nothing comes within the socket's timeout.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        uninterrupted(|| self.0.recv_from(buffer))
    }
}

impl From<Socket> for UdpSocket {
    fn from(socket: Socket) -> Self {
        Self(socket.into())
    }
}

impl Deref for UdpSocket {
    type Target = std::net::UdpSocket;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
