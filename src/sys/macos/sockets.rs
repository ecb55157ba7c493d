//! Addresses that macOS has not. Owns: nothing.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::SockAddr;

use crate::sys::sockets::Passed;

pub(crate) use crate::sys::unix::sockets::{HYPER_V, PROBE, READ_TELLS_REFUSAL, claim_port, protocol, unix};

pub(crate) const DONTWAIT: RecvFlags = RecvFlags::DONTWAIT;

pub(crate) fn abstract_address(_name: &[u8]) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"))
}

/// `SO_ACCEPTCONN` cannot be asked for.
pub(crate) fn is_listening(_socket: &socket2::Socket) -> Option<bool> {
    None
}

pub(crate) fn to_vsock_address(_cid: u32, _port: u32) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "macOS has no vsock"))
}

pub(crate) fn vsock_address(_address: &SockAddr) -> Option<(u32, u32)> {
    None
}

/// There is no systemd.
#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has")]
pub(crate) fn passed() -> io::Result<Vec<Passed>> {
    Ok(Vec::new())
}

/// For taps, which macOS has not either.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has sequenced packets between unix sockets"))
}

pub(crate) fn set_user_timeout(_socket: BorrowedFd<'_>, _limit: Option<Duration>) {}
