//! Addresses that not every system has, and sockets that were opened for this process. Owns: the descriptors
//! that systemd passes, until they are taken. May not: bind. Read next: `../listen.rs`.

use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

use socket2::SockAddr;

use super::os;

/// The address of the abstract unix socket `name`: unix(7).
///
/// # Errors
/// The system has none, or the name is longer than 107 bytes.
pub fn abstract_address(name: &[u8]) -> io::Result<SockAddr> {
    os::sockets::abstract_address(name)
}

/// Whether a socket listens; `None` where the system does not tell.
pub fn is_listening(socket: &socket2::Socket) -> Option<bool> {
    os::sockets::is_listening(socket)
}

/// A descriptor that systemd passed.
#[derive(Debug)]
pub struct Passed {
    /// At least 3.
    pub number: u32,
    /// `FileDescriptorName=`, by default the unit's name.
    pub name: String,
    /// Closed in children.
    pub fd: OwnedFd,
}

/// What was passed to this process: sd_listen_fds(3). Empty from the second call on.
///
/// # Errors
/// The variables contradict each other, or name a descriptor that is not open.
pub fn passed() -> io::Result<Vec<Passed>> {
    os::sockets::passed()
}

/// Any context: vsock(7).
pub const VMADDR_CID_ANY: u32 = u32::MAX;
/// This machine, by way of vsock's loopback.
pub const VMADDR_CID_LOCAL: u32 = 1;
/// The host, for its guests.
pub const VMADDR_CID_HOST: u32 = 2;

/// The vsock address of a context and a port.
///
/// # Errors
/// The system has no vsock.
pub fn to_vsock_address(cid: u32, port: u32) -> io::Result<SockAddr> {
    os::sockets::to_vsock_address(cid, port)
}

/// The context and the port of a vsock address; `None` for one of another family.
pub fn vsock_address(address: &SockAddr) -> Option<(u32, u32)> {
    os::sockets::vsock_address(address)
}

/// Two sockets, connected to each other, that do not wait. One message is one frame, as with datagrams, and
/// each end can tell that the other is closed.
///
/// # Errors
/// There are no more descriptors.
pub fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    os::sockets::packet_pair()
}

/// How long data that was sent may go unacknowledged before the connection ends, where it is one of TCP and
/// the system can: RFC 5482.
pub fn set_user_timeout(socket: BorrowedFd<'_>, limit: Option<Duration>) {
    os::sockets::set_user_timeout(socket, limit);
}
