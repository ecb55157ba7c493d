//! The daemon's own sockets on the host, which lead to whoever started it: no guest reaches them, by whatever
//! address. Owns: where they are.
//! Read next: `tcp.rs`, which asks before it connects.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::listen::TcpAddress;

/// Where the daemon listens, for others than guests.
#[derive(Debug, Default)]
pub(super) struct OwnListeners(Vec<TcpAddress>);

impl OwnListeners {
    pub(super) fn new(all: Vec<TcpAddress>) -> Self {
        Self(all)
    }

    /// Whether a connection to `to` would come to one of them.
    pub(super) fn are_at(&self, to: SocketAddr) -> bool {
        let mut near = self.0.iter().filter(|own| own.port() == to.port()).peekable();
        near.peek().is_some() && source_address(to).is_ok_and(|from| near.any(|own| own.takes(from, to)))
    }
}

/// The address that the system connects to `to` from. Nothing is sent for it.
fn source_address(to: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use std::net::TcpListener;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn by_whatever_address() {
        for (at, ip, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "192.0.2.1", false),
            ("::1", "::1", true),
            ("::1", "127.0.0.1", false),
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "127.9.9.9", true),
            ("::", "127.0.0.1", true),
            ("::", "::1", true),
            ("0.0.0.0", "192.0.2.1", false),
        ] {
            let (at, ip): (IpAddr, IpAddr) = (at.parse().unwrap(), ip.parse().unwrap());
            let listener = TcpListener::bind((at, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let own = OwnListeners::new(vec![TcpAddress::of(SockRef::from(&listener)).unwrap()]);
            assert_eq!(own.are_at((ip, port).into()), expected, "{ip} at {at}");
            assert!(!own.are_at((ip, port ^ 1).into()), "{ip} at {at}, another port");
        }
    }
}
