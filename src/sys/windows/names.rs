//! The servers of the adapters that are up, those of the least metric first. Owns: nothing.
// UNSAFETY: windows-sys is the system's own calls.
#![expect(unsafe_code, reason = "GetAdaptersAddresses")]

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use windows_sys::Win32::Foundation::{ERROR_BUFFER_OVERFLOW, NO_ERROR};
use windows_sys::Win32::NetworkManagement::IpHelper::{
    GAA_FLAG_SKIP_ANYCAST, GAA_FLAG_SKIP_FRIENDLY_NAME, GAA_FLAG_SKIP_MULTICAST, GetAdaptersAddresses,
    IP_ADAPTER_ADDRESSES_LH,
};
use windows_sys::Win32::NetworkManagement::Ndis::IfOperStatusUp;
use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, AF_UNSPEC, SOCKADDR_IN, SOCKADDR_IN6, SOCKET_ADDRESS,
};

/// Bytes that the first call offers; and how often the list may have grown in the meantime.
const ROOM: usize = 16 << 10;
const ATTEMPTS: usize = 4;

pub(crate) fn resolv_conf() -> Option<PathBuf> {
    None
}

pub(crate) fn hosts() -> PathBuf {
    let root = std::env::var_os("SystemRoot").unwrap_or_else(|| OsString::from(r"C:\Windows"));
    Path::new(&root).join(r"System32\drivers\etc\hosts")
}

pub(crate) fn resolvers() -> io::Result<String> {
    let mut found = adapters()?;
    found.sort_by_key(|(metric, _)| *metric);
    let mut text = String::new();
    for server in found.into_iter().flat_map(|(_, servers)| servers) {
        let line = format!("nameserver {server}\n");
        if !text.contains(&line) {
            text.push_str(&line);
        }
    }
    Ok(text)
}

/// The metric and the servers of each that is up.
fn adapters() -> io::Result<Vec<(u32, Vec<IpAddr>)>> {
    let flags = GAA_FLAG_SKIP_ANYCAST | GAA_FLAG_SKIP_MULTICAST | GAA_FLAG_SKIP_FRIENDLY_NAME;
    let mut room = ROOM;
    for _ in 0..ATTEMPTS {
        // Aligned for what is written there.
        let mut list = vec![0_u64; room.div_ceil(8)];
        let first = list.as_mut_ptr().cast::<IP_ADAPTER_ADDRESSES_LH>();
        let mut size = u32::try_from(room).unwrap_or(u32::MAX);
        // SAFETY: the call writes at most `size` bytes to the list, and says how many it needs.
        let done =
            unsafe { GetAdaptersAddresses(AF_UNSPEC.into(), flags, std::ptr::null(), first, &raw mut size) };
        match done {
            // SAFETY: the list was filled, and outlives what is read of it here.
            NO_ERROR => return Ok(unsafe { read(first) }),
            ERROR_BUFFER_OVERFLOW => room = size as usize,
            error => return Err(io::Error::from_raw_os_error(error.cast_signed())),
        }
    }
    Err(io::Error::other("the list of adapters grows and grows"))
}

/// # Safety
/// `next` is null, or the head of a list that the system has filled.
unsafe fn read(mut next: *const IP_ADAPTER_ADDRESSES_LH) -> Vec<(u32, Vec<IpAddr>)> {
    let mut found = Vec::new();
    // SAFETY: the caller's promise: all that is pointed to lies in the list.
    while let Some(adapter) = unsafe { next.as_ref() } {
        next = adapter.Next;
        if adapter.OperStatus != IfOperStatusUp {
            continue;
        }
        let mut servers = Vec::new();
        let mut at = adapter.FirstDnsServerAddress;
        // SAFETY: likewise.
        while let Some(server) = unsafe { at.as_ref() } {
            at = server.Next;
            // SAFETY: likewise.
            servers.extend(unsafe { address(&server.Address) }.filter(is_server));
        }
        if !servers.is_empty() {
            found.push((adapter.Ipv4Metric.min(adapter.Ipv6Metric), servers));
        }
    }
    found
}

/// # Safety
/// The address is one that the system has filled.
unsafe fn address(of: &SOCKET_ADDRESS) -> Option<IpAddr> {
    // SAFETY: the caller's promise; the family says which of the two it is.
    unsafe {
        match of.lpSockaddr.as_ref()?.sa_family {
            AF_INET => {
                let v4 = of.lpSockaddr.cast::<SOCKADDR_IN>().as_ref()?;
                Some(Ipv4Addr::from(v4.sin_addr.S_un.S_addr.to_ne_bytes()).into())
            }
            AF_INET6 => {
                let v6 = of.lpSockaddr.cast::<SOCKADDR_IN6>().as_ref()?;
                Some(Ipv6Addr::from(v6.sin6_addr.u.Byte).into())
            }
            _ => None,
        }
    }
}

/// Windows names servers at fec0:0:0:ffff::1 to 3 where an adapter has none, and nobody is there (RFC 3879).
fn is_server(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified(),
        // Of a link's own address the text would have to say the link.
        IpAddr::V6(v6) => {
            v6.segments()[0] & 0xffc0 != 0xfec0 && !v6.is_unicast_link_local() && !v6.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_can_be_there() {
        for (text, is) in [
            ("192.0.2.1", true),
            ("0.0.0.0", false),
            ("fec0:0:0:ffff::1", false),
            ("fe80::1", false),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_server(&text.parse().unwrap()), is, "{text}");
        }
    }

    #[test]
    fn the_system_tells() {
        for line in resolvers().unwrap().lines() {
            let server = line.strip_prefix("nameserver ").unwrap();
            assert!(server.parse::<IpAddr>().is_ok(), "{line}");
        }
        assert!(hosts().ends_with("hosts"));
    }
}
