//! Addresses that macOS has not. Owns: nothing.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::SockAddr;

use crate::sys::sockets::Passed;

pub(crate) use crate::sys::unix::sockets::{HYPER_V, PROBE, READ_TELLS_REFUSAL, claim_port, protocol, unix};

pub(crate) const DONTWAIT: RecvFlags = RecvFlags::DONTWAIT;

pub(crate) fn abstract_address(_name: &[u8]) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"))
}

/// `SO_ACCEPTCONN` cannot be asked for.
pub(crate) fn is_listening(_socket: &socket2::Socket) -> Option<bool> {
    None
}

pub(crate) fn to_vsock_address(_cid: u32, _port: u32) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "macOS has no vsock"))
}

pub(crate) fn vsock_address(_address: &SockAddr) -> Option<(u32, u32)> {
    None
}

/// There is no systemd.
#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has")]
pub(crate) fn passed() -> io::Result<Vec<Passed>> {
    Ok(Vec::new())
}

/// On Linux, for tests, there is none.
pub(crate) fn activated(name: &str) -> Option<io::Result<Vec<OwnedFd>>> {
    #[cfg(target_os = "macos")]
    {
        Some(launchd::activated(name))
    }
    #[cfg(not(target_os = "macos"))]
    {
        let _ = name;
        None
    }
}

#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "launch_activate_socket")]
mod launchd {
    use std::ffi::{CString, c_char, c_int};
    use std::io;
    use std::os::fd::{FromRawFd as _, OwnedFd};
    use std::ptr;

    unsafe extern "C" {
        /// launch.h; what it returns is an error's number. The list is to be freed.
        fn launch_activate_socket(name: *const c_char, fds: *mut *mut c_int, count: *mut usize) -> c_int;
    }

    pub(super) fn activated(name: &str) -> io::Result<Vec<OwnedFd>> {
        let name = CString::new(name)?;
        let (mut fds, mut count) = (ptr::null_mut(), 0);
        // SAFETY: the name ends with a zero, and the call writes a list and its length.
        let error = unsafe { launch_activate_socket(name.as_ptr(), &raw mut fds, &raw mut count) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the list has so many descriptors, which are this process's now; it is freed once.
        unsafe {
            let owned = (0..count).map(|at| OwnedFd::from_raw_fd(*fds.add(at))).collect();
            libc::free(fds.cast());
            Ok(owned)
        }
    }
}

/// For taps, which macOS has not either.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has sequenced packets between unix sockets"))
}

pub(crate) fn set_user_timeout(_socket: BorrowedFd<'_>, _limit: Option<Duration>) {}
