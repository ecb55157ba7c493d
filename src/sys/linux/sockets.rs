//! Addresses of Linux alone, and what systemd passes. Owns: the descriptors that it does, until they are
//! taken.
// UNSAFETY: the environment alone says whose the passed descriptors are.
#![expect(unsafe_code, reason = "descriptors by their numbers")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use socket2::{SockAddr, SockRef};

use crate::sys::sockets::Passed;

pub(crate) use crate::sys::unix::sockets::{HYPER_V, PROBE, READ_TELLS_REFUSAL, claim_port, protocol, unix};

pub(crate) const DONTWAIT: RecvFlags = RecvFlags::DONTWAIT;

pub(crate) fn abstract_address(name: &[u8]) -> io::Result<SockAddr> {
    SockAddr::unix(Path::new(OsStr::from_bytes(&[b"\0", name].concat())))
}

pub(crate) fn is_listening(socket: &socket2::Socket) -> Option<bool> {
    socket.is_listener().ok()
}

#[expect(clippy::unnecessary_wraps, reason = "the face of those that have none")]
pub(crate) fn to_vsock_address(cid: u32, port: u32) -> io::Result<SockAddr> {
    Ok(SockAddr::vsock(cid, port))
}

pub(crate) fn vsock_address(address: &SockAddr) -> Option<(u32, u32)> {
    address.as_vsock_address()
}

pub(crate) fn passed() -> io::Result<Vec<Passed>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    let own = |number| {
        // SAFETY: whoever started this process says so with its id in LISTEN_PID, sd-notify has found the
        // descriptor open, and nobody gets it a second time.
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    let passed = passed.map(|(fd, name)| Passed { number: fd.unsigned_abs(), name, fd: own(fd) });
    Ok(passed.collect())
}

/// There is no launchd.
pub(crate) fn activated(_name: &str) -> Option<io::Result<Vec<OwnedFd>>> {
    None
}

pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

pub(crate) fn set_user_timeout(socket: BorrowedFd<'_>, limit: Option<Duration>) {
    let _ = SockRef::from(&socket).set_tcp_user_timeout(limit);
}
