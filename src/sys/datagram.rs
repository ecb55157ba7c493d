//! Many datagrams of a connected unix socket in one system call, where the system has one for it; and who
//! sent the first one.
//! Owns: nothing. Read next: `link/datagram.rs`, `hypervisor/vfkit.rs`.

use rustix::fd::{BorrowedFd, OwnedFd};
use std::io;

use rustix::net::SocketAddrAny;

use super::os;

/// Datagrams of one call, at most.
pub const MESSAGES: usize = 32;

/// Whether a call that takes fewer datagrams than it has room for found no more.
pub const TAKES_ALL: bool = os::datagram::TAKES_ALL;

/// What stands for the length of a datagram that was longer than its slot: too short for a frame.
pub(super) const CUT: usize = 1;

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
    os::datagram::receive(socket, buffer, slot, lens)
}

/// Sends datagrams, up to [`MESSAGES`] of them, and says how many were.
///
/// # Errors
/// The socket's, about the first one.
pub fn send<'a>(socket: BorrowedFd<'_>, datagrams: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
    os::datagram::send(socket, datagrams)
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
    os::datagram::pass_senders(socket, pass);
}

/// Looks at the next datagram and leaves it there.
///
/// # Errors
/// The socket's.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<Sender> {
    use rustix::net::{RecvFlags, recvfrom};

    use super::sockets::DONTWAIT;

    let process = os::datagram::sender_process(socket);
    let mut start = [0; 4];
    let (_, _, address) = recvfrom(socket, &mut start, RecvFlags::PEEK | DONTWAIT)?;
    Ok(Sender { address, process, start })
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use rustix::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn datagrams_keep_their_bounds() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let sent: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n; usize::from(n) * 100]).collect();
        let mut unsent = sent.as_slice();
        while !unsent.is_empty() {
            unsent = &unsent[send(a.as_fd(), unsent.iter().map(Vec::as_slice)).unwrap()..];
        }
        let (mut buffer, mut lens, mut received) = (vec![0; MESSAGES * 1000], Vec::new(), Vec::new());
        while received.len() < sent.len() {
            lens.clear();
            receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap();
            received.extend(buffer.chunks(1000).zip(&lens).map(|(slot, &len)| slot[..len].to_vec()));
        }
        assert_eq!(received, sent);
        let error = receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_longer_than_its_slot_is_no_frame() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for len in [1000, 1001, 14] {
            a.send(&vec![1; len]).unwrap();
        }
        let (mut buffer, mut lens) = (vec![0; MESSAGES * 1000], Vec::new());
        while lens.len() < 3 {
            receive(b.as_fd(), &mut buffer, 1000, &mut lens).unwrap();
        }
        assert_eq!(lens, [1000, CUT, 14]);
    }
}
