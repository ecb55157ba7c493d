//! Linux. Owns: what the face of `sys` says, as it is done here.
// UNSAFETY: rustix has no SIOCOUTQ.
#![expect(unsafe_code, reason = "SIOCOUTQ")]

pub(super) mod datagram;
pub(super) mod follow;
pub(super) mod interfaces;
pub(super) mod memory;
mod messages;
pub(super) mod mode;
pub(super) mod owner;
pub(super) mod pipe;
pub(super) mod sockets;
pub(super) mod udp;

pub(super) use super::unix::{
    event_log, files, icmp, named_pipe, names, os_str, polled, process, signals, stdio, stream, users,
    watched,
};

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use mio::Interest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{socket_domain, socket_peercred};
use rustix::net::{AddressFamily, SendFlags, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub(super) fn own_process() {
    process::mend_signals(&[libc::SIGPWR]);
}

pub(super) const TELLS_URGENT: bool = true;

pub(super) fn with_urgent(interest: Interest) -> Interest {
    interest | Interest::PRIORITY
}

pub(super) fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// The rings of many flows lie side by side. A huge page under a ring of which one page is used would cost
/// 2 MiB.
pub(super) fn prepare_process() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "cannot turn off transparent huge pages");
    }
}

pub(super) fn peer_pid(socket: BorrowedFd<'_>) -> Option<u32> {
    let peer = socket_peercred(socket).ok()?;
    u32::try_from(peer.pid.as_raw_pid()).ok().filter(|pid| *pid != 0)
}

pub(super) fn borrow_console() {}

pub(super) fn show_message(_title: &str, _text: &str) {}

pub(super) fn grow_pipe(pipe: BorrowedFd<'_>, bytes: usize) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
}

/// tcp(7).
pub(super) fn unsent(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the call writes one int to where it is told.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (told == 0).then(|| usize::try_from(bytes).unwrap_or(0))
}

pub(super) fn is_vsock(socket: BorrowedFd<'_>) -> bool {
    socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::VSOCK)
}

pub(super) fn vsock_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let polled = poll(&mut asked, Some(&Timespec::default()));
    let [events] = asked.map(|fd| fd.revents());
    // An error is for who reads: a send would take it.
    let takes_no_more =
        || send(socket, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) == Err(rustix::io::Errno::PIPE);
    polled.is_ok()
        && !events.contains(PollFlags::ERR)
        && (events.contains(PollFlags::HUP) || events.contains(PollFlags::RDHUP) && takes_no_more())
}
