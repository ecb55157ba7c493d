//! Many messages in one system call: recvmmsg(2) and sendmmsg(2), or one by one where the system keeps these
//! from the process.
//! Owns: whether it does. Read next: `udp.rs` and `datagram.rs`, which lay the messages out.
// UNSAFETY: no crate wraps these calls for borrowed buffers.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg")]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::is_withheld;

static RECEIVES_ONE: AtomicBool = AtomicBool::new(false);
static SENDS_ONE: AtomicBool = AtomicBool::new(false);

/// Receives into `messages`, without waiting, and says how many there were.
///
/// # Errors
/// The socket's.
///
/// # Safety
/// Each message's pointers are to memory that may be written, as long as it says.
pub(super) unsafe fn receive(socket: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    let many = |messages: &mut [libc::mmsghdr]| {
        let (first, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
        // SAFETY: the caller's promise.
        unsafe {
            libc::recvmmsg(socket, first, count, libc::MSG_DONTWAIT as _, std::ptr::null_mut()) as isize
        }
    };
    let one = |message: &mut libc::mmsghdr| {
        // SAFETY: the caller's promise.
        unsafe { libc::recvmsg(socket, &raw mut message.msg_hdr, libc::MSG_DONTWAIT) }
    };
    call(&RECEIVES_ONE, messages, many, one)
}

/// Sends `messages`, without waiting, and says how many were taken.
///
/// # Errors
/// The socket's, about the first one.
///
/// # Safety
/// Each message's pointers are to memory that may be read, as long as it says.
pub(super) unsafe fn send(socket: RawFd, messages: &mut [libc::mmsghdr]) -> io::Result<usize> {
    const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let many = |messages: &mut [libc::mmsghdr]| {
        let (first, count) = (messages.as_mut_ptr(), messages.len() as libc::c_uint);
        // SAFETY: the caller's promise.
        unsafe { libc::sendmmsg(socket, first, count, FLAGS as _) as isize }
    };
    let one = |message: &mut libc::mmsghdr| {
        // SAFETY: the caller's promise.
        unsafe { libc::sendmsg(socket, &raw const message.msg_hdr, FLAGS) }
    };
    call(&SENDS_ONE, messages, many, one)
}

fn call(
    only_one: &AtomicBool,
    messages: &mut [libc::mmsghdr],
    many: impl Fn(&mut [libc::mmsghdr]) -> isize,
    one: impl Fn(&mut libc::mmsghdr) -> isize,
) -> io::Result<usize> {
    let result = |returned| usize::try_from(returned).map_err(|_| io::Error::last_os_error());
    if !only_one.load(Ordering::Relaxed) {
        match result(many(messages)) {
            Err(error) if is_withheld(&error) => {}
            done => return done,
        }
    }
    let mut count = 0;
    for message in messages {
        match result(one(message)) {
            Ok(len) => message.msg_len = len.try_into().unwrap_or(libc::c_uint::MAX),
            // The socket may say the same.
            Err(error) if count == 0 && is_withheld(&error) => return Err(error),
            Err(error) if count == 0 => {
                only_one.store(true, Ordering::Relaxed);
                return Err(error);
            }
            Err(_) => break,
        }
        count += 1;
    }
    only_one.store(true, Ordering::Relaxed);
    Ok(count)
}
