//! Frames for a link: collected in place, written together. Owns: the frames not yet written. Read next:
//! `engine/links.rs`.

use rustix::fd::BorrowedFd;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Write};

use rustix::io::Errno;

use super::{Framing, Progress};
use crate::sys::datagram;
use crate::sys::polled::Polled;

/// Frames collected for one write, in bytes.
const WRITE_BUFFER: usize = 512 << 10;
/// Frames of other guests that the hypervisor has not yet taken, here and in its socket: a short one costs it
/// as much as a long one, and they stand before what the gateway sends.
const MAX_CROSSING: u64 = 512;
/// Bytes of a length: QEMU's; between datagrams it stays here and says where the next one starts.
const LONG: usize = 4;
/// Bytes of HyperKit's.
const SHORT: usize = 2;

/// Frames into bytes.
#[derive(Debug)]
pub struct Batch {
    framing: Framing,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Up to here [`unseen`](Self::unseen) has shown the frames.
    seen: usize,
    crossing: Crossing,
}

/// Frames of other guests, in the order of what was written.
#[derive(Debug, Default)]
struct Crossing {
    /// So many were let in, and of them the hypervisor has taken so many.
    put: Cell<u64>,
    taken: u64,
    /// Bytes that were written.
    written: u64,
    /// How many were in the first so many bytes.
    marks: VecDeque<(u64, u64)>,
}

