//! What differs between operating systems. Owns: all `unsafe`, all `cfg(target_os)`. May not: know of frames
//! or flows.
//!
//! The files here are the face that the rest of the program sees, with its documentation and tests; `linux/`
//! and `macos/` have under the same names what each system does.

pub mod datagram;
pub mod files;
pub mod follow;
pub mod interfaces;
#[cfg(all(target_os = "linux", not(feature = "sys-macos")))]
mod linux;
#[cfg(not(all(target_os = "linux", not(feature = "sys-macos"))))]
mod macos;
pub mod memory;
pub mod mode;
pub mod os_str;
pub mod owner;
pub mod pipe;
pub mod polled;
pub mod signals;
pub mod sockets;
pub mod stdio;
pub mod stream;
pub mod udp;
mod unix;
pub mod users;
pub mod watched;

use std::sync::atomic::{AtomicBool, Ordering};

use mio::Interest;

#[cfg(all(target_os = "linux", not(feature = "sys-macos")))]
use linux as os;
#[cfg(not(all(target_os = "linux", not(feature = "sys-macos"))))]
use macos as os;

/// Whether this process is a program of this package's, as [`own_process`] says: else what is the whole
/// process's is left alone.
static IS_OWN: AtomicBool = AtomicBool::new(false);

/// Says that this process is a program of this package's, and takes back what a parent may have left of
/// signals that ends a daemon, or makes it deaf: none is blocked, and those that nobody means are ignored. A
/// write beyond the limit of file sizes then fails (setrlimit(2)), as does not one of a background job to its
/// terminal (termios(3)).
///
/// To be called before there are threads.
pub fn own_process() {
    IS_OWN.store(true, Ordering::Relaxed);
    const IGNORED: [libc::c_int; 9] = [
        libc::SIGXFSZ,
        libc::SIGXCPU,
        libc::SIGTTOU,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
    ];
    #[expect(unsafe_code, reason = "rustix leaves signal handlers to libc")]
    // SAFETY: the set is initialized before it is used, and an ignored signal runs no code.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        for signal in IGNORED.iter().chain(os::IGNORED) {
            libc::signal(*signal, libc::SIG_IGN);
        }
    }
}

/// Prepares the process: as many descriptors as the system allows, since each flow is one, and memory as it
/// is used here.
///
/// A refusal is no failure: the daemon then serves fewer flows, or slower.
pub fn prepare_process() {
    memory::keep_freed();
    if let Err(error) = os::raise_descriptor_limit() {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    os::prepare_process();
}

/// How many descriptors the process may have open.
pub fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// That part of [`descriptor_limit`]: one, and `most` at most.
pub fn descriptor_share(part: usize, most: usize) -> usize {
    (descriptor_limit() / part).clamp(1, most)
}

/// Whether an event can tell of urgent data on a stream. Only then does a read of less than asked for mean
/// that there is no more: it also ends at urgent data, and what is behind that brings no event of its own.
pub const TELLS_URGENT: bool = os::TELLS_URGENT;

/// `interest`, and urgent data, where an event can tell of that.
pub fn with_urgent(interest: Interest) -> Interest {
    os::with_urgent(interest)
}

/// From now on the process leaves no core dump, in which keys could be read, if it is a program of this
/// package's. Linux takes a limit of one byte as that also where dumps go to a program, as systemd-coredump
/// (core(5)).
pub fn leave_no_core_dump() {
    if IS_OWN.load(Ordering::Relaxed) {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let before = getrlimit(Resource::Core);
        // Where none was allowed it is none: to write a file. A smaller limit than before is always allowed.
        let current = before.maximum.map_or(1, |maximum| maximum.min(1));
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(current), ..before });
    }
}

/// The process that connected a unix socket, or that listens where this one connected, as far as the system
/// tells.
pub fn peer_pid(socket: rustix::fd::BorrowedFd<'_>) -> Option<u32> {
    os::peer_pid(socket)
}

/// Lets a pipe hold `bytes`, where the system can; a refusal leaves it as it is.
pub fn grow_pipe(pipe: rustix::fd::BorrowedFd<'_>, bytes: usize) {
    os::grow_pipe(pipe, bytes);
}

/// Bytes that a stream socket was given and its peer's system has not yet taken; `None` where the system does
/// not tell.
pub fn unsent(socket: rustix::fd::BorrowedFd<'_>) -> Option<usize> {
    os::unsent(socket)
}

/// Whether a stream is vsock's.
pub fn is_vsock(socket: rustix::fd::BorrowedFd<'_>) -> bool {
    os::is_vsock(socket)
}

/// Whether a vsock stream is closed both ways by its peer, or one way by each. vsock tells EPOLLHUP only once
/// this side has shut down as well, and no event at all where its buffers were full, either way, when the
/// peer closed.
pub fn vsock_hung_up(socket: rustix::fd::BorrowedFd<'_>) -> bool {
    os::vsock_hung_up(socket)
}

/// Whether the system has no such call, or a filter keeps it from this process, as a container's does
/// (seccomp(2)).
pub fn is_withheld(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOSYS | Errno::PERM | Errno::ACCESS))
}

/// Unpredictable bits, for sequence numbers and hash tables.
///
/// # Errors
/// The system has no source of randomness.
pub fn random_seed() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from).or_else(|error| {
        use std::io::Read as _;
        if !is_withheld(&error) {
            return Err(error);
        }
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)
    })?;
    Ok(u128::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_core_dump_is_left_by_a_program_of_ours() {
        use rustix::process::{Resource, getrlimit};
        let before = getrlimit(Resource::Core);
        super::leave_no_core_dump();
        assert_eq!(getrlimit(Resource::Core), before, "another program's process is left alone");
        super::IS_OWN.store(true, std::sync::atomic::Ordering::Relaxed);
        super::leave_no_core_dump();
        // Less than any dump, and what tells Linux to start no program for one.
        assert!(getrlimit(Resource::Core).current.is_some_and(|limit| limit <= 1));
    }
}
