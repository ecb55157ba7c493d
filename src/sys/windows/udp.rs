//! Datagrams, one in each call. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "WSAIoctl")]

use std::os::windows::io::AsRawSocket;

use mio::net::UdpSocket;
use windows_sys::Win32::Networking::WinSock::{SIO_UDP_CONNRESET, WSAIoctl};

pub(crate) use crate::sys::lacking::udp::{receive, receive_uncut, send_one, send_segments, tell_asked};

/// The system would tell whoever receives next.
pub(crate) fn ignore_refusals(socket: &UdpSocket) {
    ignore_resets(socket);
}

/// `SIO_UDP_CONNRESET`.
pub(super) fn ignore_resets(socket: &impl AsRawSocket) {
    let (no, mut told) = (0_i32, 0_u32);
    // SAFETY: the call reads one int, and writes how many bytes it told.
    unsafe {
        WSAIoctl(
            socket.as_raw_socket() as usize,
            SIO_UDP_CONNRESET,
            (&raw const no).cast(),
            4,
            std::ptr::null_mut(),
            0,
            &raw mut told,
            std::ptr::null_mut(),
            None,
        );
    }
}
