//! Sockets before they are bound. Owns: nothing.

use std::io;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub(crate) const HYPER_V: bool = false;
pub(crate) const READ_TELLS_REFUSAL: bool = true;
pub(crate) const PROBE: Type = Type::DGRAM;

pub(crate) fn claim_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

pub(crate) fn protocol(_address: &SockAddr) -> Option<Protocol> {
    None
}

pub(crate) fn unix(kind: Type) -> io::Result<Socket> {
    Socket::new(Domain::UNIX, kind, None)
}
