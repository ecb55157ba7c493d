//! Pages by VirtualAlloc. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "VirtualAlloc")]

use windows_sys::Win32::System::Memory::{
    DiscardVirtualMemory, MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
};

/// That of every processor that Rust builds for here.
pub(crate) fn page_size() -> usize {
    4096
}

/// New pages of zeros; null where there are none.
pub(crate) fn map(size: usize) -> *mut u8 {
    // SAFETY: new pages touch nothing that exists.
    unsafe { VirtualAlloc(std::ptr::null(), size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE).cast() }
}

/// # Safety
/// `pointer` came from [`map`], and nothing uses it any more.
pub(crate) unsafe fn unmap(pointer: *mut u8, _size: usize) {
    // SAFETY: the caller's promise. A failure would leave the pages, which harms nobody.
    unsafe { VirtualFree(pointer.cast(), 0, MEM_RELEASE) };
}

/// The allocator keeps what it likes.
pub(crate) fn keep_freed() {}

pub(crate) fn give_back() {}

/// Bytes of freed memory that are kept: it does not tell.
pub(crate) fn kept() -> usize {
    0
}

/// # Safety
/// Nobody else uses these pages, and what they hold may be lost.
pub(crate) unsafe fn discard(start: *mut u8, len: usize) {
    // SAFETY: the caller's promise. A refusal leaves the pages as they are.
    unsafe { DiscardVirtualMemory(start.cast(), len) };
}
