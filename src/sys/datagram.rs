//! Many datagrams of a connected unix socket in one system call, where the system has one for it; and who
//! sent the first one.
//! Owns: nothing. Read next: `link/datagram.rs`, `hypervisor/vfkit.rs`.
// UNSAFETY: no crate lays out messages for recvmmsg and sendmmsg from borrowed buffers, nor credentials of a
// process of another namespace.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "messages for recvmmsg and sendmmsg, control messages")
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::SocketAddrAny;

/// Datagrams of one call, at most.
pub const MESSAGES: usize = 32;

/// Whether a call that takes fewer datagrams than it has room for found no more.
pub const TAKES_ALL: bool = cfg!(target_os = "linux");

/// What stands for the length of a datagram that was longer than its slot: too short for a frame.
#[cfg(target_os = "linux")]
const CUT: usize = 1;

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::{size_of, zeroed};
    use std::os::fd::AsRawFd;

    use super::super::messages;
    use super::{BorrowedFd, CUT, MESSAGES, OwnedFd, io};

    pub(super) fn receive(
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

    pub(super) fn send<'a>(
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
                *part =
                    libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                used += 1;
            }
            messages::send(socket.as_raw_fd(), messages.get_mut(..used).unwrap_or_default())
        }
    }

    /// The process that sent the datagram that is next, if the socket passes credentials and the process can
    /// be seen from here.
    pub(super) fn sender_process(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
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
}

/// Takes what the socket has: each datagram into a slot of `slot` bytes of `buffer`, its length into `lens`.
/// One that was longer counts as one byte, which is no frame.
///
/// # Errors
/// The socket's.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    slot: usize,
    lens: &mut Vec<usize>,
) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return linux::receive(socket, buffer, slot, lens);
    #[cfg(not(target_os = "linux"))]
    {
        let slot = buffer.get_mut(..slot).unwrap_or_default();
        let (len, _) = rustix::net::recv(socket, slot, rustix::net::RecvFlags::DONTWAIT)?;
        lens.push(len);
        Ok(())
    }
}

/// Sends datagrams, up to [`MESSAGES`] of them, and says how many were.
///
/// # Errors
/// The socket's, about the first one.
pub fn send<'a>(socket: BorrowedFd<'_>, datagrams: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    return linux::send(socket, datagrams);
    #[cfg(not(target_os = "linux"))]
    {
        let mut datagrams = datagrams;
        let Some(first) = datagrams.next() else { return Ok(0) };
        rustix::net::send(socket, first, rustix::net::SendFlags::DONTWAIT)?;
        Ok(1)
    }
}

/// Who sent a datagram.
#[derive(Debug)]
pub struct Sender {
    /// Its socket's name; `None` if it has none, so that nothing can be sent there.
    pub address: Option<SocketAddrAny>,
    /// Readable when the process has ended; `None` where the system cannot say.
    pub process: Option<OwnedFd>,
    /// The datagram's first bytes.
    pub start: [u8; 4],
}

/// Has the socket say which process a datagram comes from, where the system can. Costs a little for each
/// datagram.
pub fn pass_senders(socket: BorrowedFd<'_>, pass: bool) {
    #[cfg(target_os = "linux")]
    let _ = rustix::net::sockopt::set_socket_passcred(socket, pass);
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, pass);
}

/// Looks at the next datagram and leaves it there.
///
/// # Errors
/// The socket's.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<Sender> {
    use rustix::net::{RecvFlags, recvfrom};
    #[cfg(target_os = "linux")]
    let process = linux::sender_process(socket);
    #[cfg(not(target_os = "linux"))]
    let process = None;
    let mut start = [0; 4];
    let (_, _, address) = recvfrom(socket, &mut start, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(Sender { address, process, start })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn datagrams_keep_their_bounds() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let sent: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n; usize::from(n) * 100]).collect();
        assert_eq!(send(a.as_fd(), sent.iter().map(Vec::as_slice)).unwrap(), sent.len());
        let (mut buffer, mut lens) = (vec![0; MESSAGES * 1000], Vec::new());
        receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap();
        let received: Vec<&[u8]> = buffer.chunks(1000).zip(&lens).map(|(slot, &len)| &slot[..len]).collect();
        assert_eq!(received, sent);
        let error = receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_longer_than_its_slot_is_no_frame() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for len in [1000, 1001, 14] {
            a.send(&vec![1; len]).unwrap();
        }
        let (mut buffer, mut lens) = (vec![0; MESSAGES * 1000], Vec::new());
        receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap();
        assert_eq!(lens, [1000, CUT, 14]);
    }

    #[cfg(target_os = "linux")]
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
