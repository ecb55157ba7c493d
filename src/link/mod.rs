//! Links to hypervisors: bytes to frames and back, batched, and nothing else. Owns: one buffer each way.
//! May not: look into a frame. Read next: `qemu.rs`; `engine/mod.rs`, which drives them.

mod qemu;

pub use qemu::{Batch, FrameTooLong, Progress, Reader};

/// Longest frame taken from a hypervisor, in bytes. Far above any MTU, since some deliver segments that were never cut.
pub const MAX_FRAME: usize = 131_072;
