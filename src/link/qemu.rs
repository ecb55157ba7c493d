//! QEMU's stream framing: a big-endian 32-bit length, then the frame. `-netdev stream` and `-netdev socket` speak it.
//! Owns: the bytes read and not yet taken, and the frames not yet written. Read next: `engine/links.rs`.

use std::io::{self, Read, Write};

use super::MAX_FRAME;

/// Bytes of the length.
const PREFIX: usize = 4;
/// Room for what one read brings: a socket buffer's worth, and a partial frame before it.
const READ_BUFFER: usize = 512 << 10;
/// Frames collected for one write, in bytes.
const WRITE_BUFFER: usize = 512 << 10;

/// The length word names more than [`MAX_FRAME`] bytes: the two ends no longer agree where a frame starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame of {0} bytes announced, the limit is {MAX_FRAME}")]
pub struct FrameTooLong(u32);

/// What a read or a write left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more to do.
    More,
    /// Nothing more until the socket says so.
    Blocked,
    /// The other end is closed.
    Closed,
}

/// Bytes into frames.
#[derive(Debug)]
pub struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    /// An empty reader.
    #[expect(clippy::new_without_default, reason = "it is large")]
    pub fn new() -> Self {
        Self { buffer: vec![0; READ_BUFFER], start: 0, end: 0 }
    }

    /// Reads once. All whole frames have been taken before.
    ///
    /// # Errors
    /// The socket's, but for those that mean "later".
    pub fn fill(&mut self, stream: &mut impl Read) -> io::Result<Progress> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        let room = space.len();
        match stream.read(space) {
            Ok(0) => Ok(Progress::Closed),
            Ok(n) => {
                self.end += n;
                // A stream that gave less than asked for is empty (epoll(7)); what comes later is a new edge.
                Ok(if n < room { Progress::Blocked } else { Progress::More })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Progress::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Progress::More),
            // It left without having read everything.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Progress::Closed),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// The stream cannot be followed any further.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*prefix);
        let len =
            usize::try_from(announced).ok().filter(|len| *len <= MAX_FRAME).ok_or(FrameTooLong(announced))?;
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += PREFIX + len;
        Ok(Some(frame))
    }

    /// Bytes read and not yet taken.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the stream ended inside a frame.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.end
    }
}

/// Frames into bytes: collected in place, written together.
#[derive(Debug)]
pub struct Batch {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Batch {
    /// An empty batch.
    #[expect(clippy::new_without_default, reason = "it is large")]
    pub fn new() -> Self {
        Self { buffer: vec![0; WRITE_BUFFER], start: 0, end: 0 }
    }

    /// Whether a frame of `len` bytes fits.
    pub fn has_room(&self, len: usize) -> bool {
        self.buffer.len() - self.end >= PREFIX + len
    }

    /// Whether it is worth waking those who wait for room.
    pub fn has_much_room(&self) -> bool {
        self.has_room(self.buffer.len() / 4)
    }

    /// Adds a frame of `len` bytes and lends them to be written.
    pub fn frame(&mut self, len: usize) -> Option<&mut [u8]> {
        let announced = u32::try_from(len).ok()?;
        let space = self.buffer.get_mut(self.end..self.end + PREFIX + len)?;
        self.end += PREFIX + len;
        let (prefix, frame) = space.split_at_mut(PREFIX);
        prefix.copy_from_slice(&announced.to_be_bytes());
        Some(frame)
    }

    /// Bytes collected and not yet written.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Forgets what has not been written: nobody will read it.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Writes until everything is written or the socket takes no more.
    ///
    /// # Errors
    /// The socket's, but for those that mean "later".
    pub fn write_to(&mut self, stream: &mut impl Write) -> io::Result<Progress> {
        while self.start < self.end {
            match stream.write(self.buffer.get(self.start..self.end).unwrap_or_default()) {
                Ok(0) => return Ok(Progress::Closed),
                Ok(n) => self.start += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Room at the end again, but for a few bytes moved often.
                    if self.start >= self.buffer.len() / 2 {
                        self.buffer.copy_within(self.start..self.end, 0);
                        self.end -= self.start;
                        self.start = 0;
                    }
                    return Ok(Progress::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.start = 0;
        self.end = 0;
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of the sizes listed, then blocks.
    struct Pieces<'a>(&'a [u8], Vec<usize>);

    impl Read for Pieces<'_> {
        fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
            let Some(size) = self.1.pop() else { return Err(io::ErrorKind::WouldBlock.into()) };
            let n = size.min(space.len()).min(self.0.len());
            space[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn frames_of(bytes: &[u8], pieces: Vec<usize>) -> Vec<Vec<u8>> {
        let (mut reader, mut stream, mut frames) = (Reader::new(), Pieces(bytes, pieces), Vec::new());
        while !stream.1.is_empty() {
            reader.fill(&mut stream).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                frames.push(frame.to_vec());
            }
        }
        assert!(!reader.is_mid_frame());
        frames
    }

    #[test]
    fn a_batch_is_what_a_reader_reads_however_it_is_cut() {
        let mut batch = Batch::new();
        for len in [0, 1, 14, 1514, MAX_FRAME] {
            batch.frame(len).unwrap().fill(len as u8);
        }
        let mut bytes = Vec::new();
        assert_eq!(batch.write_to(&mut bytes).unwrap(), Progress::More);
        assert!(batch.is_empty());
        for pieces in [vec![usize::MAX], vec![usize::MAX, 3, 1, 1, 2], vec![usize::MAX, 70_000, 9, 9, 9]] {
            let lens: Vec<usize> = frames_of(&bytes, pieces).iter().map(Vec::len).collect();
            assert_eq!(lens, [0, 1, 14, 1514, MAX_FRAME]);
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error() {
        let mut reader = Reader::new();
        let bytes = 131_073_u32.to_be_bytes();
        reader.fill(&mut &bytes[..]).unwrap();
        assert_eq!(reader.next_frame(), Err(FrameTooLong(131_073)));
    }

    #[test]
    fn a_full_batch_refuses() {
        let mut batch = Batch::new();
        while batch.has_room(60_000) {
            assert!(batch.frame(60_000).is_some());
        }
        assert!(batch.frame(60_000).is_none());
        assert!(batch.frame(60).is_some());
    }
}
