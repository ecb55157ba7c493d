//! Buffers for what clients send, used again and again.
//! Owns: the spare ones of a connection. May not: read or send (`channel.rs`).

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of a buffer, in bytes: eight packets of the size that OpenSSH takes.
const CHUNK: usize = 256 << 10;
/// Spare buffers kept: what one busy client has under way, one being filled and russh's queue of ten packets.
const SPARE: usize = 3;

/// The buffers of one connection. Fresh pages would cost a fault for each 4 KiB that passes, more than to encrypt them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks(Arc<Mutex<Vec<Vec<u8>>>>);

impl Chunks {
    /// An empty buffer with room for 256 KiB.
    pub(super) fn take(&self) -> Chunk {
        let bytes = self.spare().pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        Chunk { bytes, home: self.clone() }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its [`Chunks`] when it is dropped.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    home: Chunks,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        let mut spare = self.home.spare();
        if spare.len() < SPARE {
            bytes.clear();
            spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_only_so_many_are_kept() {
        let chunks = Chunks::default();
        let mut taken: Vec<_> = (0..SPARE + 2).map(|_| chunks.take()).collect();
        taken[0].bytes.push(1);
        let first = taken[0].bytes.as_ptr();
        drop(taken.remove(0));
        let again = chunks.take();
        assert_eq!((again.bytes.as_ptr(), again.as_ref()), (first, [].as_slice()));
        drop((again, taken));
        assert_eq!(chunks.spare().len(), SPARE);
    }
}
