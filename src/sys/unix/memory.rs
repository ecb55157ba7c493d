//! Pages by mmap(2). Owns: nothing.
// UNSAFETY: pages come from mmap.
#![expect(unsafe_code, reason = "mmap")]

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// New pages of zeros; null where there are none.
pub(crate) fn map(size: usize) -> *mut u8 {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping touches nothing that exists.
    let pages =
        unsafe { mmap_anonymous(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags) };
    pages.map_or(std::ptr::null_mut(), <*mut std::ffi::c_void>::cast)
}

/// # Safety
/// `pointer` came from [`map`] with the same `size`, and nothing uses it any more.
pub(crate) unsafe fn unmap(pointer: *mut u8, size: usize) {
    // SAFETY: the caller's promise. A failure would leave the pages mapped, which harms nobody.
    let _ = unsafe { munmap(pointer.cast(), size) };
}
