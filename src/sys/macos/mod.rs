//! macOS. Owns: what the face of `sys` says, as it is done here; and, as far as Linux can do it too, on Linux
//! for tests (feature `sys-macos`).

pub(super) mod datagram;
pub(super) mod memory;
pub(super) mod mode;
pub(super) mod sockets;

pub(super) use super::lacking::{follow, interfaces, owner, pipe, udp};
pub(super) use super::unix::{
    event_log, files, icmp, named_pipe, names, os_str, polled, process, signals, stdio, stream, users,
    watched,
};

use std::io;
use std::os::fd::BorrowedFd;

use mio::Interest;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(super) fn own_process() {
    process::mend_signals(&[]);
}

pub(super) const TELLS_URGENT: bool = false;

pub(super) fn with_urgent(interest: Interest) -> Interest {
    interest
}

/// The kernel refuses more than kern.maxfilesperproc where the limit says "unlimited" (setrlimit(2)): then as
/// many as every release takes.
pub(super) fn raise_descriptor_limit() -> io::Result<()> {
    /// `OPEN_MAX`.
    const OPEN_MAX: u64 = 10_240;
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raise = |current| setrlimit(Resource::Nofile, Rlimit { current, maximum });
    raise(maximum).or_else(|_| raise(Some(maximum.map_or(OPEN_MAX, |most| most.min(OPEN_MAX)))))?;
    Ok(())
}

pub(super) fn prepare_process() {}

/// `LOCAL_PEERPID`, unix(4).
pub(super) fn peer_pid(socket: BorrowedFd<'_>) -> Option<u32> {
    #[cfg(target_os = "macos")]
    #[expect(unsafe_code, reason = "rustix has no LOCAL_PEERPID")]
    {
        use std::os::fd::AsRawFd as _;
        let mut pid: libc::pid_t = 0;
        let mut len = size_of::<libc::pid_t>() as libc::socklen_t;
        let at = (&raw mut pid).cast();
        // SAFETY: the descriptor is open, and the call writes at most `len` bytes to the int.
        let told = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_LOCAL, libc::LOCAL_PEERPID, at, &raw mut len)
        };
        u32::try_from(pid).ok().filter(|pid| told == 0 && *pid != 0)
    }
    #[cfg(not(target_os = "macos"))]
    {
        let _ = socket;
        None
    }
}

pub(super) fn borrow_console() {}

pub(super) fn show_message(_title: &str, _text: &str) {}

pub(super) fn grow_pipe(_pipe: BorrowedFd<'_>, _bytes: usize) {}

/// `SO_NWRITE`, getsockopt(2).
#[expect(unsafe_code, reason = "rustix has no SO_NWRITE")]
pub(super) fn unsent(socket: BorrowedFd<'_>) -> Option<usize> {
    use std::os::fd::AsRawFd as _;
    let (socket, mut bytes): (_, libc::c_int) = (socket.as_raw_fd(), 0);
    #[cfg(target_os = "macos")]
    // SAFETY: as above.
    let told = unsafe {
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_NWRITE, (&raw mut bytes).cast(), &raw mut len)
    };
    #[cfg(not(target_os = "macos"))]
    // SAFETY: the descriptor is open, and the call writes one int to where it is told.
    let told = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    (told == 0).then(|| usize::try_from(bytes).unwrap_or(0))
}

pub(super) fn is_vsock(_socket: BorrowedFd<'_>) -> bool {
    false
}

pub(super) fn vsock_hung_up(_socket: BorrowedFd<'_>) -> bool {
    false
}
