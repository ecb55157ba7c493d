//! What `local` means for TCP and UDP: where the host listens, by the rules and in the words of Go's `net.Listen`.
//! Owns: parsing, names, binding. May not: know where it leads. Read next: `registry.rs`.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

use crate::addr::PORT_DIGITS;
use crate::text::reason;

/// Clients that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where to listen, as it was typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Local {
    pub(super) host: Host,
    pub(super) port: u16,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Host {
    /// None: every address of the host.
    Any,
    Address(IpAddr),
    Name(String),
}

/// Where to listen, with the name looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Any(u16),
    At(SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(port) => write!(f, ":{port}"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl Local {
    /// # Errors
    /// What is wrong with it, as Go says it.
    pub(super) fn parse(text: &str, protocol: &str) -> Result<Self, String> {
        // Go takes nothing at all for any address and any port.
        let (host, port) = if text.is_empty() { ("", "") } else { split_host_port(text)? };
        let port = parse_port(port, protocol)?;
        let host = match host.parse::<IpAddr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) if host.is_empty() => Host::Any,
            // The system's resolver would take these for addresses written in an old form.
            Err(_) if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') || host.trim().is_empty() => {
                return Err(format!("lookup {host}: no such host"));
            }
            Err(_) => Host::Name(host.to_owned()),
        };
        Ok(Self { host, port })
    }

    /// Looks the name up, if there is one, and may wait for that.
    ///
    /// # Errors
    /// The name has no address.
    pub(super) async fn resolve(self) -> Result<Place, String> {
        let Host::Name(name) = &self.host else { return self.resolve_at_once() };
        let found = tokio::net::lookup_host((name.as_str(), self.port)).await;
        pick(name, found.map(Iterator::collect))
    }

    /// The same where nothing else is to be done meanwhile.
    ///
    /// # Errors
    /// The name has no address.
    pub(super) fn resolve_at_once(self) -> Result<Place, String> {
        match self.host {
            Host::Any => Ok(Place::Any(self.port)),
            Host::Address(address) => Ok(Place::At(SocketAddr::new(address, self.port))),
            Host::Name(name) => {
                let found = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), self.port));
                pick(&name, found.map(Iterator::collect))
            }
        }
    }
}

/// One address of a name: of IPv4, if it has one.
fn pick(name: &str, found: io::Result<Vec<SocketAddr>>) -> Result<Place, String> {
    let found = found.unwrap_or_default();
    let picked = found.iter().find(|address| address.is_ipv4()).or_else(|| found.first());
    picked.copied().map(Place::At).ok_or_else(|| format!("lookup {name}: no such host"))
}

