//! Pipes through which the kernel moves bytes between two descriptors (splice(2)). Owns: one pipe. Elsewhere
//! than on Linux there are none.

use std::io;

pub use super::os::pipe::{Pipe, SPLICES};

/// Whether the failure says that descriptors of this kind, or any, cannot be spliced at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == io::ErrorKind::Unsupported
        || super::is_withheld(error)
        || matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}
