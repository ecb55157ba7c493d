//! Exposed TCP and UDP ports: bound by the rules and in the words of Go's `net.Listen`.
//! Owns: names, binding. May not: know where a port leads. Read next: `../addr/local.rs`, what can be asked
//! for; `../forward/registry.rs`, which asks.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use super::BACKLOG;
use crate::addr::{Host, Local};
use crate::sys::sockets::claim_port;
use crate::text::reason;

/// Where to bind, with the name looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BindAddress {
    Any(u16),
    At(SocketAddr),
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(f, ":{port}"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// Looks the name up, if there is one, and may wait for that.
///
/// # Errors
/// The name has no address.
pub(crate) async fn resolve(local: Local) -> Result<BindAddress, String> {
    let Host::Name(name) = &local.host else { return resolve_at_once(local) };
    let found = tokio::net::lookup_host((name.as_str(), local.port)).await;
    pick(name, found.map(Iterator::collect))
}

/// The same where nothing else is to be done meanwhile.
///
/// # Errors
/// The name has no address.
pub(crate) fn resolve_at_once(local: Local) -> Result<BindAddress, String> {
    match local.host {
        Host::Any => Ok(BindAddress::Any(local.port)),
        Host::Address(address) => Ok(BindAddress::At(SocketAddr::new(address, local.port))),
        Host::Name(name) => {
            let found = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), local.port));
            pick(&name, found.map(Iterator::collect))
        }
    }
}

/// One address of a name: of IPv4, if it has one.
fn pick(name: &str, found: io::Result<Vec<SocketAddr>>) -> Result<BindAddress, String> {
    let found = found.unwrap_or_default();
    let picked = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    picked.copied().map(BindAddress::At).ok_or_else(|| format!("lookup {name}: no such host"))
}

impl BindAddress {
    /// The port, 0 for any.
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Any(port) => port,
            Self::At(address) => address.port(),
        }
    }

    fn is_wildcard(self) -> bool {
        match self {
            Self::Any(_) => true,
            Self::At(address) => address.ip().is_unspecified(),
        }
    }

    /// Whether sockets at both addresses could get the same packet.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.port() == other.port() && (self == other || self.is_wildcard() || other.is_wildcard())
    }

    /// A socket that listens there for TCP.
    ///
    /// # Errors
    /// The call that failed, and why, as Go says it.
    pub(crate) fn listen(self) -> Result<std::net::TcpListener, (String, io::Error)> {
        let socket = self.socket(Type::STREAM)?;
        let failed = |call| move |error: io::Error| (text(call, &error), error);
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        Ok(socket.into())
    }

    /// A socket that takes datagrams there.
    ///
    /// # Errors
    /// The call that failed, and why, as Go says it.
    pub(crate) fn receive(self) -> Result<std::net::UdpSocket, (String, io::Error)> {
        self.socket(Type::DGRAM).map(Into::into)
    }

    fn socket(self, kind: Type) -> Result<Socket, (String, io::Error)> {
        let address = match self {
            // As in Go every address means those of both families, however it is written.
            address if address.is_wildcard() => match dual_stack(kind) {
                Ok(socket) => return bound(socket, (Ipv6Addr::UNSPECIFIED, address.port()).into()),
                // This host has no IPv6.
                Err(_) => (Ipv4Addr::UNSPECIFIED, address.port()).into(),
            },
            Self::Any(port) => (Ipv4Addr::UNSPECIFIED, port).into(),
            Self::At(address) => address,
        };
        let socket = Socket::new(Domain::for_address(address), kind, None)
            .map_err(|error| (text("socket", &error), error))?;
        if address.is_ipv6() {
            // Left to the system's default otherwise, which differs.
            let _ = socket.set_only_v6(true);
        }
        bound(socket, address)
    }
}

fn dual_stack(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    Ok(socket)
}

fn bound(socket: Socket, address: SocketAddr) -> Result<Socket, (String, io::Error)> {
    let bind = || {
        if socket.r#type()? == Type::STREAM {
            // A port whose old connections are in TIME-WAIT is free.
            claim_port(&socket)?;
        }
        socket.bind(&address.into())
    };
    bind().map_err(|error| (text("bind", &error), error))?;
    Ok(socket)
}

fn text(call: &str, error: &io::Error) -> String {
    format!("{call}: {}", reason(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> BindAddress {
        Local::parse(text, "tcp").and_then(resolve_at_once).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn every_address_means_both_families() {
        for text in [":0", "0.0.0.0:0", "[::]:0"] {
            let listener = address(text).listen().unwrap();
            let port = listener.local_addr().unwrap().port();
            for client in ["127.0.0.1", "::1"] {
                std::net::TcpStream::connect((client, port))
                    .unwrap_or_else(|error| panic!("{text} from {client}: {error}"));
            }
        }
        let one = address("[::1]:0").listen().unwrap();
        let port = one.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
        let socket = address("[::]:0").receive().unwrap();
        let port = socket.local_addr().unwrap().port();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", port)).unwrap();
        assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn what_the_system_refuses() {
        let (text, error) = address("1.2.3.4:80").listen().unwrap_err();
        assert_eq!(text, "bind: cannot assign requested address");
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn overlaps() {
        for (one, other, expected) in [
            (":80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::]:80", true),
            ("127.0.0.1:80", "[::1]:80", false),
            (":80", ":81", false),
        ] {
            assert_eq!(address(one).overlaps(address(other)), expected, "{one} {other}");
        }
    }
}
