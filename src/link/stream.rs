//! Streams in which a length stands before each frame. Owns: the bytes read and not yet taken. Read next:
//! `batch.rs`, the way out.

use std::io::{self, Read};

use super::{FrameTooLong, MAX_FRAME, Progress};

use crate::sys::polled::SHORT_IS_EMPTY;

/// Room for what one read brings: a socket buffer's worth, and a partial frame before it.
const READ_BUFFER: usize = 512 << 10;

/// The length before a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    /// 32 bits, big-endian.
    Big32,
    /// 16 bits, little-endian.
    Little16,
}

/// Bytes into frames.
#[derive(Debug)]
pub struct Reader {
    prefix: Prefix,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    /// A reader that has `early` already, as far as it fits.
    pub(super) fn new(prefix: Prefix, early: &[u8]) -> Self {
        let mut buffer = vec![0; READ_BUFFER];
        let end = early.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..end), early.get(..end)) {
            to.copy_from_slice(from);
        }
        Self { prefix, buffer, start: 0, end }
    }

    /// Reads once. All whole frames have been taken before.
    ///
    /// # Errors
    /// The socket's, but for those that mean "later".
    pub(super) fn fill(&mut self, stream: &mut impl Read) -> io::Result<Progress> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let space = self.buffer.get_mut(self.end..).unwrap_or_default();
        let room = space.len();
        match stream.read(space) {
            Ok(0) => Ok(Progress::Closed),
            Ok(n) => {
                self.end += n;
                // What comes to a stream that is empty is a new edge.
                Ok(if SHORT_IS_EMPTY && n < room { Progress::Blocked } else { Progress::More })
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
    #[inline]
    pub(super) fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let (announced, rest) = match self.prefix {
            Prefix::Big32 => match bytes.split_first_chunk() {
                Some((length, rest)) => (u32::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            Prefix::Little16 => match bytes.split_first_chunk() {
                Some((length, rest)) => (u16::from_le_bytes(*length).into(), rest),
                None => return Ok(None),
            },
        };
        let len =
            usize::try_from(announced).ok().filter(|len| *len <= MAX_FRAME).ok_or(FrameTooLong(announced))?;
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.start += bytes.len() - rest.len() + len;
        Ok(Some(frame))
    }

    /// Bytes read and not yet taken.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Batch, Framing};

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

    fn lens_of(prefix: Prefix, bytes: &[u8], early: usize, pieces: Vec<usize>) -> Vec<usize> {
        let mut reader = Reader::new(prefix, &bytes[..early]);
        let (mut stream, mut lens) = (Pieces(&bytes[early..], pieces), Vec::new());
        while !stream.1.is_empty() {
            while let Some(frame) = reader.next_frame().unwrap() {
                assert!(frame.iter().all(|byte| *byte == frame.len() as u8));
                lens.push(frame.len());
            }
            reader.fill(&mut stream).unwrap();
        }
        while let Some(frame) = reader.next_frame().unwrap() {
            lens.push(frame.len());
        }
        assert_eq!(reader.len(), 0);
        lens
    }

    #[test]
    fn a_batch_is_what_a_reader_reads_however_it_is_cut() {
        for (framing, prefix, longest) in
            [(Framing::Qemu, Prefix::Big32, MAX_FRAME), (Framing::Hyperkit, Prefix::Little16, 65_535)]
        {
            let lens = [0, 1, 14, 1514, longest];
            let mut batch = Batch::new(framing);
            for len in lens {
                batch.frame(len).unwrap().fill(len as u8);
            }
            let mut bytes = Vec::new();
            assert_eq!(batch.write_stream(&mut bytes).unwrap(), Progress::More);
            assert_eq!(batch.len(), 0);
            for pieces in [vec![usize::MAX], vec![usize::MAX, 3, 1, 1, 2], vec![usize::MAX, 70_000, 9, 9, 9]]
            {
                for early in [0, 1, 5, 1000] {
                    assert_eq!(lens_of(prefix, &bytes, early, pieces.clone()), lens, "{framing:?} {early}");
                }
            }
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_an_error() {
        let mut reader = Reader::new(Prefix::Big32, &131_073_u32.to_be_bytes());
        assert_eq!(reader.next_frame(), Err(FrameTooLong(131_073)));
    }
}
