//! HOST:PORT. Owns: nothing. May not: look a name up.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use netstack::Subnet;

/// A TCP port of an address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    /// Not 0.
    pub port: u16,
}

impl HostPort {
    /// The guest's port that it is, if it is an address of that virtual network.
    pub fn within(&self, subnet: Subnet) -> Option<SocketAddrV4> {
        let ip: Ipv4Addr = self.host.parse().ok()?;
        subnet.contains(ip).then(|| SocketAddrV4::new(ip, self.port))
    }
}

impl From<SocketAddrV4> for HostPort {
    fn from(address: SocketAddrV4) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shown(&self.host, self.port).fmt(f)
    }
}

/// A host and a port as they are written: an address of IPv6 in brackets.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a>(pub(crate) &'a str, pub(crate) u16);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host, port) = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
