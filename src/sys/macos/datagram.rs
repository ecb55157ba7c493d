//! Datagrams of a connected unix socket, one in each call. Owns: nothing.

use std::io::{self, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendFlags, recvmsg, send as send_to};

use crate::sys::datagram::CUT;

/// Whether a call that takes fewer datagrams than it has room for found no more.
pub(crate) const TAKES_ALL: bool = false;

pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    slot: usize,
    lens: &mut Vec<usize>,
) -> io::Result<()> {
    let slot = buffer.get_mut(..slot).unwrap_or_default();
    let mut parts = [IoSliceMut::new(slot)];
    let message = recvmsg(socket, &mut parts, &mut RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT)?;
    lens.push(if message.flags.contains(ReturnFlags::TRUNC) { CUT } else { message.bytes });
    Ok(())
}

/// Where the peer's queue is full the system says ENOBUFS and not EAGAIN; and tells nobody when it has room
/// again.
pub(crate) fn send<'a>(
    socket: BorrowedFd<'_>,
    mut datagrams: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let Some(first) = datagrams.next() else { return Ok(0) };
    send_to(socket, first, SendFlags::DONTWAIT)?;
    Ok(1)
}

/// Of a datagram it is not told.
pub(crate) fn sender_process(_socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    None
}

pub(crate) fn pass_senders(_socket: BorrowedFd<'_>, _pass: bool) {}
