//! Memory of the rings: an allocator that gives large buffers pages of their own, and the way to give pages
//! back.
//! Owns: nothing. Read next: `netstack/src/buffer.rs`.
//!
//! A flow's ring is large and mostly empty. As pages of its own it costs what was written to it, and goes
//! back to the system when the flow ends; the system's allocator would zero it, keep it, and put a header on
//! its first page.
// UNSAFETY: `GlobalAlloc` is an unsafe trait, and pages come from mmap.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use netstack::IdleMemory;

use super::os;

/// Allocations of at least this many bytes get pages of their own.
const LARGE: usize = 64 << 10;

/// Freed memory that is worth looking for, in bytes.
const MUCH_KEPT: usize = 16 << 20;

/// Pages for large buffers, the system's allocator for the rest.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

// SAFETY: every layout goes to the same of the two allocators in each method, and both follow the trait's
// contract. mmap returns zeroed pages, aligned to more than any layout that `is_paged` lets through.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_paged(layout) {
            return os::memory::map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_paged(layout) {
            return os::memory::map(layout.size());
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if is_paged(layout) {
            // SAFETY: `map` made these pages, with this size.
            return unsafe { os::memory::unmap(pointer, layout.size()) };
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn is_paged(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= 4096
}

/// Makes the system's allocator keep a little of what is freed.
pub(super) fn keep_freed() {
    os::memory::keep_freed();
}

/// What was kept when it was given back last, or less since. Its addresses still count as free.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// Gives back to the system what its allocator keeps of what was freed, wherever that lies: to be called
/// after peaks, as it looks at all of it.
pub fn give_back() {
    os::memory::give_back();
    BEFORE.store(os::memory::kept(), Ordering::Relaxed);
}

/// The same, if it is much more than when it was given back last. What came and went since then is not seen.
pub fn give_back_much() {
    let kept = os::memory::kept();
    let before = BEFORE.fetch_min(kept, Ordering::Relaxed);
    if kept > before + MUCH_KEPT {
        give_back();
    }
}

/// Gives the pages of an empty ring back to the system; what they hold from now on is not said, and they cost
/// nothing until they are written. Only pages that lie in it whole.
pub fn discard(memory: IdleMemory<'_>) {
    let page = os::memory::page_size();
    let start = memory.start().as_ptr();
    let skip = start.align_offset(page);
    let len = memory.len().saturating_sub(skip) / page * page;
    if len > 0 {
        // SAFETY: an `IdleMemory` is an exclusive borrow of bytes that may become anything, and these are
        // among them.
        unsafe { os::memory::discard(start.wrapping_add(skip), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_zeroed_pages() {
        let layout = Layout::from_size_align(LARGE, 1).unwrap();
        // SAFETY: used as the trait asks for.
        unsafe {
            let pointer = Allocator.alloc_zeroed(layout);
            assert_eq!(pointer.addr() % 4096, 0);
            let bytes = std::slice::from_raw_parts_mut(pointer, LARGE);
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(1);
            Allocator.dealloc(pointer, layout);
        }
    }
}
