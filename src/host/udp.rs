//! One UDP flow's socket on the host, and the datagrams that wait to be sent together. The socket of a flow
//! that a guest started is connected, so that only the flow's remote end can answer; that of an exposed port
//! is shared by the flows of all its clients.
//! Owns: the socket. Read next: `engine/udp.rs`; `sys/udp.rs`, how many go at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use netstack::{Instant, UdpFlowId};

use super::reply_watch::ReplyWatch;
use crate::dial::any_like;
use crate::permits::Permit;
use crate::sys::udp::{Client, MAX_MESSAGE, MAX_SEGMENTS, receive_uncut, send_one, send_segments};

#[derive(Debug)]
pub(crate) struct HostUdp {
    pub(crate) socket: Arc<UdpSocket>,
    /// The socket's: of this flow alone, or of the port that it was exposed by.
    pub(crate) token: Token,
    pub(crate) far: Far,
    /// In the list of sockets that have something to be read.
    pub(crate) queued: bool,
    /// The kernel cuts one message into many datagrams on this path.
    cuts: bool,
    /// Of a socket of this flow's own.
    _permit: Option<Permit>,
}

/// Who is at the host's end of a flow.
#[derive(Debug)]
pub(crate) enum Far {
    /// Whom a guest asked; the socket is this flow's alone, and connected.
    Remote { to: SocketAddr, replies: ReplyWatch, untried: bool },
    /// Who asked a guest; the socket is shared with other clients, and answers leave from this address of the
    /// host.
    Client { client: Client, source: Option<IpAddr> },
}

impl HostUdp {
    /// A new socket of a flow's own, connected to `to`.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn connect(
        to: SocketAddr,
        token: Token,
        registry: &Registry,
        now: Instant,
        permit: Permit,
    ) -> io::Result<Self> {
        let socket = connect(to, token, registry)?;
        let far = Far::Remote { to, replies: ReplyWatch::new(now), untried: true };
        Ok(Self { socket: Arc::new(socket), token, far, queued: false, cuts: true, _permit: Some(permit) })
    }

    /// A client's part of an exposed port's socket.
    pub(crate) fn shared(socket: &Arc<UdpSocket>, token: Token, client: Client) -> Self {
        let far = Far::Client { client, source: client.asked };
        Self { socket: Arc::clone(socket), token, far, queued: false, cuts: true, _permit: None }
    }

    /// Whether the flow ends with a refusal: on the host's own loopback a service may come back at the other
    /// address.
    pub(crate) fn ends_refused(&self) -> bool {
        matches!(self.far, Far::Remote { to, .. } if to.ip().is_loopback())
    }

    /// Something came from the other end.
    pub(crate) fn note_reply(&mut self) {
        if let Far::Remote { replies, .. } = &mut self.far {
            replies.note_reply();
        }
    }

    /// Takes another socket if the host has another way to the other end by now.
    pub(crate) fn follow_route(&mut self, registry: &Registry, now: Instant) {
        if let Far::Remote { to, replies, .. } = &mut self.far
            && replies.is_astray(now, &self.socket, *to)
            && let Ok(socket) = connect(*to, self.token, registry)
        {
            self.socket = Arc::new(socket);
        }
    }

    /// Sends the first of a flow to the host's own services. Where nobody is at 127.0.0.1, the service may be
    /// at `::1` alone.
    ///
    /// # Errors
    /// As [`Self::send`]; a refusal is of these datagrams.
    pub(crate) fn send_first(&mut self, outbox: &Outbox, registry: &Registry) -> io::Result<()> {
        let sent = self.send(outbox);
        let Far::Remote { to, untried, .. } = &mut self.far else { return sent };
        if !std::mem::take(untried) || !to.ip().is_loopback() {
            return sent;
        }
        // On the loopback interface the answer to a datagram is there when it is sent.
        let refused = self.socket.take_error()?.filter(is_refused);
        match refused {
            Some(error) if to.ip() == Ipv4Addr::LOCALHOST => {
                *to = (Ipv6Addr::LOCALHOST, to.port()).into();
                self.socket = Arc::new(connect(*to, self.token, registry).map_err(|_| error)?);
                self.send(outbox)?;
                self.socket.take_error()?.filter(is_refused).map_or(Ok(()), Err)
            }
            Some(error) => Err(error),
            None => sent,
        }
    }

    /// Sends what `outbox` holds. A full socket, or a datagram too long for the path, loses datagrams, as a
    /// network may.
    ///
    /// # Errors
    /// The socket's. One that [`is_refused`] is an earlier datagram's.
    pub(crate) fn send(&mut self, outbox: &Outbox) -> io::Result<()> {
        let bytes = outbox.bytes.as_slice();
        if self.cuts && outbox.count > 1 {
            match send_segments(&self.socket, bytes, outbox.segment, self.client()) {
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

    fn send_one(&mut self, datagram: &[u8]) -> io::Result<()> {
        match send_one(&self.socket, datagram, self.client()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_too_long(&error) => Ok(()),
            Err(error) if !is_refused(&error) && self.take_source().is_some() => self.send_one(datagram),
            sent => sent,
        }
    }

    /// Whom the shared socket sends to, and as whom.
    fn client(&self) -> Option<Client> {
        match self.far {
            Far::Remote { .. } => None,
            Far::Client { client, source } => Some(Client { asked: source, ..client }),
        }
    }

    /// From now on the system chooses the address that answers leave from: this was a group's, or is the
    /// host's no more.
    fn take_source(&mut self) -> Option<IpAddr> {
        match &mut self.far {
            Far::Remote { .. } => None,
            Far::Client { source, .. } => source.take(),
        }
    }
}

/// A socket that is connected to `to`, and watched.
fn connect(to: SocketAddr, token: Token, registry: &Registry) -> io::Result<UdpSocket> {
    let connected = || {
        let socket = UdpSocket::bind(any_like(to))?;
        socket.connect(to)?;
        io::Result::Ok(socket)
    };
    let mut socket = connected()?;
    if socket.local_addr()? == to {
        // It has the very port that it asks for, where nobody is then, and would hear itself. Another one
        // cannot have it as well.
        socket = connected()?;
    }
    receive_uncut(&socket);
    registry.register(&mut socket, token, Interest::READABLE)?;
    Ok(socket)
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
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

/// Whether the datagram is longer than the path takes.
fn is_too_long(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error) == Some(Errno::MSGSIZE)
}
