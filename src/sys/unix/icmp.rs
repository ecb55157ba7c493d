//! Sockets of datagrams of ICMP. Owns: nothing.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::UdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) fn open(target: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(target.into(), 0).into())?;
    Ok(UdpSocket::from_std(socket.into()))
}
