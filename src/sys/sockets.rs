//! Addresses that not every system has, and sockets that were opened for this process. Owns: the descriptors
//! that systemd passes, until they are taken. May not: bind. Read next: `../listen.rs`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use socket2::SockAddr;

/// The address of the abstract unix socket `name`: unix(7).
///
/// # Errors
/// The system has none, or the name is longer than 107 bytes.
pub fn abstract_address(name: &[u8]) -> io::Result<SockAddr> {
    if cfg!(not(target_os = "linux")) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"));
    }
    SockAddr::unix(Path::new(OsStr::from_bytes(&[b"\0", name].concat())))
}

/// Whether a socket listens; `None` where the system does not tell.
pub fn is_listening(socket: &socket2::Socket) -> Option<bool> {
    #[cfg(target_os = "linux")]
    return socket.is_listener().ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        None
    }
}

/// A descriptor that systemd passed.
#[derive(Debug)]
pub struct Passed {
    /// At least 3.
    pub number: u32,
    /// `FileDescriptorName=`, by default the unit's name.
    pub name: String,
    /// Closed in children.
    pub fd: OwnedFd,
}

/// What was passed to this process: sd_listen_fds(3). Empty from the second call on.
///
/// # Errors
/// The variables contradict each other, or name a descriptor that is not open.
pub fn passed() -> io::Result<Vec<Passed>> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::FromRawFd as _;
        use std::sync::atomic::{AtomicBool, Ordering};

        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let passed = sd_notify::listen_fds_with_names()?;
        #[expect(unsafe_code, reason = "the environment is all that says whose these descriptors are")]
        let own = |number| {
            // SAFETY: whoever started this process says so with its id in LISTEN_PID, sd-notify has found the
            // descriptor open, and nobody gets it a second time.
            unsafe { OwnedFd::from_raw_fd(number) }
        };
        let passed = passed.map(|(fd, name)| Passed { number: fd.unsigned_abs(), name, fd: own(fd) });
        Ok(passed.collect())
    }
    #[cfg(not(target_os = "linux"))]
    Ok(Vec::new())
}
