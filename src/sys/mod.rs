//! What differs between operating systems. Owns: all `unsafe`, all `cfg(target_os)`. May not: know of frames
//! or flows.
//!
//! The files here are the face that the rest of the program sees, with its documentation and tests;
//! `linux/`, `macos/` and `windows/` have under the same names what each system does, `unix/` and `lacking/`
//! what two of them do alike.

pub mod datagram;
pub mod event_log;
pub mod files;
pub mod follow;
pub mod icmp;
pub mod interfaces;
#[cfg(not(all(target_os = "linux", not(feature = "sys-macos"))))]
mod lacking;
#[cfg(all(target_os = "linux", not(feature = "sys-macos")))]
mod linux;
#[cfg(all(unix, not(all(target_os = "linux", not(feature = "sys-macos")))))]
mod macos;
pub mod memory;
pub mod mode;
pub mod named_pipe;
pub mod names;
pub mod os_str;
pub mod owner;
pub mod pipe;
pub mod polled;
pub mod signals;
pub mod sockets;
pub mod stdio;
pub mod stream;
pub mod udp;
#[cfg(unix)]
mod unix;
pub mod users;
pub mod watched;
#[cfg(windows)]
mod windows;

use std::sync::atomic::{AtomicBool, Ordering};

use mio::Interest;

#[cfg(all(target_os = "linux", not(feature = "sys-macos")))]
use linux as os;
#[cfg(all(unix, not(all(target_os = "linux", not(feature = "sys-macos")))))]
use macos as os;
#[cfg(windows)]
use windows as os;

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
    os::own_process();
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
    os::process::descriptor_limit()
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
/// package's.
pub fn leave_no_core_dump() {
    if IS_OWN.load(Ordering::Relaxed) {
        os::process::leave_no_core_dump();
    }
}

/// The process that connected a unix socket, or that listens where this one connected, as far as the system
/// tells.
pub fn peer_pid(socket: rustix::fd::BorrowedFd<'_>) -> Option<u32> {
    os::peer_pid(socket)
}

/// For a program that is about to end and has something to say: it is said on the console of who started it,
/// where it has none of its own, as on Windows.
pub fn borrow_console() {
    os::borrow_console();
}

/// Shows a text to who has started a program that has neither a console nor a standard error, where there is
/// somebody to see it: on Windows. Returns when it has been read.
pub fn show_message(title: &str, text: &str) {
    os::show_message(title, text);
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
    os::process::is_withheld(error)
}

/// Whether the process or the system is out of descriptors, ports or memory: a later try may do better.
pub fn is_exhausted(error: &std::io::Error) -> bool {
    os::process::is_exhausted(error)
}

/// Whether a connect of a socket that does not block goes on.
pub fn is_under_way(error: &std::io::Error) -> bool {
    os::process::is_under_way(error)
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