impl Place {
    /// The port, 0 for any.
    pub(super) fn port(self) -> u16 {
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

    /// Whether sockets at both places could get the same packet.
    pub(super) fn overlaps(self, other: Self) -> bool {
        self.port() == other.port() && (self == other || self.is_wildcard() || other.is_wildcard())
    }

    /// A socket that listens there for TCP.
    ///
    /// # Errors
    /// The call that failed, and why, as Go says it.
    pub(super) fn listen(self) -> Result<std::net::TcpListener, (String, io::Error)> {
        let socket = self.socket(Type::STREAM)?;
        let failed = |call| move |error: io::Error| (text(call, &error), error);
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        Ok(socket.into())
    }

    /// A socket that takes datagrams there.
    ///
    /// # Errors
    /// The call that failed, and why, as Go says it.
    pub(super) fn receive(self) -> Result<std::net::UdpSocket, (String, io::Error)> {
        self.socket(Type::DGRAM).map(Into::into)
    }

    fn socket(self, kind: Type) -> Result<Socket, (String, io::Error)> {
        let address = match self {
            // As in Go every address means those of both families, however it is written.
            place if place.is_wildcard() => match dual_stack(kind) {
                Ok(socket) => return bound(socket, (Ipv6Addr::UNSPECIFIED, place.port()).into()),
                // This host has no IPv6.
                Err(_) => (Ipv4Addr::UNSPECIFIED, place.port()).into(),
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
            socket.set_reuse_address(true)?;
        }
        socket.bind(&address.into())
    };
    bind().map_err(|error| (text("bind", &error), error))?;
    Ok(socket)
}

fn text(call: &str, error: &io::Error) -> String {
    format!("{call}: {}", reason(error))
}

/// Takes `host:port`, `[host]:port` or `:port` apart; neither part is looked at.
///
/// # Errors
/// What is wrong with it, in the words of Go's function of that name.
pub(crate) fn split_host_port(text: &str) -> Result<(&str, &str), String> {
    let wrong = |why: &str| match text {
        "" => Err(why.to_owned()),
        text => Err(format!("address {text}: {why}")),
    };
    let Some((before, port)) = text.rsplit_once(':') else { return wrong("missing port in address") };
    let host = if let Some(bracketed) = text.strip_prefix('[') {
        let Some((host, after)) = bracketed.split_once(']') else {
            return wrong("missing ']' in address");
        };
        match after.strip_prefix(':') {
            Some(rest) if rest.contains(':') => return wrong("too many colons in address"),
            Some(_) => host,
            None => return wrong("missing port in address"),
        }
    } else if before.contains(':') {
        return wrong("too many colons in address");
    } else {
        before
    };
    let is_bracketed = text.starts_with('[');
    if text.get(usize::from(is_bracketed)..).unwrap_or_default().contains('[') {
        return wrong("unexpected '[' in address");
    }
    if text.matches(']').count() > usize::from(is_bracketed) {
        return wrong("unexpected ']' in address");
    }
    Ok((host, port))
}

fn parse_port(port: &str, protocol: &str) -> Result<u16, String> {
    let digits = port.strip_prefix(['+', '-']).unwrap_or(port);
    if digits.is_empty() && port.is_empty() {
        return Ok(0);
    }
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        // COMPAT(gvproxy): the original also knows services by name.
        return Err(format!("lookup {protocol}/{port}: unknown port"));
    }
    match digits.parse::<u16>() {
        Ok(number) if digits.len() <= PORT_DIGITS && (number == 0 || !port.starts_with('-')) => Ok(number),
        _ => Err(format!("address {port}: invalid port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(Host, u16), String> {
        Local::parse(text, "tcp").map(|local| (local.host, local.port))
    }

    /// What the original says, as observed.
    #[test]
    fn what_go_takes() {
        let at = |address: &str| Host::Address(address.parse().unwrap());
        for (text, host, port) in [
            ("", Host::Any, 0),
            (":", Host::Any, 0),
            (":0", Host::Any, 0),
            (":9494", Host::Any, 9494),
            (":09898", Host::Any, 9898),
            ("0.0.0.0:9595", at("0.0.0.0"), 9595),
            ("[::]:9696", at("::"), 9696),
            ("[::1]:9191", at("::1"), 9191),
            ("127.0.0.1:", at("127.0.0.1"), 0),
            ("127.0.0.1:+9393", at("127.0.0.1"), 9393),
            ("[127.0.0.1]:9900", at("127.0.0.1"), 9900),
            ("[::ffff:127.0.0.1]:9902", at("127.0.0.1"), 9902),
            ("localhost:80", Host::Name("localhost".into()), 80),
            ("[fe80::1%lo]:80", Host::Name("fe80::1%lo".into()), 80),
        ] {
            assert_eq!(parse(text), Ok((host, port)), "{text}");
        }
    }

    /// Each number of zeros would be another port, kept as it was written.
    #[test]
    fn leading_zeros_end() {
        assert_eq!(parse(":0000000000000080"), Ok((Host::Any, 80)));
        let text = format!(":{}80", "0".repeat(15));
        assert_eq!(parse(&text), Err(format!("address {}: invalid port", &text[1..])));
    }

    #[test]
    fn what_go_refuses() {
        for (text, why) in [
            ("9090", "address 9090: missing port in address"),
            ("127.0.0.1", "address 127.0.0.1: missing port in address"),
            (":99999", "address 99999: invalid port"),
            (":99999999999999999999", "address 99999999999999999999: invalid port"),
            (":-80", "address -80: invalid port"),
            (":abc", "lookup tcp/abc: unknown port"),
            ("127.0.0.1:1 ", "lookup tcp/1 : unknown port"),
            ("::1:80", "address ::1:80: too many colons in address"),
            ("a:b:c", "address a:b:c: too many colons in address"),
            ("[::1]", "address [::1]: missing port in address"),
            ("[::1", "address [::1: missing ']' in address"),
            ("[::1]x:80", "address [::1]x:80: missing port in address"),
            ("x]:80", "address x]:80: unexpected ']' in address"),
            (" :9797", "lookup  : no such host"),
            ("127.1:80", "lookup 127.1: no such host"),
            ("127.0.0.01:9901", "lookup 127.0.0.01: no such host"),
            ("256.1.1.1:80", "lookup 256.1.1.1: no such host"),
        ] {
            assert_eq!(parse(text), Err(why.into()), "{text}");
        }
    }

    fn place(text: &str) -> Place {
        Local::parse(text, "tcp")
            .and_then(Local::resolve_at_once)
            .unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn every_address_means_both_families() {
        for text in [":0", "0.0.0.0:0", "[::]:0"] {
            let listener = place(text).listen().unwrap();
            let port = listener.local_addr().unwrap().port();
            for client in ["127.0.0.1", "::1"] {
                std::net::TcpStream::connect((client, port))
                    .unwrap_or_else(|error| panic!("{text} from {client}: {error}"));
            }
        }
        let one = place("[::1]:0").listen().unwrap();
        let port = one.local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
        let socket = place("[::]:0").receive().unwrap();
        let port = socket.local_addr().unwrap().port();
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", ("127.0.0.1", port)).unwrap();
        assert_eq!(socket.recv(&mut [0; 9]).unwrap(), 1);
    }

    #[test]
    fn what_the_system_refuses() {
        let (text, error) = place("1.2.3.4:80").listen().unwrap_err();
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
            assert_eq!(place(one).overlaps(place(other)), expected, "{one} {other}");
        }
    }
}
