//! One UDP flow's socket on the host, and the datagrams that wait to be sent together. The socket of a flow that a guest started is
//! connected, so that only the flow's remote end can answer; that of an exposed port is shared by the flows of all its clients.
//! Owns: the socket. Read next: `engine/udp.rs`; `sys/udp.rs`, how many go at once.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mio::Token;
use mio::net::UdpSocket;
use netstack::UdpFlowId;

use crate::sys::udp::{MAX_MESSAGE, MAX_SEGMENTS, receive_uncut, send_segments};

#[derive(Debug)]
pub(crate) struct HostUdp {
    pub(crate) socket: Arc<UdpSocket>,
    /// The socket's: of this flow alone, or of the port that it was exposed by.
    pub(crate) token: Token,
    /// The client that the flow belongs to, where it shares its socket with others'.
    pub(crate) client: Option<SocketAddr>,
    /// In the list of sockets that have something to be read.
    pub(crate) queued: bool,
    /// The kernel cuts one message into many datagrams on this path.
    cuts: bool,
}

impl HostUdp {
    /// A flow's own socket; with a `client`, that client's part of an exposed port's.
    pub(crate) fn new(socket: impl Into<Arc<UdpSocket>>, token: Token, client: Option<SocketAddr>) -> Self {
        Self { socket: socket.into(), token, client, queued: false, cuts: true }
    }

    /// A new socket, connected to `to`.
    pub(crate) fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        receive_uncut(&socket);
        Ok(socket)
    }

    /// Sends what `outbox` holds. A full socket, or a datagram too long for the path, loses datagrams, as a network may.
    ///
    /// # Errors
    /// The socket's. One that [`is_refused`] is an earlier datagram's.
    pub(crate) fn send(&mut self, outbox: &Outbox) -> io::Result<()> {
        let bytes = outbox.bytes.as_slice();
        if self.cuts && outbox.count > 1 {
            match send_segments(&self.socket, bytes, outbox.segment, self.client) {
                Err(error) if is_refused(&error) => return Err(error),
                Ok(()) => return Ok(()),
                // This path does not take them together, as one whose datagrams go in fragments.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.cuts = false,
                Err(_) => {}
            }
        }
        if bytes.is_empty() {
            return self.send_one(bytes);
        }
        bytes.chunks(usize::from(outbox.segment).max(1)).try_for_each(|datagram| self.send_one(datagram))
    }

    fn send_one(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = match self.client {
            None => self.socket.send(datagram),
            Some(client) => self.socket.send_to(datagram, client),
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_too_long(&error) => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

/// Datagrams of one flow and one size, the last of which may be shorter.
#[derive(Debug)]
pub(crate) struct Outbox {
    flow: Option<UdpFlowId>,
    bytes: Vec<u8>,
    count: usize,
    segment: u16,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self { flow: None, bytes: Vec::with_capacity(MAX_MESSAGE), count: 0, segment: 0 }
    }

    /// The flow whose datagrams these are, if there are any.
    pub(crate) fn flow(&self) -> Option<UdpFlowId> {
        self.flow
    }

    /// Whether such a datagram can go with those that are here.
    pub(crate) fn takes(&self, flow: UdpFlowId, len: usize) -> bool {
        let segment = usize::from(self.segment);
        self.flow.is_none()
            || (self.flow == Some(flow)
                && (1..=segment).contains(&len)
                && self.bytes.len() == segment * self.count
                && self.count < MAX_SEGMENTS
                && self.bytes.len() + len <= MAX_MESSAGE)
    }

    pub(crate) fn push(&mut self, flow: UdpFlowId, datagram: &[u8]) {
        if self.flow.is_none() {
            self.flow = Some(flow);
            self.segment = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
        }
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
    }

    pub(crate) fn clear(&mut self) {
        self.flow = None;
        self.bytes.clear();
        self.count = 0;
    }
}

/// Whether the error tells of an earlier datagram that nobody took.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// Whether the datagram is longer than the path takes.
fn is_too_long(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error) == Some(Errno::MSGSIZE)
}
