//! Many datagrams in one system call, where the system has one for it. Owns: the buffers that a call fills.
//! Read next: `host/udp.rs`.
//!
//! To the network: datagrams of one size as one message that the kernel cuts (`UDP_SEGMENT`, udp(7)). From
//! it: several messages at once (recvmmsg(2)), each of which may be such datagrams uncut (`UDP_GRO`). Which
//! address of the host a datagram was sent to, and from which one an answer goes (`IP_PKTINFO`, ip(7); RFC
//! 3542).

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::UdpSocket;

use super::os;

/// The longest message: what an IPv4 packet carries.
pub const MAX_MESSAGE: usize = u16::MAX as usize - 20 - 8;
/// Datagrams that the kernel cuts one message into, at most.
pub const MAX_SEGMENTS: usize = 64;
/// Messages taken at once.
pub const MESSAGES: usize = 8;

/// Room for one message. One more than the longest, so that none is cut.
pub(super) const SLOT: usize = 64 << 10;

/// Who sent a datagram to a socket of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Its address.
    pub address: SocketAddr,
    /// The address of the host that it sent to, of the same family, where the socket has many and the system
    /// tells.
    pub asked: Option<IpAddr>,
}

/// What the last call received.
#[derive(Debug)]
pub struct Inbox {
    pub(super) buffer: Vec<u8>,
    pub(super) received: Vec<Received>,
}

/// One message: its length, that of the datagrams that it holds, and who sent it, if that was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) len: usize,
    pub(super) segment: usize,
    pub(super) from: Option<Client>,
}

impl Inbox {
    /// An empty one. Memory that no datagram has reached costs nothing.
    #[expect(clippy::new_without_default, reason = "it is large")]
    pub fn new() -> Self {
        Self { buffer: vec![0; MESSAGES * SLOT], received: Vec::with_capacity(MESSAGES) }
    }

    /// The datagrams of the last call, in order.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.messages().flat_map(|(_, datagrams)| datagrams)
    }

    /// The messages of the last call, in order: who sent it, where [`Self::receive_from`] was the call, and
    /// its datagrams.
    pub fn messages(&self) -> impl Iterator<Item = (Option<Client>, impl Iterator<Item = &[u8]>)> {
        self.buffer.chunks(SLOT).zip(&self.received).map(|(slot, message)| {
            let bytes = slot.get(..message.len).unwrap_or_default();
            let empty = bytes.is_empty().then_some(bytes);
            (message.from, empty.into_iter().chain(bytes.chunks(message.segment.max(1))))
        })
    }
}

impl Inbox {
    /// Takes what the socket has, `most` messages of it and at most [`MESSAGES`].
    ///
    /// # Errors
    /// The socket's.
    pub fn receive(&mut self, socket: &UdpSocket, most: usize) -> io::Result<()> {
        self.received.clear();
        os::udp::receive(self, socket, most, false)
    }

    /// The same for a socket that anyone may send to: [`Self::messages`] says who did.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive_from(&mut self, socket: &UdpSocket, most: usize) -> io::Result<()> {
        self.received.clear();
        os::udp::receive(self, socket, most, true)
    }
}

/// Lets `socket` receive many datagrams as one message, where the system can.
pub fn receive_uncut(socket: &UdpSocket) {
    os::udp::receive_uncut(socket);
}

/// Has `socket`, which is bound to every address of the host, tell which one a datagram was sent to, where
/// the system can.
pub fn tell_asked(socket: &UdpSocket) {
    os::udp::tell_asked(socket);
}

/// Has `socket`, which many send to, hear nothing of those that are gone: that is nobody else's failure.
pub fn ignore_refusals(socket: &UdpSocket) {
    os::udp::ignore_refusals(socket);
}

/// Sends `bytes` as datagrams of `segment` bytes, the last of which may be shorter, where the socket is
/// connected or to a client.
///
/// # Errors
/// The socket's; `Unsupported` where there is no such call.
pub fn send_segments(socket: &UdpSocket, bytes: &[u8], segment: u16, to: Option<Client>) -> io::Result<()> {
    os::udp::send_segments(socket, bytes, segment, to)
}

/// Sends one datagram where the socket is connected, or to a client, from the address that it asked.
///
/// # Errors
/// The socket's; also where the host has that address no more.
pub fn send_one(socket: &UdpSocket, datagram: &[u8], to: Option<Client>) -> io::Result<()> {
    match to {
        None => socket.send(datagram).map(drop),
        Some(to) => os::udp::send_one(socket, datagram, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let any = "127.0.0.1:0".parse().unwrap();
        let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        receive_uncut(&b);
        (a, b)
    }

    fn receive_all(inbox: &mut Inbox, socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        while inbox.receive(socket, MESSAGES).is_ok() {
            datagrams.extend(inbox.datagrams().map(<[u8]>::to_vec));
        }
        datagrams
    }

    #[test]
    fn datagrams_keep_their_bounds() {
        let ((a, b), mut inbox) = (pair(), Inbox::new());
        let sent: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; usize::from(n) * 100]).collect();
        for datagram in &sent {
            a.send(datagram).unwrap();
        }
        assert_eq!(receive_all(&mut inbox, &b), sent);
        assert_eq!(inbox.receive(&b, MESSAGES).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// As an exposed port is bound.
    fn bind(at: SocketAddr) -> UdpSocket {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).unwrap();
        if at.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        socket.bind(&at.into()).unwrap();
        UdpSocket::from_std(socket.into())
    }

    #[test]
    fn the_sender_is_known_and_answered() {
        let mut inbox = Inbox::new();
        for (any, clients) in
            [("127.0.0.1:0", vec!["127.0.0.1:0"]), ("[::]:0", vec!["127.0.0.1:0", "[::1]:0"])]
        {
            let server = bind(any.parse().unwrap());
            receive_uncut(&server);
            tell_asked(&server);
            let port = server.local_addr().unwrap().port();
            for client in clients {
                let client = std::net::UdpSocket::bind(client).unwrap();
                let own = client.local_addr().unwrap();
                client.send_to(b"hello", (own.ip(), port)).unwrap();
                let start = std::time::Instant::now();
                while let Err(error) = inbox.receive_from(&server, MESSAGES) {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{any}");
                    assert!(start.elapsed() < std::time::Duration::from_secs(5), "nothing came to {any}");
                }
                let (from, datagrams) = inbox.messages().next().unwrap();
                let from = from.unwrap();
                let address = from.address;
                assert_eq!((address.ip().to_canonical(), address.port()), (own.ip(), own.port()), "{any}");
                assert_eq!(datagrams.collect::<Vec<_>>(), [b"hello"]);
                let mut buffer = [0; 4000];
                send_one(&server, b"bye", Some(from)).unwrap();
                assert_eq!(client.recv(&mut buffer).unwrap(), 3);
            }
        }
    }

    #[test]
    fn the_longest_datagram_arrives() {
        let ((a, b), mut inbox) = (pair(), Inbox::new());
        a.send(&vec![7; MAX_MESSAGE]).unwrap();
        assert_eq!(receive_all(&mut inbox, &b), [vec![7; MAX_MESSAGE]]);
    }
}
