//! Addresses that not every system has, and sockets that were opened for this process. Owns: the descriptors
//! that systemd passes, until they are taken. May not: bind. Read next: `../listen.rs`.

use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::{Protocol, SockAddr, Type};

use super::os;

/// For a socket that is to listen at a TCP port, before it is bound: one whose old connections are in
/// TIME-WAIT is free, and one at which another listens is not.
///
/// # Errors
/// The system's.
pub fn claim_port(socket: &socket2::Socket) -> io::Result<()> {
    os::sockets::claim_port(socket)
}

/// The kind of a socket that asks whether another listens at the path of a unix socket. Of one for datagrams
/// whoever listens hears nothing; Windows has none.
pub const PROBE: Type = os::sockets::PROBE;

/// A unix socket, where the system has one of this kind; the failure says what else there is.
///
/// # Errors
/// The system's.
pub fn unix(kind: Type) -> io::Result<socket2::Socket> {
    os::sockets::unix(kind)
}

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

/// A call that finds nothing says so, where a socket may block and the system can; on Windows none of ours
/// blocks.
pub const DONTWAIT: RecvFlags = os::sockets::DONTWAIT;

/// Whether a read of a socket whose connect has failed says why. Elsewhere the socket has to be asked, which
/// takes the error from who reads.
pub const READ_TELLS_REFUSAL: bool = os::sockets::READ_TELLS_REFUSAL;

/// Any context: vsock(7).
pub const VMADDR_CID_ANY: u32 = u32::MAX;
/// This machine, by way of vsock's loopback.
pub const VMADDR_CID_LOCAL: u32 = 1;
/// The host, for its guests.
pub const VMADDR_CID_HOST: u32 = 2;

/// Whether vsock is Hyper-V's sockets, where a port is written as the id of a service.
pub const HYPER_V: bool = os::sockets::HYPER_V;

/// The protocol of a stream socket for an address, where the family has none that is meant by itself.
pub fn protocol(address: &SockAddr) -> Option<Protocol> {
    os::sockets::protocol(address)
}

/// The vsock address of a context and a port.
///
/// # Errors
/// The system has no vsock.
pub fn to_vsock_address(cid: u32, port: u32) -> io::Result<SockAddr> {
    os::sockets::to_vsock_address(cid, port)
}

/// The sockets that launchd listens at for this process under `name`, a key of `Sockets` in its property
/// list: launch_activate_socket(3). Once for each name. `None` where there is no launchd.
///
/// # Errors
/// launchd has not started this process, or has no such sockets.
pub fn activated(name: &str) -> Option<io::Result<Vec<OwnedFd>>> {
    os::sockets::activated(name)
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