impl Batch {
    /// An empty batch.
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            buffer: vec![0; WRITE_BUFFER],
            start: 0,
            end: 0,
            seen: 0,
            crossing: Crossing::default(),
        }
    }

    /// Whether one more frame of another guest's may wait here, which counts it. It leaves half of the room.
    pub fn lets_cross(&self, len: usize) -> bool {
        let Crossing { put, taken, .. } = &self.crossing;
        let lets = put.get() - taken < MAX_CROSSING && self.has_room(len + self.capacity() / 2);
        put.set(put.get() + u64::from(lets));
        lets
    }

    /// Counts what the hypervisor has taken of those where they are many: all but what is in the `unsent`
    /// bytes of its socket.
    pub fn count_taken(&mut self, unsent: impl FnOnce() -> usize) {
        let Crossing { put, taken, written, marks } = &mut self.crossing;
        if put.get() - *taken < MAX_CROSSING / 2 {
            return;
        }
        let is_read = written.saturating_sub(u64::try_from(unsent()).unwrap_or(u64::MAX));
        while let Some((_, frames)) = marks.front().filter(|(bytes, _)| *bytes <= is_read) {
            *taken = *frames;
            marks.pop_front();
        }
    }

    /// Notes how much was written, and which frames are in it where that is all there was.
    fn note_written(&mut self, before: usize) {
        let left = self.len();
        let Crossing { put, written, marks, .. } = &mut self.crossing;
        *written += u64::try_from(before - left).unwrap_or_default();
        if left == 0 && marks.back().is_none_or(|(_, frames)| *frames < put.get()) {
            marks.push_back((*written, put.get()));
        }
    }

    /// Whether a frame of `len` bytes fits.
    pub fn has_room(&self, len: usize) -> bool {
        self.buffer.len() - self.end >= LONG + len
    }

    /// Bytes that fit into an empty one.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Whether it is worth waking those who wait for room.
    pub fn has_much_room(&self) -> bool {
        self.has_room(self.buffer.len() / 4)
    }

    /// Adds a frame of `len` bytes and lends them to be written.
    #[inline]
    pub fn frame(&mut self, len: usize) -> Option<&mut [u8]> {
        let space = self.buffer.get_mut(self.end..)?;
        let (space, frame) = if self.framing == Framing::Hyperkit {
            let (prefix, rest) = space.split_first_chunk_mut::<SHORT>()?;
            let frame = rest.get_mut(..len)?;
            *prefix = u16::try_from(len).ok()?.to_le_bytes();
            (SHORT, frame)
        } else {
            let (prefix, rest) = space.split_first_chunk_mut::<LONG>()?;
            let frame = rest.get_mut(..len)?;
            *prefix = u32::try_from(len).ok()?.to_be_bytes();
            (LONG, frame)
        };
        self.end += space + len;
        Some(frame)
    }

    /// The frames that were added since the last call, for who wants to see each of them once: before they
    /// are written.
    pub fn unseen(&mut self) -> impl Iterator<Item = &[u8]> {
        let rest = self.buffer.get(self.seen..self.end).unwrap_or_default();
        self.seen = self.end;
        Frames { framing: self.framing, rest }
    }

    /// Bytes collected and not yet written.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Forgets what has not been written: nobody will read it.
    pub fn clear(&mut self) {
        (self.start, self.end, self.seen) = (0, 0, 0);
    }

    /// Writes until everything is written or the descriptor takes no more.
    ///
    /// # Errors
    /// The descriptor's, but for those that mean "later".
    pub fn write_to(&mut self, mut to: &Polled) -> io::Result<Progress> {
        let before = self.len();
        let progress = match self.framing {
            Framing::Qemu | Framing::Hyperkit => self.write_stream(&mut to),
            Framing::Vfkit | Framing::Bess => self.send_datagrams(to.fd()),
        };
        self.note_written(before);
        progress
    }

    pub(super) fn write_stream(&mut self, stream: &mut impl Write) -> io::Result<Progress> {
        while self.start < self.end {
            match stream.write(self.buffer.get(self.start..self.end).unwrap_or_default()) {
                Ok(0) => return Ok(Progress::Closed),
                Ok(n) => self.start += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.make_room();
                    return Ok(Progress::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.clear();
        Ok(Progress::More)
    }

    fn send_datagrams(&mut self, socket: BorrowedFd<'_>) -> io::Result<Progress> {
        while self.start < self.end {
            let unsent = || Frames {
                framing: self.framing,
                rest: self.buffer.get(self.start..self.end).unwrap_or_default(),
            };
            let sent = match datagram::send(socket, unsent()) {
                Ok(sent) => sent,
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => {
                        self.make_room();
                        return Ok(Progress::Blocked);
                    }
                    Some(Errno::NOBUFS) => {
                        self.make_room();
                        return Ok(Progress::Starved);
                    }
                    _ if error.kind() == io::ErrorKind::OutOfMemory => {
                        self.make_room();
                        return Ok(Progress::Starved);
                    }
                    Some(Errno::INTR) => continue,
                    // The socket takes none that is so long: lost, as on any link.
                    Some(Errno::MSGSIZE) => 1,
                    _ => return Err(error),
                },
            };
            let bytes: usize = unsent().take(sent).map(|datagram| LONG + datagram.len()).sum();
            if bytes == 0 {
                return Ok(Progress::Blocked);
            }
            self.start += bytes;
        }
        self.clear();
        Ok(Progress::More)
    }

    /// Room at the end again, but for a few bytes moved often.
    fn make_room(&mut self) {
        if self.start >= self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            // What is written has been seen, if anybody looks.
            self.seen = self.seen.saturating_sub(self.start);
            self.start = 0;
        }
    }
}

