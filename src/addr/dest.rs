//! Where a forward leads: what the URLs of `-forward-dest`, and of `remote` where a socket is exposed, mean.
//! Mostly in the original's words.
//! Owns: nothing. May not: know whether anybody is there. Read next: `../forward/mod.rs`, which leads clients
//! there.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use netstack::Subnet;

use super::url::{Authority, Url, unescape};
use super::{HostPort, Secret, ensure_guest_path};
use crate::text::quote;

/// The guest's sshd, where the URL has no port.
pub(crate) const SSH_PORT: u16 = 22;

/// Where the clients of a socket of the host are led.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Dest {
    /// A unix socket of a guest, over SSH.
    Ssh(SshDest),
    /// A unix socket of a guest, by way of its agent.
    Agent {
        /// The guest and the agent's port; without one, those of the configuration.
        guest: Option<Ipv4Addr>,
        /// In TCP.
        port: Option<u16>,
        /// Absolute.
        path: String,
    },
    /// A TCP port: of a guest, where the address is one of the virtual network, else of whoever the host
    /// reaches there.
    Tcp(HostPort),
    /// A vsock port of a virtual machine (vsock(7)).
    Vsock {
        /// The machine.
        cid: u32,
        /// In vsock's own number space.
        port: u32,
    },
    /// The same, where the VMM listens at a unix socket for it; see `vsock.rs`.
    HybridVsock {
        /// The VMM's socket.
        socket: PathBuf,
        /// In vsock's own number space.
        port: u32,
    },
    /// A unix socket of the host.
    Unix(PathBuf),
}

/// A unix socket behind an sshd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SshDest {
    /// The sshd, found as that of [`Dest::Tcp`] is.
    pub sshd: HostPort,
    /// Who logs in.
    pub user: String,
    /// The socket there.
    pub path: String,
    /// The private key's file. Always there when clients are led.
    pub key: Option<PathBuf>,
    /// What the key is protected with.
    pub passphrase: Option<Secret>,
    /// What is tried where the key is not taken.
    pub password: Option<Secret>,
    /// Whether the sshd's own key is to be the known one, if one is known (`~/.ssh/known_hosts`).
    pub secure: bool,
}

impl SshDest {
    /// The sshd of the guest with the lease `ip`, whose key of its own is new with each machine. No key yet
    /// to log in with.
    pub(crate) fn of_guest(ip: Ipv4Addr, user: String, path: String) -> Self {
        let sshd = HostPort { host: ip.to_string(), port: SSH_PORT };
        Self { sshd, user, path, key: None, passphrase: None, password: None, secure: false }
    }
}

impl Dest {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = |why: String| format!("failed to parse remote uri :{text} : {why}");
        let refused_as = |why: &str| refused(format!("parse {}: {why}", quote(text)));
        if text.bytes().any(|b| b.is_ascii_control()) {
            return Err(refused_as("net/url: invalid control character in URL"));
        }
        let url = Url::parse(text.as_ref()).map_err(|error| refused(error.to_string()))?;
        let refused = refused_as;
        let first = text.split(['/', '?', '#']).next().unwrap_or_default();
        if url.scheme.is_empty() && first.contains(':') {
            return Err(refused("first path segment in URL cannot contain colon"));
        }
        let at = url.authority().map_err(|error| error.to_string())?;
        let port = at.port.unwrap_or_default();
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refused(&format!("invalid port {} after host", quote(format!(":{port}")))));
        }
        match url.scheme.as_str() {
            "tcp" => host_port(at, None).map(Self::Tcp),
            "ssh" | "ssh-tunnel" => ssh(&url, at).map(Self::Ssh),
            "vsock" => {
                let port = number(port, "port")?;
                Ok(Self::Vsock { cid: number(at.host, "context (CID)")?, port })
            }
            "unix" => unix(url),
            "agent" => agent(&url, at),
            other => Err(format!("remote protocol for unix forwarder is not implemented: {other}")),
        }
    }

    /// Whether it is in that virtual network.
    pub(crate) fn is_guests(&self, subnet: Subnet) -> bool {
        match self {
            Self::Agent { .. } => true,
            Self::Ssh(SshDest { sshd: at, .. }) | Self::Tcp(at) => at.within(subnet).is_some(),
            Self::Vsock { .. } | Self::HybridVsock { .. } | Self::Unix(_) => false,
        }
    }

    /// A path without a URL around it: a socket of the guest behind the agent.
    ///
    /// # Errors
    /// No agent could have such a path.
    pub(crate) fn of_agent(path: &str) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err("not an absolute path, which it is without -forward-user".into());
        }
        Ok(Self::Agent { guest: None, port: None, path: agent_path(path.to_owned())? })
    }
}

