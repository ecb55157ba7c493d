//! Links to hypervisors: bytes to frames and back, batched, and nothing else. Owns: one buffer each way.
//! May not: look into a frame. Read next: `stream.rs`, `datagram.rs`; `../engine/links.rs`, which drives
//! them; `../hypervisor/mod.rs`, where links come from.

mod batch;
mod datagram;
mod stream;

use std::io;

pub use batch::Batch;

use crate::sys::polled::Polled;

/// Longest frame taken from a hypervisor, in bytes. Far above any MTU, since some deliver segments that were
/// never cut.
pub const MAX_FRAME: usize = 131_072;

/// How a link tells one frame from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A stream; a big-endian 32-bit length before each frame. QEMU's `-netdev stream` and `-netdev socket`.
    Qemu,
    /// A stream; a little-endian 16-bit length before each frame. HyperKit and VPNKit, standard input and
    /// output, `/connect`.
    Hyperkit,
    /// Datagrams of a connected unix socket, each a frame.
    Vfkit,
    /// Messages of a `SOCK_SEQPACKET` socket, each a frame.
    Bess,
}

impl Framing {
    /// Longest frame that can be told, in bytes.
    pub const fn max_frame(self) -> usize {
        match self {
            Self::Hyperkit => u16::MAX as usize,
            Self::Qemu | Self::Vfkit | Self::Bess => MAX_FRAME,
        }
    }
}

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
    /// Nothing more, and the socket will not say when: the system has no buffers.
    Starved,
    /// The other end is closed.
    Closed,
}

/// What was read, as frames.
#[derive(Debug)]
pub enum Reader {
    /// Bytes, and lengths among them.
    Stream(stream::Reader),
    /// One frame a datagram.
    Datagrams(datagram::Reader),
}

impl Reader {
    /// A reader that has `early` already.
    pub fn new(framing: Framing, early: &[u8]) -> Self {
        match framing {
            Framing::Qemu => Self::Stream(stream::Reader::new(stream::Prefix::Big32, early)),
            Framing::Hyperkit => Self::Stream(stream::Reader::new(stream::Prefix::Little16, early)),
            Framing::Vfkit => Self::Datagrams(datagram::Reader::new(false)),
            Framing::Bess => Self::Datagrams(datagram::Reader::new(true)),
        }
    }

    /// Reads once. All whole frames have been taken before.
    ///
    /// # Errors
    /// The descriptor's, but for those that mean "later" or "closed".
    pub fn fill(&mut self, mut from: &Polled) -> io::Result<Progress> {
        match self {
            Self::Stream(reader) => reader.fill(&mut from),
            Self::Datagrams(reader) => reader.fill(from.fd()),
        }
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// The stream cannot be followed any further.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameTooLong> {
        match self {
            Self::Stream(reader) => reader.next_frame(),
            Self::Datagrams(reader) => Ok(reader.next_frame()),
        }
    }

    /// Bytes read and not yet taken.
    pub fn len(&self) -> usize {
        match self {
            Self::Stream(reader) => reader.len(),
            Self::Datagrams(reader) => reader.len(),
        }
    }

    /// Whether the stream ended inside a frame.
    pub fn is_mid_frame(&self) -> bool {
        matches!(self, Self::Stream(reader) if reader.len() > 0)
    }
}