/// The frames of a batch.
struct Frames<'a> {
    framing: Framing,
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = if self.framing == Framing::Hyperkit {
            let (length, rest) = self.rest.split_first_chunk::<SHORT>()?;
            (u16::from_le_bytes(*length).into(), rest)
        } else {
            let (length, rest) = self.rest.split_first_chunk::<LONG>()?;
            (u32::from_be_bytes(*length), rest)
        };
        let (frame, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::sys::stream::blocking_pair;

    #[test]
    fn a_full_batch_refuses() {
        for framing in [Framing::Qemu, Framing::Hyperkit, Framing::Vfkit] {
            let mut batch = Batch::new(framing);
            while batch.has_room(60_000) {
                assert!(batch.frame(60_000).is_some());
            }
            let len = batch.len();
            assert!(batch.frame(60_000).is_none());
            assert_eq!(batch.len(), len);
            assert!(batch.frame(60).is_some());
        }
    }

    #[cfg(unix)]
    #[test]
    fn frames_of_others_wait_in_small_number() {
        let (near, mut far) = blocking_pair();
        let near = Polled::new(near.into()).unwrap();
        let unsent = || crate::sys::unsent(near.fd()).unwrap();
        let mut batch = Batch::new(Framing::Qemu);
        let cross = |batch: &mut Batch| {
            let let_in =
                (0..2 * MAX_CROSSING).filter(|_| batch.lets_cross(60) && batch.frame(60).is_some()).count();
            assert!(matches!(batch.write_to(&near), Ok(Progress::More)));
            batch.count_taken(unsent);
            let_in as u64
        };
        assert_eq!(cross(&mut batch), MAX_CROSSING);
        assert_eq!(cross(&mut batch), 0, "nothing was taken");
        // The gateway's have room all the same.
        batch.frame(1500).unwrap();
        batch.write_to(&near).unwrap();
        let mut bytes = vec![0; MAX_CROSSING as usize * 64 + 1504];
        io::Read::read_exact(&mut far, &mut bytes).unwrap();
        batch.count_taken(unsent);
        assert_eq!(cross(&mut batch), MAX_CROSSING, "they are taken");
        let mut large = Batch::new(Framing::Qemu);
        let let_in = (0..100).filter(|_| large.lets_cross(60_000) && large.frame(60_000).is_some()).count();
        assert_eq!(let_in, 4, "half of its bytes");
    }

    #[test]
    fn a_frame_that_a_length_cannot_tell_is_refused() {
        let mut batch = Batch::new(Framing::Hyperkit);
        assert!(batch.frame(65_536).is_none());
        assert_eq!(batch.len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn datagrams_leave_in_order_however_often_the_socket_is_full() {
        use std::os::unix::net::UnixDatagram;

        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let ours = Polled::new(ours.into()).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut batch = Batch::new(Framing::Vfkit);
        let (mut made, mut taken) = (0_u32, 0_u32);
        let mut buffer = [0; 2000];
        while taken < 2000 {
            while made < 2000
                && let Some(frame) = batch.frame(1000 + made as usize % 7)
            {
                frame[..4].copy_from_slice(&made.to_be_bytes());
                made += 1;
            }
            let progress = batch.write_to(&ours).unwrap();
            assert!(matches!(progress, Progress::More | Progress::Blocked), "{progress:?}");
            while let Ok(len) = theirs.recv(&mut buffer) {
                assert_eq!((&buffer[..4], len), (&taken.to_be_bytes()[..], 1000 + taken as usize % 7));
                taken += 1;
            }
        }
        assert_eq!(batch.len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn each_frame_is_seen_once_whatever_is_written_of_it() {
        use std::os::unix::net::UnixDatagram;

        /// Takes so many bytes, and then no more for now.
        struct Room(usize);
        impl Write for Room {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let n = self.0.min(bytes.len());
                self.0 -= n;
                if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let ours = Polled::new(ours.into()).unwrap();
        theirs.set_nonblocking(true).unwrap();
        for framing in [Framing::Qemu, Framing::Hyperkit, Framing::Vfkit] {
            let (mut batch, mut added, mut seen) = (Batch::new(framing), 0_u32, 0_u32);
            for round in 0..200 {
                while added < 40 * (round + 1)
                    && let Some(frame) = batch.frame(500 + added as usize % 3)
                {
                    frame[..4].copy_from_slice(&added.to_be_bytes());
                    added += 1;
                }
                for frame in batch.unseen() {
                    assert_eq!(
                        (&frame[..4], frame.len()),
                        (&seen.to_be_bytes()[..], 500 + seen as usize % 3)
                    );
                    seen += 1;
                }
                assert_eq!((seen, batch.unseen().count()), (added, 0));
                if framing == Framing::Vfkit {
                    for _ in 0..if round % 7 == 6 { usize::MAX } else { 30 } {
                        batch.write_to(&ours).unwrap();
                        if theirs.recv(&mut [0; 600]).is_err() {
                            break;
                        }
                    }
                } else {
                    let room = if round % 7 == 6 { usize::MAX } else { 15_001 };
                    batch.write_stream(&mut Room(room)).unwrap();
                }
            }
            assert_eq!(added, 8000);
        }
    }
}