/// Where it leads, as its URL without secrets.
impl fmt::Display for Dest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh(SshDest { sshd, user, path, .. }) => write!(f, "ssh://{user}@{sshd}{path}"),
            Self::Agent { guest: Some(guest), port: Some(port), path } => {
                write!(f, "agent://{guest}:{port}{path}")
            }
            Self::Agent { guest: Some(guest), port: None, path } => write!(f, "agent://{guest}{path}"),
            Self::Agent { path, .. } => write!(f, "agent://{path}"),
            Self::Tcp(place) => write!(f, "tcp://{place}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::HybridVsock { socket, port } => write!(f, "unix://{}?port={port}", socket.display()),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

fn agent_path(path: String) -> Result<String, String> {
    ensure_guest_path(path.as_bytes())?;
    Ok(path)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn number(text: &str, what: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("invalid {what} {}, want vsock://CID:PORT", quote(text)))
}

/// Digits of a port that are read, leading zeros among them: what is exposed is kept as it was written.
pub(crate) const PORT_DIGITS: usize = 16;

/// As Go's `strconv.ParseUint` does, and says.
pub(crate) fn parse_port(text: &str) -> Result<u16, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("strconv.ParseUint: parsing {}: invalid syntax", quote(text)));
    }
    let number = text.parse().ok().filter(|_| text.len() <= PORT_DIGITS);
    number.ok_or_else(|| format!("strconv.ParseUint: parsing {}: value out of range", quote(text)))
}

/// Host and port; without a `default` there must be a port.
fn host_port(of: Authority<'_>, default: Option<u16>) -> Result<HostPort, String> {
    let port = match (default, of.port) {
        (Some(default), None | Some("")) => default,
        (_, port) => parse_port(port.unwrap_or_default())?,
    };
    let host = of.bare_host();
    if host.is_empty() || host.contains(['[', ']', ' ']) {
        return Err(format!("invalid remote addr: no host in {}", quote(of.host)));
    }
    Ok(HostPort { host: decoded(host)?, port })
}

fn ssh(url: &Url, at: Authority<'_>) -> Result<SshDest, String> {
    let value = |key: &str| url.parameter(key).map_err(|error| error.to_string());
    let key = value("key")?.filter(|key| !key.is_empty());
    if key.is_none() && url.scheme == "ssh-tunnel" {
        return Err("key not provided for unix-ssh connection".into());
    }
    if url.path.is_empty() || url.path == *"/" {
        return Err("remote uri must contain a path to a socket file".into());
    }
    if at.user.is_empty() && url.scheme == "ssh" {
        return Err("no user, want ssh://user@host:port/path".into());
    }
    Ok(SshDest {
        sshd: host_port(at, Some(SSH_PORT))?,
        user: decoded(at.user)?,
        key: key.map(PathBuf::from),
        passphrase: value("passphrase")?.filter(|text| !text.is_empty()).map(Secret),
        password: at.password.map(decoded).transpose()?.map(Secret),
        secure: match value("secure")? {
            // What Go's `strconv.ParseBool` takes for true.
            Some(value) => matches!(&*value, "1" | "t" | "T" | "true" | "True" | "TRUE"),
            // A machine on this host, or in the virtual network, has a new key with each start from scratch,
            // and nobody is between.
            None => url.scheme == "ssh" && !is_loopback(at.bare_host()),
        },
        path: utf8_path(url)?,
    })
}

fn unix(url: Url) -> Result<Dest, String> {
    let query = quote(url.query());
    let port = match url.parameter("port").map_err(|error| error.to_string())? {
        None if !url.query().is_empty() => {
            return Err(format!("unknown query {query}: there is only port=N, of a VMM's vsock"));
        }
        None => None,
        Some(port) => {
            let wrong = |_| format!("invalid port {}, want unix:///vm.sock?port=N", quote(&port));
            Some(port.parse().map_err(wrong)?)
        }
    };
    let path = url.into_socket_path().map_err(|error| error.to_string())?;
    Ok(match port {
        Some(port) => Dest::HybridVsock { socket: path, port },
        None => Dest::Unix(path),
    })
}

