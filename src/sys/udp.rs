//! Many datagrams in one system call, where the system has one for it. Owns: the buffers that a call fills.
//! Read next: `host/udp.rs`.
//!
//! To the network: datagrams of one size as one message that the kernel cuts (`UDP_SEGMENT`, udp(7)). From
//! it: several messages at once (recvmmsg(2)), each of which may be such datagrams uncut (`UDP_GRO`). Which
//! address of the host a datagram was sent to, and from which one an answer goes (`IP_PKTINFO`, ip(7); RFC
//! 3542).
// UNSAFETY: no crate wraps these control messages without changing other options of the socket.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "messages for recvmmsg, control messages"))]

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::UdpSocket;

/// The longest message: what an IPv4 packet carries.
pub const MAX_MESSAGE: usize = u16::MAX as usize - 20 - 8;
/// Datagrams that the kernel cuts one message into, at most.
pub const MAX_SEGMENTS: usize = 64;
/// Messages taken at once.
pub const MESSAGES: usize = 8;

/// Room for one message. One more than the longest, so that none is cut.
const SLOT: usize = 64 << 10;

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
    buffer: Vec<u8>,
    received: Vec<Received>,
}

/// One message: its length, that of the datagrams that it holds, and who sent it, if that was asked for.
#[derive(Clone, Copy, Debug)]
struct Received {
    len: usize,
    segment: usize,
    from: Option<Client>,
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

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::{size_of, zeroed};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
    use std::os::fd::AsRawFd;

    use socket2::SockAddr;

    use super::super::messages;
    use super::{Client, Inbox, MESSAGES, Received, SLOT, SocketAddr, UdpSocket, io};

    /// Room for the control messages of one message, aligned as their headers: the length of its datagrams
    /// and an address.
    #[derive(Clone, Copy)]
    #[repr(C, align(8))]
    struct Control([u8; 96]);

    impl Control {
        const EMPTY: Self = Self([0; 96]);

        /// Puts `value` behind the first `len` bytes, and returns how many there are then. There is room for
        /// two of the largest.
        fn put<T>(&mut self, len: usize, (level, kind): (libc::c_int, libc::c_int), value: T) -> usize {
            const { assert!(size_of::<T>() <= size_of::<libc::in6_pktinfo>()) };
            // SAFETY: the message lies within the buffer, as `len` is 0 or what this returned once, and is
            // aligned as the macros keep it.
            unsafe {
                let header = self.0.as_mut_ptr().add(len).cast::<libc::cmsghdr>();
                (*header).cmsg_level = level;
                (*header).cmsg_type = kind;
                (*header).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
                libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
                len + libc::CMSG_SPACE(size_of::<T>() as u32) as usize
            }
        }

