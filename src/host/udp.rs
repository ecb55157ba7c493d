//! One UDP flow's socket on the host, connected, so that only the flow's remote end can answer. Owns: the socket.
//! Read next: `engine/udp.rs`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::Token;
use mio::net::UdpSocket;

#[derive(Debug)]
pub(crate) struct HostUdp {
    pub(crate) socket: UdpSocket,
    pub(crate) token: Token,
    /// In the list of sockets that have something to be read.
    pub(crate) queued: bool,
}

impl HostUdp {
    /// A new socket, connected to `to`.
    pub(crate) fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        Ok(socket)
    }
}

/// Whether the error tells of an earlier datagram that nobody took.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Whether the datagram is longer than the path takes.
pub(crate) fn is_too_long(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error) == Some(Errno::MSGSIZE)
}
