//! The memory of rings. Owns: nothing. May not: give any back itself, which takes a system call. The driver
//! does, told by [`crate::Stack::poll_idle_memory`].

use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Where a ring's bytes are, while its `Vec` belongs to smoltcp, which does not let them be reached.
#[derive(Debug)]
pub(crate) struct RingMemory {
    /// Atomic only to be sent between threads; the same provenance as the `Vec`'s own pointer.
    start: AtomicPtr<u8>,
    len: usize,
}

impl RingMemory {
    /// A ring of `len` zeroed bytes.
    pub(crate) fn new(len: usize) -> (Vec<u8>, Self) {
        let mut ring = vec![0; len];
        let start = AtomicPtr::new(ring.as_mut_ptr());
        (ring, Self { start, len })
    }

    /// At which of its bytes these begin, which are some of it.
    pub(crate) fn position(&self, bytes: &[u8]) -> usize {
        bytes.as_ptr().addr().wrapping_sub(self.start.load(Ordering::Relaxed).addr()) % self.len
    }

    /// Those of its bytes as memory that holds nothing. `&mut self` stands for the ring: whoever has it has
    /// the flow, so nobody reads or writes the ring meanwhile.
    pub(crate) fn idle(&mut self, range: Range<usize>) -> Option<IdleMemory<'_>> {
        let end = range.end.min(self.len);
        let start = NonNull::new(self.start.load(Ordering::Relaxed).wrapping_add(range.start.min(end)))?;
        Some(IdleMemory { start, len: end.saturating_sub(range.start), ring: PhantomData })
    }
}

/// Memory of a ring in which there is nothing: its bytes may become anything. It borrows them exclusively as
/// long as it lives.
#[derive(Debug)]
pub struct IdleMemory<'a> {
    start: NonNull<u8>,
    len: usize,
    ring: PhantomData<&'a mut [u8]>,
}

impl IdleMemory<'_> {
    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "what is asked is how much, which may be nothing")]
    pub fn len(&self) -> usize {
        self.len
    }
}