fn agent(url: &Url, at: Authority<'_>) -> Result<Dest, String> {
    if url.path.is_empty() || url.path == *"/" {
        return Err("no path of a socket in the guest, want agent:///path".into());
    }
    let guest = Some(at.host).filter(|host| !host.is_empty());
    let guest = guest.map(|host| {
        host.parse().map_err(|_| format!("invalid remote addr: {} is not an IPv4 address", quote(host)))
    });
    let port = at.port.filter(|port| !port.is_empty()).map(parse_port);
    let (guest, port) = (guest.transpose()?, port.transpose()?);
    Ok(Dest::Agent { guest, port, path: agent_path(utf8_path(url)?)? })
}

fn utf8_path(url: &Url) -> Result<String, String> {
    let path =
        url.path.to_str().ok_or_else(|| format!("not UTF-8: {}", quote(url.path.as_encoded_bytes())))?;
    Ok(path.to_owned())
}

/// A part of a URL's authority without its percent escapes.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("invalid URL escape in {}", quote(text));
    unescape(text.as_bytes()).ok().and_then(|text| text.into_string().ok()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(host: &str, port: u16) -> HostPort {
        HostPort { host: host.into(), port }
    }

    #[test]
    fn tcp() {
        for (text, host, port) in [
            ("tcp://192.168.127.2:80", "192.168.127.2", 80),
            ("TCP://192.168.127.2:80", "192.168.127.2", 80),
            ("tcp://u@192.168.127.2:80/p?x=1", "192.168.127.2", 80),
            ("tcp://localhost:65535", "localhost", 65_535),
            ("tcp://[::1]:80", "::1", 80),
        ] {
            assert_eq!(Dest::parse(text), Ok(Dest::Tcp(place(host, port))), "{text}");
        }
    }

    /// What the original says, as observed, where it says something.
    #[test]
    fn what_is_no_way_in() {
        for (text, why) in [
            ("tcp://192.168.127.2", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("tcp:192.168.127.2:80", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("tcp://192.168.127.2:99999", r#"strconv.ParseUint: parsing "99999": value out of range"#),
            ("tcp://:80", r#"invalid remote addr: no host in """#),
            ("udp://192.168.127.2:80", "remote protocol for unix forwarder is not implemented: udp"),
            ("", "remote protocol for unix forwarder is not implemented: "),
            ("/run/x", "remote protocol for unix forwarder is not implemented: "),
            (
                "192.168.127.2:80",
                "failed to parse remote uri :192.168.127.2:80 : parse \"192.168.127.2:80\": \
                 first path segment in URL cannot contain colon",
            ),
            (
                "tcp://192.168.127.2:abc",
                "failed to parse remote uri :tcp://192.168.127.2:abc : parse \"tcp://192.168.127.2:abc\": \
                 invalid port \":abc\" after host",
            ),
            ("ssh-tunnel://root@192.168.127.2:22/run/x", "key not provided for unix-ssh connection"),
            ("ssh-tunnel://root@192.168.127.2:22/run/x?key=", "key not provided for unix-ssh connection"),
            ("ssh-tunnel://root@192.168.127.2/?key=/k", "remote uri must contain a path to a socket file"),
            ("ssh-tunnel://root@192.168.127.2?key=/k", "remote uri must contain a path to a socket file"),
            ("ssh://192.168.127.2/run/x", "no user, want ssh://user@host:port/path"),
            ("ssh://core@/run/x", r#"invalid remote addr: no host in """#),
            ("ssh://core@h", "remote uri must contain a path to a socket file"),
            ("vsock://3", r#"invalid port "", want vsock://CID:PORT"#),
            ("vsock://:1024", r#"invalid context (CID) "", want vsock://CID:PORT"#),
            ("vsock://vm:1024", r#"invalid context (CID) "vm", want vsock://CID:PORT"#),
            ("vsock://3:4294967296", r#"invalid port "4294967296", want vsock://CID:PORT"#),
            ("unix://run/x", "the path of a unix URL must be absolute, as in unix:///run/x.sock"),
            ("unix:x", "the path of a unix URL must be absolute, as in unix:///run/x.sock"),
            ("unix:///x?port=http", r#"invalid port "http", want unix:///vm.sock?port=N"#),
            ("unix:///x?prot=1", r#"unknown query "prot=1": there is only port=N, of a VMM's vsock"#),
            ("agent://guest/run/x", r#"invalid remote addr: "guest" is not an IPv4 address"#),
            ("agent://", "no path of a socket in the guest, want agent:///path"),
            ("agent:///a%0ab", "not a plain path"),
            ("foo?a:b", "remote protocol for unix forwarder is not implemented: "),
            ("ssh://u@h/x?key=%FF", r#"invalid URL escape in "%FF""#),
            ("ssh://u@h/x?key=%4", r#"invalid URL escape in "%4""#),
            (
                "tcp://h:80\n",
                "failed to parse remote uri :tcp://h:80\n : parse \"tcp://h:80\\n\": \
                 net/url: invalid control character in URL",
            ),
        ] {
            assert_eq!(Dest::parse(text), Err(why.into()), "{text}");
        }
        assert_eq!(
            Dest::parse(&format!("agent:///{}", "x".repeat(107))),
            Err("longer than 107 bytes".into())
        );
    }

    #[test]
    fn sockets_and_vsock() {
        let agent = |guest: Option<&str>, port| Dest::Agent {
            guest: guest.map(|guest| guest.parse().unwrap()),
            port,
            path: "/run/x".into(),
        };
        for (text, dest) in [
            ("unix:///run/a%20b", Dest::Unix("/run/a b".into())),
            ("unix:/run/x", Dest::Unix("/run/x".into())),
            ("unix:///vm.sock?port=1024", Dest::HybridVsock { socket: "/vm.sock".into(), port: 1024 }),
            ("vsock://3:4294967295", Dest::Vsock { cid: 3, port: u32::MAX }),
            ("agent:///run/x", agent(None, None)),
            ("agent://192.168.127.3/run/x", agent(Some("192.168.127.3"), None)),
            ("agent://192.168.127.3:900/run/x", agent(Some("192.168.127.3"), Some(900))),
        ] {
            assert_eq!(Dest::parse(text), Ok(dest), "{text}");
        }
    }

    #[test]
    fn ssh() {
        let parsed =
            Dest::parse("ssh-tunnel://core@192.168.127.2/run/a%20b?key=/k+%2B&passphrase=p%26q&secure=true");
        let expected = SshDest {
            sshd: place("192.168.127.2", 22),
            user: "core".into(),
            path: "/run/a b".into(),
            key: Some("/k +".into()),
            passphrase: Some(Secret("p&q".into())),
            password: None,
            secure: true,
        };
        assert_eq!(parsed, Ok(Dest::Ssh(expected)));
        let parsed = Dest::parse("ssh-tunnel://u:a%40b@192.168.127.2:2222/x?key=/k&secure=no");
        let Ok(Dest::Ssh(parsed)) = parsed else { panic!("{parsed:?}") };
        assert_eq!(
            (parsed.password, parsed.sshd.port, parsed.secure),
            (Some(Secret("a@b".into())), 2222, false)
        );
        for (text, secure) in [
            ("ssh://core@example.org/x", true),
            ("ssh://core@example.org/x?secure=false", false),
            ("ssh://core@127.0.0.1:2222/x", false),
            ("ssh://core@[::1]:2222/x", false),
            ("ssh://core@localhost/x", false),
            ("ssh://core@localhost/x?secure=true", true),
            ("ssh-tunnel://core@192.168.127.2/x?key=/k", false),
            // Whatever else there is.
            ("ssh://core@example.org/x?key=/k&note=100%", true),
        ] {
            let Ok(Dest::Ssh(parsed)) = Dest::parse(text) else { panic!("{text}") };
            assert_eq!(parsed.secure, secure, "{text}");
        }
        // As `podman system connection ls` prints it.
        let parsed = Dest::parse("ssh://core@127.0.0.1:46431/run/user/1000/podman/podman.sock");
        let Ok(Dest::Ssh(parsed)) = parsed else { panic!("{parsed:?}") };
        assert_eq!((parsed.sshd, parsed.key), (place("127.0.0.1", 46_431), None));
    }

    #[test]
    fn what_is_shown_has_no_secret_and_reads_back() {
        let secret = "ssh://core:pass@[::1]:2222/run/x?key=/k&passphrase=phrase";
        assert_eq!(Dest::parse(secret).unwrap().to_string(), "ssh://core@[::1]:2222/run/x");
        for text in [
            "ssh://core@guest:22/run/x",
            "tcp://[::1]:80",
            "vsock://3:1",
            "unix:///vm.sock?port=1",
            "unix:///x",
            "agent:///x",
            "agent://1.2.3.4/x",
            "agent://1.2.3.4:5/x",
        ] {
            assert_eq!(Dest::parse(text).unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z:/@?&%=#\\[\\]é.0-9]{0,40}") {
            let _ = Dest::parse(&text);
        }
    }
}
