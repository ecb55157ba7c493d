//! Memory that goes back to the system. Owns: nothing.
// UNSAFETY: the allocator's own calls; new pages in place of others.
#![expect(unsafe_code, reason = "malloc_zone_pressure_relief, mmap")]

pub(crate) use crate::sys::unix::memory::{map, page_size, unmap};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

#[cfg(target_os = "macos")]
unsafe extern "C" {
    /// malloc/malloc.h; of all zones where `zone` is null. What it returns is how much it gave back.
    fn malloc_zone_pressure_relief(zone: *mut libc::malloc_zone_t, goal: libc::size_t) -> libc::size_t;
}

/// The allocator keeps what it likes.
pub(crate) fn keep_freed() {}

pub(crate) fn give_back() {
    #[cfg(target_os = "macos")]
    // SAFETY: it gives pages back that nothing lies on.
    unsafe {
        malloc_zone_pressure_relief(std::ptr::null_mut(), 0);
    }
}

/// Bytes of freed memory that are kept.
pub(crate) fn kept() -> usize {
    #[cfg(target_os = "macos")]
    {
        let mut told = std::mem::MaybeUninit::<libc::malloc_statistics_t>::zeroed();
        // SAFETY: the call only counts, in all zones, and writes to where it is told; all zeros are such
        // figures, too.
        let told = unsafe {
            libc::malloc_zone_statistics(std::ptr::null_mut(), told.as_mut_ptr());
            told.assume_init()
        };
        told.size_allocated.saturating_sub(told.size_in_use)
    }
    #[cfg(not(target_os = "macos"))]
    0
}

/// New pages in their place: madvise(2) has only what takes them when there are few.
///
/// # Safety
/// Nobody else uses these pages, and what they hold may be lost.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the caller's promise. A refusal leaves the pages as they are.
    let _ = unsafe { mmap_anonymous(start.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags) };
}
