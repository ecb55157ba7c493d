//! Many datagrams of a connected unix socket in one system call. Owns: nothing. Read next: `messages.rs`.
// UNSAFETY: no crate lays out messages for recvmmsg and sendmmsg from borrowed buffers, nor credentials of a
// process of another namespace.
#![expect(unsafe_code, reason = "messages for recvmmsg and sendmmsg, control messages")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::messages;
use crate::sys::datagram::{CUT, MESSAGES};

/// Whether a call that takes fewer datagrams than it has room for found no more.
pub(crate) const TAKES_ALL: bool = true;

pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    slot: usize,
    lens: &mut Vec<usize>,
) -> io::Result<()> {
    let mut parts: [libc::iovec; MESSAGES];
    let mut messages: [libc::mmsghdr; MESSAGES];
    let mut slots = 0;
    // SAFETY: all of these are plain data, for which zeroes are valid. Each message has a slot of
    // `buffer` of its own, which outlives the call, and the kernel says how much of it it wrote.
    unsafe {
        (parts, messages) = (zeroed(), zeroed());
        for ((message, part), slot) in
            messages.iter_mut().zip(&mut parts).zip(buffer.chunks_exact_mut(slot.max(1)))
        {
            *part = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            slots += 1;
        }
        let count = messages::receive(socket.as_raw_fd(), messages.get_mut(..slots).unwrap_or_default())?;
        lens.extend(messages.iter().take(count).map(|message| {
            if message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0 { message.msg_len as usize } else { CUT }
        }));
    }
    Ok(())
}

pub(crate) fn send<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    let mut parts: [libc::iovec; MESSAGES];
    let mut messages: [libc::mmsghdr; MESSAGES];
    let mut used = 0;
    // SAFETY: as in `receive`; the kernel only reads the datagrams.
    unsafe {
        (parts, messages) = (zeroed(), zeroed());
        for ((message, part), datagram) in messages.iter_mut().zip(&mut parts).zip(datagrams) {
            *part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            used += 1;
        }
        messages::send(socket.as_raw_fd(), messages.get_mut(..used).unwrap_or_default())
    }
}

/// The process that sent the datagram that is next, if the socket passes credentials and the process can
/// be seen from here.
pub(crate) fn sender_process(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    // Room for credentials alone, which come first: descriptors that somebody passes find none, and are
    // closed by the system.
    const CREDENTIALS: usize =
        size_of::<libc::cmsghdr>() + size_of::<libc::ucred>().next_multiple_of(size_of::<usize>());
    #[repr(C, align(8))]
    struct Control([u8; CREDENTIALS]);
    let mut control = Control([0; CREDENTIALS]);
    // SAFETY: as above; the control message lies within `control`, whose alignment is that of its header,
    // and is as long as its type says.
    let pid = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        if libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) < 0 {
            return None;
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_CREDENTIALS
        {
            return None;
        }
        libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned().pid
    };
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Has the socket say which process a datagram comes from. Costs a little for each datagram.
pub(crate) fn pass_senders(socket: BorrowedFd<'_>, pass: bool) {
    let _ = rustix::net::sockopt::set_socket_passcred(socket, pass);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use crate::sys::datagram::{pass_senders, peek};

    #[test]
    fn a_peek_tells_who_it_was_and_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("s")).unwrap();
        pass_senders(socket.as_fd(), true);
        let named = UnixDatagram::bind(dir.path().join("n")).unwrap();
        UnixDatagram::unbound().unwrap().send_to(b"unnamed", dir.path().join("s")).unwrap();
        named.send_to(b"VF", dir.path().join("s")).unwrap();
        let first = peek(socket.as_fd()).unwrap();
        assert!(&first.start == b"unna" && first.address.is_none(), "{first:?}");
        socket.recv(&mut [0; 16]).unwrap();
        let second = peek(socket.as_fd()).unwrap();
        assert_eq!(second.start, [b'V', b'F', 0, 0]);
        assert!(second.address.is_some() && second.process.is_some(), "{second:?}");
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 2);
    }
}
