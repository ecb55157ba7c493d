//! The daemon's own sockets on the host, which lead to whoever started it: no guest reaches them, by whatever address. Owns: where they are.
//! Read next: `tcp.rs`, which asks before it connects.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// Where the daemon listens, for others than guests.
#[derive(Debug, Default)]
pub(super) struct OwnListeners(Vec<SocketAddr>);

impl OwnListeners {
    pub(super) fn new(all: Vec<SocketAddr>) -> Self {
        Self(all)
    }

    /// Whether a connection to `to` would come to one of them.
    pub(super) fn are_at(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        self.0.iter().any(|own| {
            let own_ip = own.ip().to_canonical();
            own.port() == to.port() && (own_ip == ip || (own_ip.is_unspecified() && is_of_this_host(to)))
        })
    }
}

/// To an address of its own the system's way is from that very address; any other is not asked, as nothing is sent.
fn is_of_this_host(to: SocketAddr) -> bool {
    let ip = to.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let local = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    local.is_ok_and(|local| local.ip().to_canonical() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_whatever_address() {
        let own = |at: &str| OwnListeners::new(vec![at.parse().unwrap()]);
        let are_at = |at: &str, to: &str| own(at).are_at(to.parse().unwrap());
        for (at, to, expected) in [
            ("127.0.0.1:7070", "127.0.0.1:7070", true),
            ("127.0.0.1:7070", "127.0.0.1:7071", false),
            ("127.0.0.1:7070", "127.0.0.2:7070", false),
            ("127.0.0.1:7070", "192.0.2.1:7070", false),
            ("[::1]:7070", "[::1]:7070", true),
            ("0.0.0.0:7070", "127.0.0.1:7070", true),
            ("0.0.0.0:7070", "127.9.9.9:7070", true),
            ("[::]:7070", "127.0.0.1:7070", true),
            ("[::]:7070", "[::1]:7070", true),
            ("0.0.0.0:7070", "192.0.2.1:7070", false),
        ] {
            assert_eq!(are_at(at, to), expected, "{to} at {at}");
        }
    }
}
