//! Sockets on which a message is a frame: vfkit's datagrams, BESS's `SOCK_SEQPACKET`. Owns: the messages read
//! and not yet taken.
//! Read next: `sys/datagram.rs`.

use rustix::fd::BorrowedFd;
use std::io;

use super::{MAX_FRAME, Progress};
use crate::sys::datagram::{MESSAGES, TAKES_ALL, receive};

/// Messages into frames.
#[derive(Debug)]
pub struct Reader {
    /// A slot for each message. Pages that no frame has reached cost nothing.
    buffer: Vec<u8>,
    lens: Vec<usize>,
    next: usize,
    /// An empty message is the end: on a `SOCK_SEQPACKET` socket the two are not to be told apart.
    empty_is_end: bool,
}

impl Reader {
    pub(super) fn new(empty_is_end: bool) -> Self {
        Self {
            buffer: vec![0; MESSAGES * MAX_FRAME],
            lens: Vec::with_capacity(MESSAGES),
            next: 0,
            empty_is_end,
        }
    }

    pub(super) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<Progress> {
        self.lens.clear();
        self.next = 0;
        match receive(socket, &mut self.buffer, MAX_FRAME, &mut self.lens) {
            Ok(()) => {
                let end = self.lens.iter().position(|len| *len == 0).filter(|_| self.empty_is_end);
                if let Some(end) = end {
                    self.lens.truncate(end);
                    return Ok(Progress::Closed);
                }
                Ok(if TAKES_ALL && self.lens.len() < MESSAGES { Progress::Blocked } else { Progress::More })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Progress::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Progress::More),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Progress::Closed),
            Err(error) => Err(error),
        }
    }

    #[inline]
    pub(super) fn next_frame(&mut self) -> Option<&[u8]> {
        let len = *self.lens.get(self.next)?;
        let start = self.next * MAX_FRAME;
        self.next += 1;
        self.buffer.get(start..start + len)
    }

    pub(super) fn len(&self) -> usize {
        self.lens.iter().skip(self.next).sum()
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use rustix::fd::AsFd;

    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    use super::*;

    #[test]
    fn a_message_is_a_frame_until_the_end() {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
        let (ours, theirs) = pair.unwrap();
        let mut reader = Reader::new(true);
        assert_eq!(reader.fill(ours.as_fd()).unwrap(), Progress::Blocked);
        assert!(reader.next_frame().is_none());
        for len in [1, 14, 65_550] {
            send(&theirs, &vec![7; len], SendFlags::empty()).unwrap();
        }
        drop(theirs);
        let mut lens = Vec::new();
        let mut progress = Progress::More;
        while progress == Progress::More {
            progress = reader.fill(ours.as_fd()).unwrap();
            while let Some(frame) = reader.next_frame() {
                assert!(frame.iter().all(|byte| *byte == 7));
                lens.push(frame.len());
            }
        }
        assert_eq!(progress, Progress::Closed);
        assert_eq!(lens, [1, 14, 65_550]);
    }
}
