//! Buffers for what clients send, used again and again.
//! Owns: the spare ones of a connection. May not: read or send (`channel.rs`).

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size of a buffer, in bytes: eight packets of the size that OpenSSH takes.
const CHUNK: usize = 256 << 10;
/// Size of one where many are in use: of clients whose guest does not take what they send.
const SMALL: usize = 16 << 10;
/// Buffers of the full size in use at a time.
const MAX_LARGE: usize = 8;
/// Spare buffers kept: what one busy client has under way, one being filled and russh's queue of ten packets.
const SPARE: usize = 3;

/// The buffers of one connection. Fresh pages would cost a fault for each 4 KiB that passes, more than to
/// encrypt them.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunks(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    spare: Vec<Vec<u8>>,
    /// Buffers of the full size in use.
    large: usize,
}

impl Chunks {
    /// An empty buffer with room for 256 KiB, or for 16 where many are in use.
    pub(super) fn take(&self) -> Chunk {
        let mut state = self.state();
        let is_large = state.large < MAX_LARGE;
        let bytes = match is_large {
            true => {
                state.large += 1;
                state.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK))
            }
            false => Vec::with_capacity(SMALL),
        };
        Chunk { bytes, is_large, home: self.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that goes back to its [`Chunks`] when it is dropped.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Vec<u8>,
    is_large: bool,
    home: Chunks,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if !self.is_large {
            return;
        }
        let mut bytes = mem::take(&mut self.bytes);
        let mut state = self.home.state();
        state.large -= 1;
        if state.spare.len() < SPARE {
            bytes.clear();
            state.spare.push(bytes);
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
        assert_eq!(chunks.state().spare.len(), SPARE);
    }

    #[test]
    fn of_many_in_use_the_latest_are_small() {
        let chunks = Chunks::default();
        let mut taken: Vec<_> = (0..1500).map(|_| chunks.take()).collect();
        let size: usize = taken.iter().map(|chunk| chunk.bytes.capacity()).sum();
        assert!(size <= MAX_LARGE * CHUNK + 1500 * SMALL, "{size} bytes");
        drop(taken.remove(0));
        assert_eq!(chunks.take().bytes.capacity(), CHUNK);
        drop(taken);
        let state = chunks.state();
        assert_eq!((state.spare.len(), state.large), (SPARE, 0));
        assert!(state.spare.iter().all(|spare| spare.capacity() == CHUNK));
    }
}
