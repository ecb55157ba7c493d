//! What glibc's allocator keeps, and pages that go back. Owns: nothing. musl's keeps nothing.
// UNSAFETY: mallopt and its like are glibc's own; madvise takes pages away.
#![expect(unsafe_code, reason = "mallopt, madvise")]

pub(crate) use crate::sys::unix::memory::{map, page_size, unmap};

use rustix::mm::{Advice, madvise};

pub(crate) use allocator::{give_back, keep_freed, kept};

#[cfg(target_env = "gnu")]
mod allocator {
    /// Freed memory at the heap's end that is kept, in bytes: more than the packets of one connection that
    /// are read but not yet written. glibc's own 128 KiB would go back to the system and come again, page by
    /// page, with each batch.
    const KEEP_FREED: libc::c_int = 2 << 20;

    pub(crate) fn keep_freed() {
        // SAFETY: it sets a number, and a refusal changes nothing.
        let _ = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEEP_FREED) };
    }

    pub(crate) fn give_back() {
        // SAFETY: it gives pages back that nothing lies on.
        let _ = unsafe { libc::malloc_trim(0) };
    }

    /// Bytes of freed memory that are kept.
    pub(crate) fn kept() -> usize {
        // SAFETY: it only counts: up to 4 GiB, and then from 0 again. What counts further is in no glibc
        // before 2.33.
        unsafe { libc::mallinfo() }.fordblks.cast_unsigned() as usize
    }
}

#[cfg(not(target_env = "gnu"))]
mod allocator {
    pub(crate) fn keep_freed() {}

    pub(crate) fn give_back() {}

    pub(crate) fn kept() -> usize {
        0
    }
}

/// # Safety
/// Nobody else uses these pages, and what they hold may be lost.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    let _ = unsafe { madvise(start.cast(), len, Advice::LinuxDontNeed) };
}
