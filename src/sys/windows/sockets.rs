//! Addresses that Windows has in its own way, or has not. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "setsockopt")]

use std::io;
use std::os::windows::io::{AsRawSocket as _, BorrowedSocket, OwnedSocket, RawSocket};
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use windows_sys::Win32::Networking::WinSock::{SO_EXCLUSIVEADDRUSE, SOL_SOCKET, WSAGetLastError, setsockopt};

use crate::sys::sockets::{Passed, VMADDR_CID_ANY, VMADDR_CID_HOST};

pub(crate) const PROBE: Type = Type::STREAM;

/// SO_REUSEADDR would let another listen at the same port; old connections keep nobody from it here.
pub(crate) fn claim_port(socket: &Socket) -> io::Result<()> {
    claim(socket)
}

pub(super) fn claim(socket: &Socket) -> io::Result<()> {
    set_option(socket.as_raw_socket(), SOL_SOCKET, SO_EXCLUSIVEADDRUSE, 1)
}

/// An option whose value is an int.
pub(crate) fn set_option(socket: RawSocket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let value = value.to_ne_bytes();
    // SAFETY: the call reads the four bytes of the value.
    let done = unsafe { setsockopt(socket as usize, level, name, value.as_ptr(), 4) };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

pub(crate) const DONTWAIT: RecvFlags = RecvFlags::empty();

pub(crate) fn abstract_address(_name: &[u8]) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract sockets"))
}

/// Of the last call of Winsock's.
pub(crate) fn last_error() -> io::Error {
    // SAFETY: it asks the thread's own last error.
    io::Error::from_raw_os_error(unsafe { WSAGetLastError() })
}

/// Since Windows 10 1803, and streams alone.
pub(crate) fn unix(kind: Type) -> io::Result<Socket> {
    let told = |error: io::Error| {
        let why = match kind {
            Type::STREAM => "this Windows has no unix sockets: a named pipe is npipe:////./pipe/NAME",
            _ => "Windows has no unix sockets of datagrams or packets",
        };
        io::Error::new(io::ErrorKind::Unsupported, format!("{why} ({error})"))
    };
    Socket::new(Domain::UNIX, kind, None).map_err(told)
}

/// There is nobody who passes listening sockets.
pub(crate) fn is_listening(_socket: &Socket) -> Option<bool> {
    None
}

pub(crate) const READ_TELLS_REFUSAL: bool = false;

pub(crate) const HYPER_V: bool = true;

/// `AF_HYPERV`, and `HV_PROTOCOL_RAW`.
const FAMILY: u16 = 34;
const RAW: i32 = 1;

/// A port of vsock is the first part of a service's id; this is the rest (`HV_GUID_VSOCK_TEMPLATE`).
const TEMPLATE: [u8; 12] = [0xcb, 0xfa, 0xe6, 0x11, 0xbd, 0x58, 0x64, 0x00, 0x6a, 0x79, 0x86, 0xd3];

/// `SOCKADDR_HV`, in memory as the system has it: the first three parts of an id are numbers.
#[derive(Clone, Copy)]
#[repr(C)]
struct HyperV {
    family: u16,
    reserved: u16,
    machine: [u8; 16],
    port: u32,
    template: [u8; 12],
}

pub(crate) fn protocol(address: &SockAddr) -> Option<Protocol> {
    (address.family() == FAMILY).then(|| Protocol::from(RAW))
}

/// Of any machine: a context has a number only where it is Linux that listens.
pub(crate) fn to_vsock_address(cid: u32, port: u32) -> io::Result<SockAddr> {
    if cid != VMADDR_CID_ANY {
        let why = "a machine of Hyper-V has no number: vsock://GUID is of any machine";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let address = HyperV { family: FAMILY, reserved: 0, machine: [0; 16], port, template: TEMPLATE };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: such an address is smaller than the storage, and its fields have no padding.
    unsafe { *storage.view_as::<HyperV>() = address };
    // SAFETY: so many bytes are one.
    Ok(unsafe { SockAddr::new(storage, size_of::<HyperV>() as i32) })
}

/// A machine's number is made of its id, and is none that is the host's.
pub(crate) fn vsock_address(address: &SockAddr) -> Option<(u32, u32)> {
    if address.family() != FAMILY || (address.len() as usize) < size_of::<HyperV>() {
        return None;
    }
    // SAFETY: the address is so long, and all bytes are one.
    let address = unsafe { address.as_ptr().cast::<HyperV>().read_unaligned() };
    let [a, b, c, d, ..] = address.machine;
    Some((u32::from_le_bytes([a, b, c, d]).clamp(VMADDR_CID_HOST + 1, u32::MAX - 1), address.port))
}

#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has systemd")]
pub(crate) fn passed() -> io::Result<Vec<Passed>> {
    Ok(Vec::new())
}

/// There is no launchd.
pub(crate) fn activated(_name: &str) -> Option<io::Result<Vec<OwnedSocket>>> {
    None
}

pub(crate) fn packet_pair() -> io::Result<(OwnedSocket, OwnedSocket)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has sequenced packets between unix sockets"))
}

pub(crate) fn set_user_timeout(_socket: BorrowedSocket<'_>, _limit: Option<Duration>) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wine has no such sockets: what stands in the address has to do.
    #[test]
    fn a_port_of_vsock_is_a_service_of_hyper_v() {
        let address = to_vsock_address(VMADDR_CID_ANY, 1024).unwrap();
        assert_eq!((address.family(), address.len()), (34, 36));
        // SAFETY: the address is so long.
        let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), 36) };
        // 00000400-FACB-11E6-BD58-64006A7986D3, of any machine.
        let service = [0, 4, 0, 0, 0xcb, 0xfa, 0xe6, 0x11, 0xbd, 0x58, 0x64, 0, 0x6a, 0x79, 0x86, 0xd3];
        assert_eq!(bytes, [&[34, 0, 0, 0][..], &[0; 16], &service].concat());
        assert_eq!(vsock_address(&address), Some((3, 1024)));
        assert!(protocol(&address).is_some() && to_vsock_address(3, 1024).is_err());
        let tcp = SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 80)));
        assert!(vsock_address(&tcp).is_none() && protocol(&tcp).is_none());
    }
}
