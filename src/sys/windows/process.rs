//! What a process may have here. Owns: nothing.

/// Sockets are handles, of which a process may have millions: as many as on a large Linux.
pub(crate) fn descriptor_limit() -> usize {
    1 << 16
}

/// Dumps are written only where somebody has asked for them.
pub(crate) fn leave_no_core_dump() {}

pub(crate) fn is_withheld(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::Unsupported)
}

pub(crate) fn is_exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    error.kind() == std::io::ErrorKind::OutOfMemory
        || matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NOBUFS | Errno::ADDRNOTAVAIL))
}

pub(crate) fn is_under_way(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock
}
