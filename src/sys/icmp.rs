//! Sockets that ask for echoes. Owns: nothing. Read next: `../host/icmp.rs`.

use std::io;
use std::net::Ipv4Addr;

use mio::net::UdpSocket;

use super::os;

/// A socket that sends ICMP echo requests to `target`, and receives what comes back. To the rest of the
/// program a socket with messages is like another.
///
/// # Errors
/// The system has no such socket to give, or no way there.
pub fn open(target: Ipv4Addr) -> io::Result<UdpSocket> {
    os::icmp::open(target)
}