        /// Has the message leave from this address.
        fn put_source(&mut self, len: usize, source: IpAddr) -> usize {
            match source {
                IpAddr::V4(ip) => {
                    let source = libc::in_addr { s_addr: ip.to_bits().to_be() };
                    let any = libc::in_addr { s_addr: 0 };
                    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: any };
                    self.put(len, (libc::IPPROTO_IP, libc::IP_PKTINFO), info)
                }
                IpAddr::V6(ip) => {
                    let source = libc::in6_addr { s6_addr: ip.octets() };
                    let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                    self.put(len, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info)
                }
            }
        }
    }

    /// A failure leaves datagrams one by one, or without an address.
    fn enable(socket: &UdpSocket, level: libc::c_int, option: libc::c_int) {
        let on: libc::c_int = 1;
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is an int, which outlives the call.
        unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), len);
        }
    }

    pub(super) fn receive_uncut(socket: &UdpSocket) {
        enable(socket, libc::SOL_UDP, libc::UDP_GRO);
    }

    pub(super) fn tell_asked(socket: &UdpSocket) {
        match socket.local_addr() {
            Ok(SocketAddr::V4(_)) => enable(socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
            // For datagrams of IPv4 too.
            _ => enable(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        }
    }

    pub(super) fn send(
        socket: &UdpSocket,
        bytes: &[u8],
        segment: Option<u16>,
        to: Option<Client>,
    ) -> io::Result<()> {
        let (mut control, mut len) = (Control::EMPTY, 0);
        if let Some(segment) = segment {
            len = control.put(len, (libc::SOL_UDP, libc::UDP_SEGMENT), segment);
        }
        if let Some(source) = to.and_then(|to| to.asked) {
            len = control.put_source(len, source);
        }
        let to = to.map(|to| SockAddr::from(to.address));
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: all of these are plain data, for which zeroes are valid; pointers are to locals that
        // outlive the call. The kernel only reads `bytes`.
        let sent = unsafe {
            let mut message: libc::msghdr = zeroed();
            if let Some(to) = &to {
                message.msg_name = to.as_ptr().cast_mut().cast();
                message.msg_namelen = to.len();
            }
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = len as _;
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn receive(inbox: &mut Inbox, socket: &UdpSocket, most: usize, names: bool) -> io::Result<()> {
        let mut controls = [Control::EMPTY; MESSAGES];
        let mut senders: [libc::sockaddr_storage; MESSAGES];
        let mut parts: [libc::iovec; MESSAGES];
        let mut messages: [libc::mmsghdr; MESSAGES];
        // SAFETY: as in `send`; each message has a slot and a control buffer of its own, and the kernel says
        // how much of them it wrote.
        unsafe {
            (parts, messages, senders) = (zeroed(), zeroed(), zeroed());
            if names {
                for (message, sender) in messages.iter_mut().zip(&mut senders) {
                    message.msg_hdr.msg_name = (&raw mut *sender).cast();
                    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
                }
            }
            let slots = inbox.buffer.chunks_mut(SLOT);
            for (((message, part), control), slot) in
                messages.iter_mut().zip(&mut parts).zip(&mut controls).zip(slots)
            {
                *part = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message.msg_hdr.msg_control = (&raw mut *control).cast();
                message.msg_hdr.msg_controllen = size_of::<Control>() as _;
            }
            let wanted = messages.get_mut(..most.min(MESSAGES)).unwrap_or_default();
            let count = messages::receive(socket.as_raw_fd(), wanted)?;
            for (message, sender) in messages.iter().zip(&senders).take(count) {
                let len = message.msg_len as usize;
                let (mut segment, mut asked) = (len, None);
                let mut header = libc::CMSG_FIRSTHDR(&raw const message.msg_hdr);
                while !header.is_null() {
                    let data = libc::CMSG_DATA(header);
                    match ((*header).cmsg_level, (*header).cmsg_type) {
                        (libc::SOL_UDP, libc::UDP_GRO) => {
                            let announced = data.cast::<libc::c_int>().read_unaligned();
                            segment = usize::try_from(announced).unwrap_or(len);
                        }
                        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                            let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                            asked = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                        }
                        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                            let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                            asked = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                        }
                        _ => {}
                    }
                    header = libc::CMSG_NXTHDR(&raw const message.msg_hdr, header);
                }
                let from = if names { address(sender) } else { None };
                let from = from.map(|address| Client { address, asked });
                inbox.received.push(Received { len, segment, from });
            }
        }
        Ok(())
    }

    fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
        let name = &raw const *name;
        // SAFETY: the storage is as large as, and aligned for, the address of each family; any bytes are a
        // valid one.
        unsafe {
            match libc::c_int::from((*name).ss_family) {
                libc::AF_INET => {
                    let name = &*name.cast::<libc::sockaddr_in>();
                    let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                    Some((ip, u16::from_be(name.sin_port)).into())
                }
                libc::AF_INET6 => {
                    let name = &*name.cast::<libc::sockaddr_in6>();
                    let (ip, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
                    Some(SocketAddrV6::new(ip, port, name.sin6_flowinfo, name.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }
}

impl Inbox {
    /// Takes what the socket has, `most` messages of it and at most [`MESSAGES`].
    ///
    /// # Errors
    /// The socket's.
    pub fn receive(&mut self, socket: &UdpSocket, most: usize) -> io::Result<()> {
        self.received.clear();
        #[cfg(target_os = "linux")]
        return linux::receive(self, socket, most, false);
        #[cfg(not(target_os = "linux"))]
        {
            let _ = most;
            let len = socket.recv(self.buffer.get_mut(..SLOT).unwrap_or_default())?;
            self.received.push(Received { len, segment: len, from: None });
            Ok(())
        }
    }

    /// The same for a socket that anyone may send to: [`Self::messages`] says who did.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive_from(&mut self, socket: &UdpSocket, most: usize) -> io::Result<()> {
        self.received.clear();
        #[cfg(target_os = "linux")]
        return linux::receive(self, socket, most, true);
        #[cfg(not(target_os = "linux"))]
        {
            let _ = most;
            let (len, from) = socket.recv_from(self.buffer.get_mut(..SLOT).unwrap_or_default())?;
            let from = Some(Client { address: from, asked: None });
            self.received.push(Received { len, segment: len, from });
            Ok(())
        }
    }
}

/// Lets `socket` receive many datagrams as one message, where the system can.
pub fn receive_uncut(socket: &UdpSocket) {
    #[cfg(target_os = "linux")]
    linux::receive_uncut(socket);
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// Has `socket`, which is bound to every address of the host, tell which one a datagram was sent to, where
/// the system can.
pub fn tell_asked(socket: &UdpSocket) {
    #[cfg(target_os = "linux")]
    linux::tell_asked(socket);
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// Sends `bytes` as datagrams of `segment` bytes, the last of which may be shorter, where the socket is
/// connected or to a client.
///
/// # Errors
/// The socket's; `Unsupported` where there is no such call.
pub fn send_segments(socket: &UdpSocket, bytes: &[u8], segment: u16, to: Option<Client>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return linux::send(socket, bytes, Some(segment), to);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (socket, bytes, segment, to);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Sends one datagram where the socket is connected, or to a client, from the address that it asked.
///
/// # Errors
/// The socket's; also where the host has that address no more.
pub fn send_one(socket: &UdpSocket, datagram: &[u8], to: Option<Client>) -> io::Result<()> {
    match to {
        None => socket.send(datagram).map(|_| ()),
        #[cfg(target_os = "linux")]
        Some(Client { asked: Some(_), .. }) => linux::send(socket, datagram, None, to),
        Some(Client { address, .. }) => socket.send_to(datagram, address).map(|_| ()),
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

    #[cfg(target_os = "linux")]
    #[test]
    fn one_message_is_many_datagrams() {
        let ((a, b), mut inbox) = (pair(), Inbox::new());
        let bytes: Vec<u8> = (0..=9).flat_map(|n| [n; 1000]).chain([10; 7]).collect();
        send_segments(&a, &bytes, 1000, None).unwrap();
        let lens: Vec<usize> = receive_all(&mut inbox, &b).iter().map(Vec::len).collect();
        assert_eq!(lens, [[1000; 10].as_slice(), &[7]].concat());
    }

    #[test]
    fn the_sender_is_known_and_answered() {
        let mut inbox = Inbox::new();
        for (any, clients) in
            [("127.0.0.1:0", vec!["127.0.0.1:0"]), ("[::]:0", vec!["127.0.0.1:0", "[::1]:0"])]
        {
            let server = UdpSocket::bind(any.parse().unwrap()).unwrap();
            receive_uncut(&server);
            tell_asked(&server);
            let port = server.local_addr().unwrap().port();
            for client in clients {
                let client = std::net::UdpSocket::bind(client).unwrap();
                let own = client.local_addr().unwrap();
                client.send_to(b"hello", (own.ip(), port)).unwrap();
                inbox.receive_from(&server, MESSAGES).unwrap();
                let (from, datagrams) = inbox.messages().next().unwrap();
                let from = from.unwrap();
                let address = from.address;
                assert_eq!((address.ip().to_canonical(), address.port()), (own.ip(), own.port()), "{any}");
                #[cfg(target_os = "linux")]
                assert_eq!(from.asked.map(|asked| asked.to_canonical()), Some(own.ip()), "{any}");
                assert_eq!(datagrams.collect::<Vec<_>>(), [b"hello"]);
                let mut buffer = [0; 4000];
                #[cfg(target_os = "linux")]
                {
                    send_segments(&server, &[7; 1500], 1000, Some(from)).unwrap();
                    assert_eq!(client.recv(&mut buffer).unwrap(), 1000);
                    assert_eq!(client.recv(&mut buffer).unwrap(), 500);
                }
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
