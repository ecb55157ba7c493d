//! Windows. Owns: what the face of `sys` says, as it is done here.

mod console;
pub(super) mod datagram;
pub(super) mod event_log;
pub(super) mod files;
pub(super) mod icmp;
pub(super) mod memory;
pub(super) mod message_box;
pub(super) mod mode;
pub(super) mod named_pipe;
pub(super) mod names;
pub(super) mod os_str;
pub(super) mod polled;
pub(super) mod process;
mod quit;
pub(super) mod signals;
pub(super) mod sockets;
pub(super) mod stdio;
pub(super) mod stream;
pub(super) mod udp;
pub(super) mod users;
pub(super) mod watched;

pub(super) use super::lacking::{follow, interfaces, owner, pipe};

use std::io;
use std::os::windows::io::BorrowedSocket;

use mio::Interest;

pub(super) fn own_process() {}

pub(super) const TELLS_URGENT: bool = false;

pub(super) fn with_urgent(interest: Interest) -> Interest {
    interest
}

/// Sockets are handles, of which a process may have millions.
#[expect(clippy::unnecessary_wraps, reason = "the face of those that have a limit")]
pub(super) fn raise_descriptor_limit() -> io::Result<()> {
    Ok(())
}

pub(super) fn prepare_process() {}

pub(super) fn borrow_console() {
    console::borrow();
}

pub(super) fn show_message(title: &str, text: &str) {
    message_box::show(title, text);
}

pub(super) fn peer_pid(_socket: BorrowedSocket<'_>) -> Option<u32> {
    None
}

pub(super) fn grow_pipe(_pipe: BorrowedSocket<'_>, _bytes: usize) {}

pub(super) fn unsent(_socket: BorrowedSocket<'_>) -> Option<usize> {
    None
}

pub(super) fn is_vsock(_socket: BorrowedSocket<'_>) -> bool {
    false
}

pub(super) fn vsock_hung_up(_socket: BorrowedSocket<'_>) -> bool {
    false
}
