//! Many datagrams in one system call: `UDP_SEGMENT`, `UDP_GRO` (udp(7)), recvmmsg(2); and `IP_PKTINFO`
//! (ip(7)). Owns: nothing. Read next: `messages.rs`.
// UNSAFETY: no crate wraps these control messages without changing other options of the socket.
#![expect(unsafe_code, reason = "messages for recvmmsg, control messages")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use mio::net::UdpSocket;
use socket2::SockAddr;

use super::messages;
use crate::sys::udp::{Client, Inbox, MESSAGES, Received, SLOT};

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

pub(crate) fn receive_uncut(socket: &UdpSocket) {
    enable(socket, libc::SOL_UDP, libc::UDP_GRO);
}

/// A socket that is not connected is told of none.
pub(crate) fn ignore_refusals(_socket: &UdpSocket) {}

pub(crate) fn tell_asked(socket: &UdpSocket) {
    match socket.local_addr() {
        Ok(SocketAddr::V4(_)) => enable(socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
        // For datagrams of IPv4 too.
        _ => enable(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    }
}

pub(crate) fn send_segments(
    socket: &UdpSocket,
    bytes: &[u8],
    segment: u16,
    to: Option<Client>,
) -> io::Result<()> {
    send(socket, bytes, Some(segment), to)
}

pub(crate) fn send_one(socket: &UdpSocket, datagram: &[u8], to: Client) -> io::Result<()> {
    match to.asked {
        Some(_) => send(socket, datagram, None, Some(to)),
        None => socket.send_to(datagram, to.address).map(drop),
    }
}

fn send(socket: &UdpSocket, bytes: &[u8], segment: Option<u16>, to: Option<Client>) -> io::Result<()> {
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

pub(crate) fn receive(inbox: &mut Inbox, socket: &UdpSocket, most: usize, names: bool) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::udp;

    fn lens(inbox: &mut Inbox, socket: &UdpSocket) -> Vec<usize> {
        let mut lens = Vec::new();
        while inbox.receive(socket, MESSAGES).is_ok() {
            lens.extend(inbox.datagrams().map(<[u8]>::len));
        }
        lens
    }

    #[test]
    fn one_message_is_many_datagrams() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        udp::receive_uncut(&b);
        let bytes: Vec<u8> = (0..=9).flat_map(|n| [n; 1000]).chain([10; 7]).collect();
        udp::send_segments(&a, &bytes, 1000, None).unwrap();
        assert_eq!(lens(&mut Inbox::new(), &b), [[1000; 10].as_slice(), &[7]].concat());
    }

    #[test]
    fn the_address_that_a_client_asked_is_told_and_answers() {
        let mut inbox = Inbox::new();
        for (any, clients) in
            [("127.0.0.1:0", vec!["127.0.0.1:0"]), ("[::]:0", vec!["127.0.0.1:0", "[::1]:0"])]
        {
            let server = UdpSocket::bind(any.parse().unwrap()).unwrap();
            udp::receive_uncut(&server);
            udp::tell_asked(&server);
            let port = server.local_addr().unwrap().port();
            for client in clients {
                let client = std::net::UdpSocket::bind(client).unwrap();
                let own = client.local_addr().unwrap().ip();
                client.send_to(b"hello", (own, port)).unwrap();
                inbox.receive_from(&server, MESSAGES).unwrap();
                let from = inbox.messages().next().and_then(|(from, _)| from).unwrap();
                assert_eq!(from.asked.map(|asked| asked.to_canonical()), Some(own), "{any}");
                let mut buffer = [0; 4000];
                udp::send_segments(&server, &[7; 1500], 1000, Some(from)).unwrap();
                assert_eq!(client.recv(&mut buffer).unwrap(), 1000);
                assert_eq!(client.recv(&mut buffer).unwrap(), 500);
                udp::send_one(&server, b"bye", Some(from)).unwrap();
                assert_eq!(client.recv(&mut buffer).unwrap(), 3);
            }
        }
    }
}
